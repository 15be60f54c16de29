"""One regular expression that matches some strings and not others; most of these stand in no prompt.

    load:   rows -> the reference matches all and no other -> patterns that match anything are refused -> strings that the prompt hides
    score:  the one pattern -> size -> compiled -> every string, wholly

Python's own engine, in a killable worker: a pattern that goes on for ever is the candidate's `timeout`. Not covered: strings that do not
tell a wrong pattern from a right one.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import Field, JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.model import ApiModel
from rlvr_verifier.environments.answers import only_answer
from rlvr_verifier.environments.base import Place, Score, failed, invalid, passed
from rlvr_verifier.environments.datasets import DatasetReader, parse_models
from rlvr_verifier.environments.prompts import PromptEnvironment, split_rows
from rlvr_verifier.integrity.probe import COMMON, EXPLOIT, RIGHT, WRONG, Probe, fenced

TRIVIAL = (".*", ".+", "(?s).*", "(?s).+", r"[\s\S]*", r"[^\n]*", "", "^", "$", r"\w*", r"\S*", "(?=)")
"""Patterns that no task may pay for."""
Strings = Annotated[list[Annotated[str, Field(max_length=10_000)]], Field(min_length=1, max_length=1_000)]


class RegexRow(ApiModel):
    """One line of a dataset."""

    prompt: Annotated[str, Field(min_length=1, max_length=100_000)]
    must_match: Strings
    must_not_match: Strings
    reference: Annotated[str, Field(min_length=1, max_length=10_000)]


class RegexEnvironment(PromptEnvironment[RegexRow]):
    """A dataset of patterns to write."""

    kind = "regex"
    place = Place.WORKER

    def __init__(self, spec: EnvironmentSpec, reader: DatasetReader) -> None:
        assert spec.regex is not None
        self._spec = spec.regex
        data = reader.read(self._spec.dataset)
        rows = list(parse_models(data, self._spec.dataset, RegexRow))
        faults = [] if reader.checked else [f"line {number}: {fault}" for number, row in rows for fault in self._faults(row)]
        dataset = split_rows(self.kind, self._spec.dataset, self._spec.held_out, rows, faults)
        super().__init__(spec.name, "1", self._spec.instruction, data, dataset)

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """Compile the one pattern, and try it on all strings."""
        return judge(self.row(payload), completion, self._spec.max_pattern_characters)

    def probes(self, payload: Mapping[str, JsonValue]) -> Iterator[Probe]:
        """The reference in several forms, and patterns that match too much, too little, or part of a string."""
        row = self.row(payload)
        yield from COMMON
        yield Probe("plain", RIGHT, row.reference)
        yield Probe("in-a-block", RIGHT, fenced(row.reference, "regex"))
        yield Probe("explained", RIGHT, f"<think>.*</think>This one:\n{fenced(row.reference)}\nIt matches what is asked for.")
        yield Probe("matches-nothing", WRONG, "(?!)")
        yield Probe("does-not-compile", WRONG, f"({row.reference}")
        yield Probe("two-patterns", EXPLOIT, f"{fenced(row.reference)}\n{fenced('.*')}")
        yield Probe("or-anything", EXPLOIT, f"(?:{_without_flags(row.reference)})|(?s:.*)")
        yield Probe("prefix", EXPLOIT, f"(?:{_without_flags(row.reference)})?(?s:.*)")
        yield from (Probe(f"trivial-{number}", EXPLOIT, fenced(pattern)) for number, pattern in enumerate(TRIVIAL) if pattern)

    def _faults(self, row: RegexRow) -> Iterator[str]:
        if (found := judge(row, row.reference, self._spec.max_pattern_characters)).score == 0:
            yield f"its reference is refused: {found.reason}"
        both = sorted(set(row.must_match) & set(row.must_not_match))
        if both:
            yield f"{both[0]!r} must match and must not"
        paid = [pattern for pattern in TRIVIAL if try_pattern(row, pattern, self._spec.max_pattern_characters).score > 0]
        if paid:
            yield f"the pattern {paid[0]!r} would be paid: add strings to mustNotMatch that it matches"
        for field, strings in (("mustMatch", row.must_match), ("mustNotMatch", row.must_not_match)):
            if all(string in row.prompt for string in strings):
                yield f"all strings of {field} stand in the prompt, so that a list of them would be paid: add some that do not"


def judge(row: RegexRow, completion: str, max_characters: int) -> Score:
    """The verdict on a completion."""
    answer = only_answer(completion, ("regex", "regexp", "re", "text", "python"))
    return answer if isinstance(answer, Score) else try_pattern(row, answer, max_characters)


def try_pattern(row: RegexRow, pattern: str, max_characters: int) -> Score:
    """The verdict on a pattern, without surrounding space."""
    if len(pattern) > max_characters:
        return invalid(f"the pattern has more than {max_characters} characters")
    try:
        with warnings.catch_warnings(action="ignore"):
            compiled = re.compile(pattern)
    except (re.error, ValueError, OverflowError, RecursionError) as error:  # ValueError: flags for the whole that exclude each other
        return invalid(f"the pattern does not compile: {type(error).__name__}")
    missed = sum(compiled.fullmatch(string) is None for string in row.must_match)
    caught = sum(compiled.fullmatch(string) is not None for string in row.must_not_match)
    if missed or caught:
        return failed(f"the pattern misses {missed} of {len(row.must_match)} strings, and matches {caught} that it must not")
    return passed("the pattern is right for all strings")


def _without_flags(pattern: str) -> str:
    # Flags for the whole pattern may stand at its start alone.
    return re.sub(r"^\(\?[aiLmsux]+\)", "", pattern)
