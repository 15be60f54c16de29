"""Constraints on how a text is written, that a program can decide without knowing its language.

    {"kind": "wordCount", "minimum": 50} -> WordCount -> holds(text)

What must be there counts only as it is spelled; what must not be there counts in any disguise: compatibility forms, case, and invisible
characters are folded first. Words are what spaces separate and has a letter or digit. In the way of IFEval (arXiv 2311.07911), with
parameters in place of the sentences there; strict alone: no line, quote or asterisk is taken away to see whether the rest would do.

Not covered: sentences, syllables and whatever else depends on a language; whether the text is any good.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlvr_api.model import ApiModel
from rlvr_verifier.environments.strict_json import NotStrictJsonError, parse_json

Phrase = Annotated[str, Field(min_length=1, max_length=1_000, pattern=r"\S")]
Count = Annotated[int, Field(ge=0, le=100_000)]
_BULLET = re.compile(r"^[ \t]*[-*•][ \t]+\S", re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]*\d{1,4}[.)][ \t]+\S", re.MULTILINE | re.ASCII)
_HEADING = re.compile(r"^#{1,6}[ \t]+\S", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Of what Unicode has displayed as nothing (Default_Ignorable_Code_Point), what is a mark or a letter and no format character."""


def words(text: str) -> list[str]:
    """What spaces separate, as far as it has a letter or digit."""
    return [word for word in text.split() if any(character.isalnum() for character in word)]


def fold(text: str) -> str:
    """A text without disguise: compatibility forms, case, and characters that nobody sees."""
    visible = _UNSEEN.sub("", "".join(character for character in text if unicodedata.category(character) != "Cf"))
    # What is composed may have a case, and what has lost it may be composed again.
    for _ in range(2):
        visible = unicodedata.normalize("NFKC", visible).casefold()
    return visible


def occurrences(text: str, phrase: str) -> int:
    """How often a phrase stands in a text as whole words."""
    return len(re.findall(rf"(?<!\w){re.escape(phrase)}(?!\w)", text))


class _Bounds(ApiModel):
    minimum: Count = 0
    maximum: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.maximum is None and self.minimum == 0:
            raise ValueError("neither minimum nor maximum is given")
        if self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(f"maximum {self.maximum} is below minimum {self.minimum}")
        return self

    def _within(self, count: int) -> bool:
        return count >= self.minimum and (self.maximum is None or count <= self.maximum)


class WordCount(_Bounds):
    """So many words."""

    kind: Literal["wordCount"]

    def holds(self, text: str) -> bool:
        """Whether a text keeps to it."""
        return self._within(len(words(text)))


class CharacterCount(_Bounds):
    """So many characters, the space around left out."""

    kind: Literal["characterCount"]

    def holds(self, text: str) -> bool:
        """Whether a text keeps to it."""
        return self._within(len(text))


class ParagraphCount(_Bounds):
    """So many paragraphs with words in them, between empty lines."""

    kind: Literal["paragraphCount"]

    def holds(self, text: str) -> bool:
        """Whether a text keeps to it."""
        return self._within(sum(bool(words(part)) for part in _BLANK_LINES.split(text)))


class LineCount(_Bounds):
    """So many lines with words in them."""

    kind: Literal["lineCount"]

    def holds(self, text: str) -> bool:
        """Whether a text keeps to it."""
        return self._within(sum(bool(words(line)) for line in text.split("\n")))


class BulletCount(_Bounds):
    """So many lines that begin with `-`, `*` or `•`."""

    kind: Literal["bulletCount"]

    def holds(self, text: str) -> bool:
        """Whether a text keeps to it."""
        return self._within(len(_BULLET.findall(text)))


class NumberedCount(_Bounds):
    """So many lines that begin with a number and `.` or `)`."""

    kind: Literal["numberedCount"]

    def holds(self, text: str) -> bool:
        """Whether a text keeps to it."""
        return self._within(len(_NUMBERED.findall(text)))


class HeadingCount(_Bounds):
    """So many headings of Markdown."""

    kind: Literal["headingCount"]

    def holds(self, text: str) -> bool:
        """Whether a text keeps to it."""
        return self._within(len(_HEADING.findall(text)))


class Includes(ApiModel):
    """A phrase is there as whole words, spelled exactly so."""

    kind: Literal["includes"]
    phrase: Phrase
    minimum: Annotated[int, Field(ge=1, le=1_000)] = 1
    maximum: Annotated[int, Field(ge=1, le=1_000)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(f"maximum {self.maximum} is below minimum {self.minimum}")
        return self

    def holds(self, text: str) -> bool:
        """Whether a text keeps to it."""
        enough = occurrences(text, self.phrase) >= self.minimum
        return enough and (self.maximum is None or fold(text).count(fold(self.phrase)) <= self.maximum)


class Excludes(ApiModel):
    """None of these is there, in whatever case or disguise, also as a part of a word."""

    kind: Literal["excludes"]
    phrases: Annotated[list[Phrase], Field(min_length=1, max_length=100)]

    def holds(self, text: str) -> bool:
        """Whether a text keeps to it."""
        folded = fold(text)
        return not any(fold(phrase) in folded for phrase in self.phrases)


class StartsWith(ApiModel):
    """The text begins with a phrase."""

    kind: Literal["startsWith"]
    phrase: Phrase

    def holds(self, text: str) -> bool:
        """Whether a text keeps to it."""
        return text.startswith(self.phrase.strip())


class EndsWith(ApiModel):
    """The text ends with a phrase, and nothing follows."""

    kind: Literal["endsWith"]
    phrase: Phrase

    def holds(self, text: str) -> bool:
        """Whether a text keeps to it."""
        return text.endswith(self.phrase.strip())


class Lowercase(ApiModel):
    """There are letters, and none is a capital."""

    kind: Literal["lowercase"]

    def holds(self, text: str) -> bool:
        """Whether a text keeps to it."""
        return text.islower()


class Uppercase(ApiModel):
    """There are letters, and all that have a case are capitals."""

    kind: Literal["uppercase"]

    def holds(self, text: str) -> bool:
        """Whether a text keeps to it."""
        return text.isupper()


class JsonOnly(ApiModel):
    """The text is one JSON object or list, strictly."""

    kind: Literal["json"]

    def holds(self, text: str) -> bool:
        """Whether a text keeps to it."""
        try:
            return isinstance(parse_json(text), dict | list)
        except NotStrictJsonError:
            return False


Constraint = Annotated[
    WordCount | CharacterCount | ParagraphCount | LineCount | BulletCount | NumberedCount | HeadingCount
    | Includes | Excludes | StartsWith | EndsWith | Lowercase | Uppercase | JsonOnly,
    Field(discriminator="kind"),
]  # fmt: skip


def required_phrases(constraints: Sequence[Constraint]) -> list[str]:
    """What a text must have, word by word."""
    return [one.phrase for one in constraints if isinstance(one, Includes | StartsWith | EndsWith)]
