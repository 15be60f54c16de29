"""Tests that are more than calls with literals: they run in one slot, the code under test in another, and only values pass between the two.

    round:  tests, and the values of their calls so far -> a slot of their own -> each has passed, has failed, or names its next call
            the calls that were named -> the code, in a fresh process -> a value or an exception for each

So no test, and no value that one expects, is in a process that runs what the model wrote, and nothing that the model wrote is in the
process that decides. A call that has been answered is not asked again. Not covered: arguments that are changed in place, functions that
remember earlier calls, values that are no plain data; a reference shows when the dataset is loaded that its tests need none of it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlvr_verifier.environments.base import Score, failed, passed
from rlvr_verifier.sandbox.canonical import Value, encode

MAX_ROUNDS = 100
"""Calls of one test, one after the other."""
MAX_CALLS = 1_000
TRIAL_SECONDS = 10.0
"""Processor time of all tests in one round."""
TRIAL_BYTES = 512 << 20
ENTRY, CALL = "try_tests", "_call_for_a_test"
NOTHING = "def {entry}(*arguments, **named): return None"
"""A function that does nothing: tests that it passes say nothing."""

RUNNER = """
import builtins, re, unittest

class Needed(BaseException):
    pass

def try_tests(tests, entry, answers):
    return [try_test(source, entry, list(known)) for source, known in zip(tests, answers)]

def try_test(source, entry, known):
    needed, count = [], len(known)
    def call(*arguments, **named):
        if needed or not known:
            needed.append((arguments, named))
            raise Needed
        kind, value, *words = known.pop(0)
        if kind == "error":
            raise exception(value, words[0])
        return value
    try:
        run(source, entry, call)
        said = ("passed", count - len(known))
    except BaseException as error:
        said = ("failed", type(error).__name__)
    return ("needs", *needed[0]) if needed else said

def run(source, entry, call):
    space = {"__name__": "tests", entry: call, "candidate": call}
    exec(compile(source, "<tests>", "exec"), space)
    if callable(space.get("check")) and not re.search(r"^check\\(", source, re.MULTILINE):
        space["check"](call)
    for name, value in list(space.items()):
        if isinstance(value, type) and issubclass(value, unittest.TestCase):
            result = unittest.TestResult()
            unittest.defaultTestLoader.loadTestsFromTestCase(value).run(result)
            if not result.wasSuccessful():
                raise AssertionError
        elif name.startswith("test") and callable(value):
            value()

def exception(name, words):
    kind = getattr(builtins, name, None)
    try:
        return kind(words)
    except Exception:
        return type(name, (Exception,), {})(words)
"""
CALLER = f"""

def {CALL}(arguments, named):
    try:
        return ("value", {{entry}}(*arguments, **named))
    except Exception as error:
        return ("error", type(error).__name__, str(error)[:1000])
"""
"""Behind the code under test, and at its mercy, like all that it returns."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
Calls = Callable[[str, str, Sequence[str]], list[Value] | Score]
"""Source, entry point and canonical arguments: the values of a run in the sandbox, or the verdict where there are none."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of the tests of some code."""

    verdict: Score
    calls: tuple[tuple[str, Value], ...] = ()
    """Canonical arguments of each call, and its value; none where these are not all of the calls, or one has two values."""


def try_code(run_code: Calls, run_tests: Calls, code: str, entry_point: str, tests: Sequence[str]) -> Trial:
    """Try code by its tests; the verdict is pass or nothing."""
    answers: list[list[Value]] = [[] for _ in tests]
    made: list[tuple[Value, Value, Value]] = []
    for _ in range(MAX_ROUNDS):
        said = run_tests(RUNNER, ENTRY, [encode((list(tests), entry_point, answers))])
        if isinstance(said, Score):
            return Trial(failed("its tests do not come to an end with what the code returns"))
        outcomes = _read(said[0], len(tests))
        wrong = [number for number, one in enumerate(outcomes) if one[0] == "failed"]
        if wrong:
            return Trial(failed(f"test {wrong[0]} fails: {outcomes[wrong[0]][1]}"))
        needed = [(number, one[1], one[2]) for number, one in enumerate(outcomes) if one[0] == "needs"]
        if not needed:
            return _passed(outcomes, made)
        if len(made) + len(needed) > MAX_CALLS:
            break
        found = run_code(code + CALLER.replace("{entry}", entry_point), CALL, [encode((one, named)) for _, one, named in needed])
        if isinstance(found, Score):
            return Trial(found)
        if not all(map(_is_answer, found)):
            return Trial(failed("the code wrote no proper result"))
        for (number, arguments, named), answer in zip(needed, found, strict=True):
            answers[number].append(answer)
            made.append((arguments, named, answer))
    return Trial(failed(f"its tests ask for more than {MAX_ROUNDS} calls one after the other, or {MAX_CALLS} in all"))


def _passed(outcomes: list[tuple[Value, ...]], made: list[tuple[Value, Value, Value]]) -> Trial:
    """The trial of code whose tests all passed; a test that made no call has not tried it."""
    idle = [number for number, one in enumerate(outcomes) if one[1] == 0]
    if idle:
        return Trial(failed(f"test {idle[0]} calls nothing"))
    plain = [(encode(one), answer[1]) for one, named, answer in made if not named and isinstance(answer, tuple) and answer[0] == "value"]
    values: dict[str, set[str]] = {}
    for arguments, value in plain:
        values.setdefault(arguments, set()).add(encode(value))
    is_table = len(plain) == len(made) and all(len(found) == 1 for found in values.values())
    return Trial(passed(f"right for all {len(outcomes)} tests"), tuple(plain) if is_table else ())


def _read(said: Value, count: int) -> list[tuple[Value, ...]]:
    """What the tests said; it was written by the runner above, in a process that holds nothing of the model's but values."""
    assert isinstance(said, list)
    assert len(said) == count
    return said


def _is_answer(found: Value) -> bool:
    """Whether the code wrote what `CALLER` writes."""
    match found:
        case ("value", _):
            return isinstance(found, tuple)
        case ("error", str(name), str()):
            return isinstance(found, tuple) and _NAME.fullmatch(name) is not None
    return False
