"""Tests that are run: in one slot, with the code under test in another, and values alone between them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from verifier_jobs import open_functions

from rlvr_api.wire import VerdictStatus
from rlvr_verifier.environments.base import EnvironmentSetupError, Score
from rlvr_verifier.environments.python_functions import PythonFunctionsEnvironment
from rlvr_verifier.environments.two_boxes import CALL, ENTRY
from rlvr_verifier.exploits import Sample, read_code
from rlvr_verifier.integrity.probe import Probe
from rlvr_verifier.sandbox.pool import Sandbox
from rlvr_verifier.sandbox.protocol import unpack_request
from rlvr_verifier.sandbox.slot import Item, Run

REFERENCE = """
def mean(values, *, weights=None):
    if not values:
        raise ValueError("no values")
    weights = weights or [1] * len(values)
    return sum(v * w for v, w in zip(values, weights)) / sum(weights)
"""
MEAN = {
    "prompt": "Write mean(values, *, weights=None), which raises ValueError for none.",
    "entryPoint": "mean",
    "reference": REFERENCE,
    "tests": [
        """
def test_of_ranges():
    for n in range(1, 6):
        assert mean(list(range(n))) == (n - 1) / 2

def test_weights():
    assert mean([1, 3], weights=[3, 1]) == 1.5
""",
        """
import unittest

class Means(unittest.TestCase):
    def test_none(self):
        with self.assertRaisesRegex(ValueError, "no values"):
            mean([])

    def test_one(self):
        self.assertAlmostEqual(mean([0.1]), 0.1)
""",
        """
def check(candidate):
    expected = {(2, 4): 3, (5,): 5}
    for values, value in expected.items():
        assert candidate(list(values)) == value
""",
    ],
}
SUMS = {
    "prompt": "Write f(xs), the sum of a list of integers.",
    "entryPoint": "f",
    "reference": "def f(xs): return sum(xs)",
    "tests": [
        "for n in (0, 1, 3, 100):\n    assert f(list(range(n))) == n * (n - 1) // 2",
        "def test_negative():\n    xs = [-3, -4, 1]\n    assert f(xs) == -6 and f(xs + [2147483648] * 2) == 4294967290",
        "assert f([9007199254740992] + [1]) == 9007199254740993 and type(f([1, 2])) is int",
    ],
}


class Recorder:
    """A sandbox that remembers what went into it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.items: list[Item] = []

    def run(self, item: Item) -> Run:
        self.items.append(item)
        return self._sandbox.run(item)

    def sent(self, entry: str) -> list[bytes]:
        return [item.message() for item in self.items if item.entry == entry]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(1)
    yield made
    made.close()


def judge(environment: PythonFunctionsEnvironment, source: str) -> Score:
    return environment.score(environment.sample("train", 0, 0).payload, f"```python\n{source}\n```", False)


@pytest.fixture(scope="module")
def means(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> PythonFunctionsEnvironment:
    return open_functions(tmp_path_factory.mktemp("means"), sandbox, MEAN)


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> PythonFunctionsEnvironment:
    return open_functions(tmp_path_factory.mktemp("sums"), sandbox, SUMS, time_limit_seconds=2.0)


def test_right_code_passes_loops_classes_exceptions_and_named_arguments(means: PythonFunctionsEnvironment) -> None:
    assert judge(means, REFERENCE).reason == "right for all 3 tests"
    other = REFERENCE.replace("zip(values, weights)", "list(zip(values, weights))")
    assert judge(means, other).status is VerdictStatus.PASS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("raise ValueError", "raise KeyError"), "test 1 fails: AssertionError"),
        (('"no values"', '"nothing"'), "test 1 fails: AssertionError"),
        (("/ sum(weights)", "// sum(weights)"), "test 0 fails: AssertionError"),
        (("weights=None", "weight=None"), "test 0 fails: UnboundLocalError"),
        (("def mean", "def other"), "test 0 fails: NameError"),
        (("return sum", "return lambda: sum"), "the code raised NotCanonicalError"),
        (("    if not", "    while True: pass\n    if not"), None),
    ],
)
def test_wrong_code_does_not(means: PythonFunctionsEnvironment, change: tuple[str, str], reason: str | None) -> None:
    score = judge(means, REFERENCE.replace(*change))
    assert score.status is (VerdictStatus.TIMEOUT if reason is None else VerdictStatus.FAIL)
    assert reason is None or score.reason == reason


@pytest.mark.parametrize("sample", [one for one in read_code("functions") if one.kind != "bombs"], ids=lambda sample: sample.name)
def test_no_wrong_function_of_the_corpus_is_paid(sums: PythonFunctionsEnvironment, sample: Sample) -> None:
    score = sums.score(sums.sample("train", 0, 0).payload, sample.completion, False)
    assert (score.status is VerdictStatus.PASS) is sample.is_right, score.reason


