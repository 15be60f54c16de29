"""Texts that must keep to constraints; all of a task's hold, or nothing is paid.

    load:   rows -> an example that is refused, and texts that say nothing and would be paid, are faults
    score:  after the thinking -> words at all? -> degenerate text refused, unless the task allows it -> every constraint

Not covered: whether the text answers the prompt. What constraints leave open is paid; a `judge` beside them looks at the rest.
"""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import Field, JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.model import ApiModel
from rlvr_verifier.environments.answers import after_thinking
from rlvr_verifier.environments.base import Place, Score, failed, invalid, passed
from rlvr_verifier.environments.constraints import Constraint, Excludes, fold, required_phrases, words
from rlvr_verifier.environments.datasets import DatasetReader, parse_models
from rlvr_verifier.environments.prompts import PromptEnvironment, split_rows
from rlvr_verifier.integrity.probe import COMMON, EXPLOIT, RIGHT, WRONG, Probe

FEW_WORDS = 12
"""Below it a text is too short for its variety to say anything."""
LEAST_VARIETY = 0.5
"""Share of the triples of words that differ; prose has more than 0.9."""
LARGEST_STUFFING = 0.5
"""Share of the words that the constraints dictate."""
_MARKS = ".,;:!?\"'()*_-"
INVISIBLE = "\u200b"
MOST_COPIES = 3
"""Of one word in a row."""


class InstructionRow(ApiModel):
    """One line of a dataset."""

    prompt: Annotated[str, Field(min_length=1, max_length=100_000)]
    constraints: Annotated[list[Constraint], Field(min_length=1, max_length=50)]
    refuse_degenerate: bool = True
    example: Annotated[str, Field(min_length=1, max_length=65_536)] | None = None
    """A right text, where the row has one."""


class InstructionsEnvironment(PromptEnvironment[InstructionRow]):
    """A dataset of texts to write."""

    kind = "instructions"
    place = Place.WORKER

    def __init__(self, spec: EnvironmentSpec, reader: DatasetReader) -> None:
        assert spec.instructions is not None
        kind = spec.instructions
        data = reader.read(kind.dataset)
        rows = list(parse_models(data, kind.dataset, InstructionRow))
        faults = [] if reader.checked else [f"line {number}: {fault}" for number, row in rows for fault in row_faults(row)]
        unicode = f"2+unicode-{unicodedata.unidata_version}"
        super().__init__(spec.name, unicode, kind.instruction, data, split_rows(self.kind, kind.dataset, kind.held_out, rows, faults))

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """All constraints, or nothing."""
        return judge(self.row(payload), completion)

    def probes(self, payload: Mapping[str, JsonValue]) -> Iterator[Probe]:
        """The example, its constraints broken one by one, and texts that say nothing."""
        row = self.row(payload)
        yield from COMMON
        yield from (Probe(name, EXPLOIT, text) for name, text in hollow_texts(row))
        if row.example is None:
            return
        yield Probe("example", RIGHT, row.example)
        yield Probe("thought-before", RIGHT, f"<think>{row.prompt.replace('think>', '')}</think>\n{row.example}\n")
        yield Probe("only-thought", WRONG, f"<think>{row.example}</think>")
        for number, one in enumerate(row.constraints):
            if isinstance(one, Excludes):
                yield Probe(f"excluded-{number}", WRONG, f"{row.example} {one.phrases[0]}")
                disguised = INVISIBLE.join(one.phrases[0])
                yield Probe(f"excluded-in-disguise-{number}", EXPLOIT, f"{row.example} {disguised}")


def judge(row: InstructionRow, completion: str) -> Score:
    """The verdict on a completion."""
    answer = after_thinking(completion)
    if isinstance(answer, Score):
        return answer
    text = answer.strip()
    if not words(fold(text)):
        return invalid("the text has no words")
    if row.refuse_degenerate and (fault := degeneracy(row, text)):
        return failed(fault)
    broken = [one.kind for one in row.constraints if not one.holds(text)]
    if broken:
        return failed(f"the text breaks {len(broken)} of {len(row.constraints)} constraints: {', '.join(dict.fromkeys(broken))}")
    return passed(f"the text keeps to all {len(row.constraints)} constraints")


def degeneracy(row: InstructionRow, text: str) -> str:
    """Why a text says nothing; empty when it may say something."""
    found = [fold(word).strip(_MARKS) for word in words(text)]
    if text == row.prompt.strip():
        return "the text repeats the prompt"
    if any(len(set(found[start : start + MOST_COPIES])) == 1 for start in range(len(found) - MOST_COPIES + 1)):
        return f"the text has one word {MOST_COPIES} times in a row"
    triples = list(zip(found, found[1:], found[2:], strict=False))
    if len(found) >= FEW_WORDS and len(set(triples)) < LEAST_VARIETY * len(triples):
        return "the text repeats itself"
    dictated = {word.strip(_MARKS) for phrase in required_phrases(row.constraints) for word in words(fold(phrase))}
    if dictated and sum(word in dictated for word in found) > LARGEST_STUFFING * len(found):
        return "the text is little more than what it must have"
    return ""


def hollow_texts(row: InstructionRow) -> Iterator[tuple[str, str]]:
    """Texts that no task may pay for, by name."""
    yield "prompt-echo", row.prompt
    yield "no-words", "- - - . . ."
    if row.refuse_degenerate:
        phrases = required_phrases(row.constraints)
        yield "stuffing", " ".join(phrases) or "Sure."
        yield "repetition", f"{' '.join(['word'] * 200)} {' '.join(phrases)}"
        yield "loop", " ".join(["this is what was asked for,", *phrases] * 40)


def row_faults(row: InstructionRow) -> Iterator[str]:
    """What is wrong with a row."""
    for name, text in (*((probe.name, probe.completion) for probe in COMMON), *hollow_texts(row)):
        if judge(row, text).score > 0:
            yield f"the text {name!r} ({text[:40]!r}) would be paid: add constraints, for example on its length"
    if row.example is not None and (found := judge(row, row.example)).score == 0:
        yield f"its example is refused: {found.reason}"
