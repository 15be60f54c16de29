"""Arithmetic made on the spot: level n has operands of n + 1 digits.

Problems are split by a hash of their canonical form, in which 3 + 4 is 4 + 3, so no held-out sum is ever trained on in another order.
At small levels all problems are listed; at large ones held-out problems are drawn by seed until a new one is found.
"""

import hashlib
import random
import re
from collections.abc import Mapping
from functools import lru_cache

from pydantic import JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.wire import Message, Split
from rlvr_verifier.environments.base import EnvironmentSetupError, NoSuchTaskError, SampledTask, Score, failed, invalid, passed

HELD_OUT_SHARE = 0.25
MAX_HELD_OUT = 1_000
MAX_DIGITS = 64
"""Longest integer that is read as an answer."""
_INTEGER = re.compile(r"(?<![0-9])-?[0-9]+", re.ASCII)
_EXACT = re.compile(r"-?[0-9]+", re.ASCII)
Problem = tuple[int, str, int]


class ArithmeticEnvironment:
    """Sums, differences and products of whole numbers."""

    kind = "arithmetic"
    version = "1"
    deterministic = True
    slow = False
    levels = (0, 15)

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
        text = self._spec.instruction.replace("{problem}", f"{left} {operation} {right}")
        payload: dict[str, JsonValue] = {"answer": str(_compute(left, operation, right)), "extraction": self._spec.extraction}
        return SampledTask(_problem_id((left, operation, right)), (Message(role="user", content=text),), payload)

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """Compare the extracted integer; only ASCII digits count as digits."""
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


def _random_problem(generator: random.Random, operations: tuple[str, ...], level: int) -> Problem:
    low, high = _bounds(level)
    return generator.randint(low, high), generator.choice(operations), generator.randint(low, high)


def _bounds(level: int) -> tuple[int, int]:
    return (0 if level == 0 else 10**level), 10 ** (level + 1) - 1


@lru_cache(maxsize=64)
def _held_out(operations: tuple[str, ...], level: int) -> tuple[Problem, ...]:
    """Held-out problems, each canonical form once, in an order that depends on nothing but the arguments."""
    low, high = _bounds(level)
    found: dict[str, Problem] = {}
    if high - low < 100:
        every = [(left, operation, right) for operation in operations for left in range(low, high + 1) for right in range(low, high + 1)]
        for problem in every:
            if _is_held_out(problem):
                found.setdefault(_canonical(problem), problem)
    else:
        generator = random.Random(f"heldOut/{level}/{operations}")  # noqa: S311
        while len(found) < MAX_HELD_OUT:
            problem = _random_problem(generator, operations, level)
            if _is_held_out(problem):
                found.setdefault(_canonical(problem), problem)
    return tuple(sorted(found.values(), key=_problem_id))[:MAX_HELD_OUT]


def _canonical(problem: Problem) -> str:
    left, operation, right = problem
    if operation in "+*" and left > right:
        left, right = right, left
    return f"{left}{operation}{right}"


def _problem_id(problem: Problem) -> str:
    return hashlib.sha256(f"arithmetic/{_canonical(problem)}".encode()).hexdigest()[:16]


def _is_held_out(problem: Problem) -> bool:
    return int(_problem_id(problem)[:8], 16) / 2**32 < HELD_OUT_SHARE


def _compute(left: int, operation: str, right: int) -> int:
    match operation:
        case "+":
            return left + right
        case "-":
            return left - right
        case _:
            return left * right