FORGERIES = {
    "the caller says that it passed": f"def f(xs): return 0\ndef {CALL}(*a): return ('passed', 9)\n{CALL} = None\nimport sys\nsys.exit(0)",
    "writes the answers itself": "import os\ndef f(xs):\n    for fd in range(3, 16):\n        try:\n"
    "            os.write(fd, b'v 0 (s\"value\",i0)\\nend\\n')\n        except OSError: pass\n    os._exit(0)",
    "equals everything": "class A(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(xs): return A(0)",
    "an exception that is none": "class Needed(Exception): pass\ndef f(xs): raise Needed('x')",
    "an exception that ends": "def f(xs): raise SystemExit(0)",
    "an exception of the tests' own": "def f(xs): raise type('AssertionError', (Exception,), {})('x')",
    "an exception with code for a name": "def f(xs): raise type('x(); y', (Exception,), {})('x')",
    "a tuple like an answer": "def f(xs): return ('value', sum(xs))",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_what_the_code_says_of_itself_is_only_a_value(sums: PythonFunctionsEnvironment, name: str) -> None:
    assert judge(sums, FORGERIES[name]).status is VerdictStatus.FAIL


def test_the_code_is_sent_calls_and_nothing_of_what_a_test_expects(tmp_path: Path, sandbox: Sandbox) -> None:
    recorder = Recorder(sandbox)
    sent = []
    for expected in (41_976, 87_215):
        row = {
            **SUMS,
            "reference": f"def f(xs): return {expected} if xs == [1] else sum(xs)",
            "tests": [f"for x in [1]:\n    assert f([x]) == {expected}\n    assert f([2]) == 2"],
        }
        environment = open_functions(tmp_path, recorder, row)
        recorder.items.clear()
        assert judge(environment, "def f(xs): return 7").reason == "test 0 fails: AssertionError"
        sent.append(recorder.sent(CALL))
        assert len(recorder.sent(ENTRY)) == 2
        assert not any(str(expected).encode() in message for message in sent[-1])
    assert sent[0] == sent[1]
    assert len(sent[0]) == 1, "the second assert is not reached, so its call is never asked for"


def test_a_call_that_was_answered_is_not_asked_again(tmp_path: Path, sandbox: Sandbox) -> None:
    recorder = Recorder(sandbox)
    environment = open_functions(tmp_path, recorder, SUMS)
    recorder.items.clear()
    assert judge(environment, SUMS["reference"]).status is VerdictStatus.PASS
    asked = [unpack_request(message).inputs for message in recorder.sent(CALL)]
    assert [len(inputs) for inputs in asked] == [3, 3, 1, 1], "four, two and two calls one after the other, side by side"


@pytest.mark.parametrize("swallow", ["except Exception: pass", "except BaseException: pass", "finally: pass"])
def test_a_test_that_swallows_what_stops_it_has_not_passed(tmp_path: Path, sandbox: Sandbox, swallow: str) -> None:
    test = f"seen = []\ntry:\n    seen.append(f([1, 2]))\n{swallow}\nassert seen == [3]"
    environment = open_functions(tmp_path, sandbox, {**SUMS, "tests": [test]})
    assert judge(environment, "def f(xs): return sum(xs)").status is VerdictStatus.PASS
    assert judge(environment, "def f(xs): return 4").status is VerdictStatus.FAIL


def test_calls_without_end_are_the_codes_own_fault(tmp_path: Path, sandbox: Sandbox) -> None:
    row = {**SUMS, "tests": ["n = 1\nwhile f([n]) < 3:\n    n += 1\nassert n == 3"]}
    environment = open_functions(tmp_path, sandbox, row, time_limit_seconds=10.0)
    assert "more than 100 calls one after the other" in judge(environment, "def f(xs): return 0").reason


def test_rows_that_do_not_try_anything_are_listed_by_line(tmp_path: Path, sandbox: Sandbox) -> None:
    loop = "for n in [1]:\n    assert f([n]) == 1"
    rows = [
        {**SUMS, "prompt": "a", "reference": None, "tests": [loop]},
        {**SUMS, "prompt": "b", "reference": "def f(xs): return 0", "tests": [loop]},
        {**SUMS, "prompt": "c", "tests": ["for n in [1]:\n    f([n])"]},
        {**SUMS, "prompt": "d", "tests": [loop, "x = 1\nassert x == 1"]},
        {**SUMS, "prompt": "e", "reference": "def f(xs): xs.append(0)", "tests": ["xs = [1]\nf(xs)\nassert xs == [1, 0]"]},
        {**SUMS, "prompt": "g", "tests": ["import pytest\nassert f([1]) == 1\nx = 1"]},
    ]
    rows[0].pop("reference")
    with pytest.raises(EnvironmentSetupError) as caught:
        open_functions(tmp_path, sandbox, *rows)
    for words in (
        "line 1: a test cannot be read as a call: line 1 of a test, 'for n in [1]:",
        "line 2: its reference fails: test 0 fails: AssertionError",
        "line 3: its tests pass for a function that does nothing",
        "line 4: its reference fails: test 1 calls nothing",
        "line 5: its reference fails: test 0 fails: AssertionError",
        "line 6: its reference fails: test 0 fails: ModuleNotFoundError",
    ):
        assert words in str(caught.value)


def test_probes_know_a_right_answer_where_a_table_of_the_calls_is_one(
    means: PythonFunctionsEnvironment, sums: PythonFunctionsEnvironment
) -> None:
    def probes(environment: PythonFunctionsEnvironment) -> dict[str, Probe]:
        return {probe.name: probe for probe in environment.probes(environment.sample("train", 0, 0).payload)}

    for environment, table_is_right in ((sums, True), (means, False)):
        for name, probe in probes(environment).items():
            score = environment.score(environment.sample("train", 0, 0).payload, probe.completion, False)
            assert (score.status is VerdictStatus.PASS) is probe.paid, name
        assert probes(environment)["table"].paid is table_is_right
