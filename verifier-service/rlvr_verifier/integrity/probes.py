"""Completions whose verdict is known: right answers in several notations, wrong ones, and exploits that graders have paid before.

    environment, what was sealed for a task -> probes_for -> Probe(name, tag, completion)

They are the canaries among the traffic of a job and the battery of `rlvr environment certify`. A probe is left out where its verdict is not
certain: the question repeated is a right answer where its last number happens to be the gold. Not covered: right answers that no list has.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction

from pydantic import JsonValue

from rlvr_verifier.environments.base import Environment
from rlvr_verifier.integrity.auditors import literal_number
from rlvr_verifier.integrity.probe import COMMON, EXPLOIT, RIGHT, WRONG, Probe

Payload = Mapping[str, JsonValue]


def probes_for(environment: Environment, payload: Payload) -> tuple[Probe, ...]:
    """All probes for a task: the environment's own, made from the row of its dataset, or those of its kind."""
    own = getattr(environment, "probes", None)
    return probes_of(environment.kind, payload) if own is None else tuple(own(payload))


def probes_of(kind: str, payload: Payload) -> tuple[Probe, ...]:
    """All probes for a task of an environment of this kind; none for kinds that have no list yet."""
    maker = PROBES.get(kind)
    return () if maker is None else tuple(maker(payload))


def _arithmetic(payload: Payload) -> Iterator[Probe]:
    answer, problem = int(str(payload["answer"])), str(payload["problem"])
    yield from (probe for probe in COMMON if str(answer) not in re.findall(r"\d+", probe.completion))
    yield Probe("plain", RIGHT, str(answer))
    yield Probe("spaced", RIGHT, f" {answer}\n")
    if payload["extraction"] != "exact":
        yield Probe("sentence", RIGHT, f"The answer is {answer}.")
        yield Probe("equation", RIGHT, f"{problem} = {answer}")
    yield Probe("off-by-one", WRONG, str(answer + 1))
    yield Probe("negated", WRONG, str(-answer if answer else 1))
    yield Probe("two-answers", EXPLOIT, f"{answer} or {answer + 1}")
    yield Probe("listing", EXPLOIT, " ".join(str(answer + step) for step in range(-3, 4)))
    yield Probe("full-width", EXPLOIT, str(answer).translate({ord(digit): 0xFF10 + int(digit) for digit in "0123456789"}))
    last = re.findall(r"-?\d+", problem)[-1]
    if int(last) != answer:
        yield Probe("question-echo", EXPLOIT, problem)
        yield Probe("question-echo-in-words", EXPLOIT, f"The answer is {problem}.")


def _math(payload: Payload) -> Iterator[Probe]:
    answer, problem = str(payload["answer"]), str(payload["problem"])
    number = literal_number(answer)
    yield from COMMON
    yield Probe("boxed", RIGHT, f"\\boxed{{{answer}}}")
    yield Probe("thought-then-boxed", RIGHT, f"<think>Let me see.</think> So it is $\\boxed{{{answer}}}$.")
    yield Probe("empty-box", WRONG, r"\boxed{}")
    yield Probe("unboxed", WRONG, "It can be seen that the answer is clear.")
    yield Probe("not-equal", EXPLOIT, f"\\boxed{{\\ne {answer}}}")
    yield Probe("at-least", EXPLOIT, f"\\boxed{{\\ge {answer}}}")
    yield Probe("in-words", EXPLOIT, f"\\boxed{{{answer} \\text{{ is wrong}}}}")
    yield Probe("question-echo", EXPLOIT, f"\\boxed{{{problem}}}")
    if number is not None:
        yield Probe("off-by-one", WRONG, f"\\boxed{{{_written(number + 1)}}}")
        yield Probe("two-boxes", EXPLOIT, f"\\boxed{{{answer}}} \\boxed{{{_written(number + 1)}}}")
        yield Probe("false-equation", EXPLOIT, f"\\boxed{{{_written(number + 1)} = {answer}}}")
        yield Probe("left-undone", EXPLOIT, f"\\boxed{{{_written(number - 1)} + 1}}")
        yield Probe("difference", EXPLOIT, f"\\boxed{{{_written(number + 1)} - 1}}")
        yield Probe("product", EXPLOIT, f"\\boxed{{{answer} \\cdot 1}}")
        yield Probe("sum-sign", EXPLOIT, f"\\boxed{{\\sum_{{i=1}}^{{1}} {answer}}}")
        yield Probe("percent", EXPLOIT, f"\\boxed{{{_written(number * 100)}\\%}}")


def _written(number: Fraction) -> str:
    return str(number.numerator) if number.denominator == 1 else f"\\frac{{{number.numerator}}}{{{number.denominator}}}"


PROBES: Mapping[str, Callable[[Payload], Iterator[Probe]]] = {
    "arithmetic": _arithmetic,
    "math": _math,
    "reasoning_gym": lambda _: iter((*COMMON, Probe("not-a-number", EXPLOIT, "nan"))),
}
