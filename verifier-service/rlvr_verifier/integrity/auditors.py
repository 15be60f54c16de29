r"""Second verifiers, one for each member of `rlvr_api.environments.AuditVerifier`; they share no code with what they audit.

`final_answer`: the completion's one literal number, compared exactly in rational arithmetic.

    completion -> all of the last \boxed{}, or else its last number -> Fraction -> equal to the gold's?

Nothing is worked out, so `3 + 4`, `\frac{d}{dx}7x` and the question itself are no numbers. Not covered: numbers in words, with units, or in
other scripts.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Protocol

from pydantic import JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_verifier.environments.base import Environment, EnvironmentSetupError, Score, failed, invalid, passed

MAX_CHARACTERS = 128
"""Longest literal: arithmetic's largest answers have 64 digits."""
TAIL_CHARACTERS = 8_192
_LITERAL = r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?"
_LAST_NUMBER = re.compile(rf"(?<![\d.]){_LITERAL}", re.ASCII)
_WHOLE_NUMBER = re.compile(rf"({_LITERAL})|(-?)\\[dt]?frac\{{(-?\d+)\}}\{{(\d+)\}}", re.ASCII)
_BOX = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_SPACING = re.compile(r"\\[,!;: ]|[\s$~]|(?<=\d)\.$")


class Auditor(Protocol):
    """A second verifier."""

    name: str
    version: str

    def judge(self, payload: Mapping[str, JsonValue], completion: str) -> Score:
        """The verdict on one completion, given what was sealed for its task."""
        ...


class FinalAnswerAuditor:
    """See the module's docstring."""

    name = "final-answer"
    version = "1"

    def judge(self, payload: Mapping[str, JsonValue], completion: str) -> Score:
        """Compare the completion's final number with `payload["answer"]`."""
        gold = literal_number(str(payload["answer"]))
        assert gold is not None, "open_auditors has seen that every answer is a number"
        tail = completion[-TAIL_CHARACTERS:].rpartition("</think>")[2]
        boxes = _BOX.findall(tail)
        found = boxes[-1:] if boxes or "\\boxed" in tail else _LAST_NUMBER.findall(tail)[-1:]
        number = literal_number(found[0]) if found else None
        if number is None:
            return invalid("the final answer is no literal number" if found else "there is no final answer")
        return passed("the final number is right") if number == gold else failed("the final number is wrong")


def literal_number(text: str) -> Fraction | None:
    """The value of a number or fraction as it is written; None for anything else."""
    compact = _SPACING.sub("", text)
    match = _WHOLE_NUMBER.fullmatch(compact) if len(compact) <= MAX_CHARACTERS else None
    if match is None:
        return None
    literal, sign, top, bottom = match.groups()
    if literal is not None:
        numerator, _, denominator = literal.replace(",", "").partition("/")
        return None if denominator and int(denominator) == 0 else Fraction(numerator) / Fraction(denominator or 1)
    if int(bottom) == 0:
        return None
    return Fraction(int(top), int(bottom)) * (-1 if sign else 1)


def open_auditors(specs: Iterable[EnvironmentSpec], environments: Mapping[str, Environment]) -> dict[str, Auditor]:
    """The auditor of each environment that names one.

    Raises:
        EnvironmentSetupError: an environment has gold answers that its auditor cannot compare.
    """
    return {spec.name: AUDITORS[spec.audit.kind](spec, environments[spec.name]) for spec in specs if spec.audit is not None}


def _final_answer(spec: EnvironmentSpec, environment: Environment) -> Auditor:
    answers = getattr(environment, "answers", None)  # environments that make numbers by themselves have no list of them
    others = [] if answers is None else [answer for answer in answers() if literal_number(answer) is None]
    if others:
        shown = ", ".join(repr(answer[:40]) for answer in others[:3])
        raise EnvironmentSetupError(
            f"environment {spec.name}: audit.finalAnswer compares numbers, and {len(others)} answers of the dataset are none, for example "
            f"{shown}; put them into an environment of their own, without audit"
        )
    return FinalAnswerAuditor()


AUDITORS: Mapping[str, Callable[[EnvironmentSpec, Environment], Auditor]] = {"final_answer": _final_answer}
