"""Arithmetic made on the spot: at level n the two operands have n + 2 digits together, as evenly as can be, in either order.

    level 0: 3 + 4      1: 34 + 5, 5 + 34      2: 34 + 56      3: 345 + 67, 67 + 345      4: 345 + 678

One digit a level keeps the next level within reach of a model that solves the one before: a group of samples teaches most where half of
them pass, and nothing where none does.
Problems are split by a hash of their canonical form, in which 3 + 4 is 4 + 3, so no held-out sum is ever trained on in another order.
At small levels all problems are listed; at large ones held-out problems are drawn by seed until there are enough.
"""

import hashlib
import math
import random
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import product

from pydantic import JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.wire import Message, Split
from rlvr_verifier.environments.base import EnvironmentSetupError, NoSuchTaskError, Place, SampledTask, Score, failed, invalid, passed

HELD_OUT_SHARE = 0.25
MAX_HELD_OUT = 1_000
FIRST_DRAWN_LEVEL = 3
"""Below it all problems are listed: at most 90 x 90 an operation."""
MAX_DIGITS = 64
"""Longest integer that is read as an answer."""
_INTEGER = re.compile(r"(?<![0-9])-?[0-9]+", re.ASCII)
_EXACT = re.compile(r"-?[0-9]+", re.ASCII)
_EXPRESSION = re.compile(r"(?:(?<![0-9])-)?[0-9]+(?:\s*[-+*]\s*[0-9]+)*", re.ASCII)
_TERM = re.compile(r"([-+]?)\s*([0-9]+(?:\s*\*\s*[0-9]+)*)", re.ASCII)
MAX_TERMS = 8
"""Numbers in an expression that is worked out."""
Problem = tuple[int, str, int]


class ArithmeticEnvironment:
    """Sums, differences and products of whole numbers."""

    kind = "arithmetic"
    version = scorer_version = "3"
    data_sha256 = None
    deterministic = True
    place = Place.SERVICE
    levels = (0, 30)

    def __init__(self, spec: EnvironmentSpec) -> None:
        assert spec.arithmetic is not None
        if spec.levels.maximum > self.levels[1]:
            raise EnvironmentSetupError(f"environment {spec.name}: levels.maximum {spec.levels.maximum} is above {self.levels[1]}")
        self.name = spec.name
        self._spec = spec.arithmetic

    def held_out_tasks(self, level: int) -> int:
        """Distinct held-out problems at a level, at most `MAX_HELD_OUT`."""
        return len(_held_out(tuple(self._spec.operations), level))

    def sample(self, split: Split, seed: int, level: int) -> SampledTask:
        """The problem of a seed.

        Raises:
            NoSuchTaskError: there is no held-out problem of that number.
        """
        if split == "heldOut":
            problems = _held_out(tuple(self._spec.operations), level)
            if seed >= len(problems):
                raise NoSuchTaskError(
                    f"environment {self.name} has {len(problems)} held-out tasks at level {level}, so none with seed {seed}"
                )
            left, operation, right = problems[seed]
        else:
            left, operation, right = self._draw(seed, level)
        written = f"{left} {operation} {right}"
        text = self._spec.instruction.replace("{problem}", written)
        answer = str(compute(left, operation, right))
        payload: dict[str, JsonValue] = {"answer": answer, "problem": written, "extraction": self._spec.extraction}
        return SampledTask(_problem_id((left, operation, right)), (Message(role="user", content=text),), payload)

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """Compare the extracted integer; only ASCII digits count as digits."""
        if payload["extraction"] == "expression":
            return _judge_expression(str(payload["answer"]), completion)
        if payload["extraction"] == "exact":
            found = [completion.strip()] if _EXACT.fullmatch(completion.strip()) else []
        else:
            found = _INTEGER.findall(completion)
        if not found:
            return invalid(
                "no integer in the completion" if payload["extraction"] == "lastInteger" else "the completion is not one integer"
            )
        if len(found[-1]) > MAX_DIGITS:
            return invalid(f"the last integer has more than {MAX_DIGITS} digits")
        answer = int(found[-1])
        return passed(f"answer {answer} is right") if answer == int(str(payload["answer"])) else failed(f"answer {answer} is wrong")

    def _draw(self, seed: int, level: int) -> Problem:
        generator = random.Random(f"train/{seed}/{level}")  # noqa: S311 - tasks, not secrets
        while True:
            problem = _random_problem(generator, tuple(self._spec.operations), level)
            if not _is_held_out(problem):
                return problem


def _judge_expression(gold: str, completion: str) -> Score:
    found = _EXPRESSION.findall(completion)
    if not found:
        return invalid("no expression in the completion")
    numbers = re.findall(r"[0-9]+", found[-1])
    if len(numbers) > MAX_TERMS or any(len(number) > MAX_DIGITS for number in numbers):
        return invalid(f"the last expression has more than {MAX_TERMS} numbers, or one of more than {MAX_DIGITS} digits")
    value = _evaluate(found[-1])
    return passed("the last expression is right") if value == int(gold) else failed("the last expression is wrong")


def _evaluate(expression: str) -> int:
    """Products before sums and differences, by rewriting; never Python's own `eval`."""
    total = 0
    for sign, product_ in _TERM.findall(expression):
        value = math.prod(int(factor) for factor in _INTEGER.findall(product_))
        total += -value if sign == "-" else value
    return total


def _random_problem(generator: random.Random, operations: tuple[str, ...], level: int) -> Problem:
    operands = [generator.choice(_operands(digits)) for digits in _digits(level)]
    generator.shuffle(operands)
    return operands[0], generator.choice(operations), operands[1]


def _digits(level: int) -> tuple[int, int]:
    return 1 + (level + 1) // 2, 1 + level // 2


def _operands(digits: int) -> range:
    return range(0 if digits == 1 else 10 ** (digits - 1), 10**digits)


@lru_cache(maxsize=64)
def _held_out(operations: tuple[str, ...], level: int) -> tuple[Problem, ...]:
    """Held-out problems, each canonical form once, in an order that depends on nothing but the arguments."""
    generator = random.Random(f"heldOut/{level}/{operations}")  # noqa: S311
    found: dict[str, Problem] = {}
    for problem in _every_problem(generator, operations, level) if level < FIRST_DRAWN_LEVEL else _draws(generator, operations, level):
        if _is_held_out(problem):
            found.setdefault(_canonical(problem), problem)
        if len(found) == MAX_HELD_OUT:
            break
    return tuple(sorted(found.values(), key=_problem_id))


def _every_problem(generator: random.Random, operations: tuple[str, ...], level: int) -> list[Problem]:
    """In a random order, which decides how a problem that can be written two ways is written."""
    first, second = map(_operands, _digits(level))
    every = {
        (left, operation, right)
        for one, other in ((first, second), (second, first))
        for left, operation, right in product(one, operations, other)
    }
    problems = sorted(every)
    generator.shuffle(problems)
    return problems


def _draws(generator: random.Random, operations: tuple[str, ...], level: int) -> Iterator[Problem]:
    while True:
        yield _random_problem(generator, operations, level)


def _canonical(problem: Problem) -> str:
    left, operation, right = problem
    if operation in "+*" and left > right:
        left, right = right, left
    return f"{left}{operation}{right}"


def _problem_id(problem: Problem) -> str:
    return hashlib.sha256(f"arithmetic/{_canonical(problem)}".encode()).hexdigest()[:16]


def _is_held_out(problem: Problem) -> bool:
    return int(_problem_id(problem)[:8], 16) / 2**32 < HELD_OUT_SHARE


def compute(left: int, operation: str, right: int) -> int:
    """The value of one operation: `+`, `-` or `*`."""
    match operation:
        case "+":
            return left + right
        case "-":
            return left - right
        case _:
            return left * right
