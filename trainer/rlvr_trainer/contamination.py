"""Finds training data that hold what a model is later measured on.

    held-out prompts -> ContaminationIndex -> find(prompt, text of an example) -> Match | None

Two tests, on words and punctuation marks after Unicode and case folding:

- n-gram: the example says n words of a held-out prompt in a row (n = 13 as in arXiv 2005.14165, appendix C), or the whole prompt where it
  is shorter. n-grams that several prompts share are their template, and no evidence.
- near duplicate: the example's prompt has at least `similarity` of the shingles (three words in a row) that are a held-out prompt's own.
  Shingles of more than a tenth of the prompts are template. This is containment (Broder, 1997): a problem that is dressed up in another
  instruction is still found.

Pure. Not covered: paraphrases, translations, other numbers in the same words, 4 + 3 for 3 + 4, and scripts without spaces between words.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

SHINGLE_WORDS = 3
LEAST_WORDS = 3
"""A held-out prompt of fewer words is found everywhere, so it counts only where it is a whole prompt."""
LEAST_SHINGLES = 3
"""A prompt with fewer shingles of its own is too much like the others for a share of them to say anything."""
TEMPLATE_SHARE = 0.1

Gram = tuple[str, ...]


class MatchKind(StrEnum):
    """What gave an example away."""

    NGRAM = "ngram"
    NEAR_DUPLICATE = "nearDuplicate"


@dataclass(frozen=True, slots=True)
class Reference:
    """A prompt that must not be learned from."""

    name: str
    """For people, for example `sums, level 0, task 3`."""
    text: str


@dataclass(frozen=True, slots=True)
class Match:
    """An example that holds a reference."""

    kind: MatchKind
    reference: Reference


def words(text: str) -> tuple[str, ...]:
    """Words and punctuation marks, folded."""
    return tuple(re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", text).casefold()))


class ContaminationIndex:
    """The references, ready to be looked for.

    Args:
        references: prompts; of equal ones, the first is named.
        ngram_words: n of the first test.
        similarity: share of the second, in (0, 1].
    """

    def __init__(self, references: Sequence[Reference], ngram_words: int, similarity: float) -> None:
        self._similarity = similarity
        self._whole: dict[Gram, Reference] = {}
        for reference in references:
            self._whole.setdefault(words(reference.text), reference)
        self._grams = _own_grams(self._whole, ngram_words)
        self._lengths = sorted({len(gram) for gram in self._grams}, reverse=True)
        shingles = {whole: _grams(whole, SHINGLE_WORDS) for whole in self._whole}
        shared = Counter(shingle for found in shingles.values() for shingle in found)
        template = {shingle for shingle, count in shared.items() if count > max(1, TEMPLATE_SHARE * len(shingles))}
        own = {whole: found - template for whole, found in shingles.items()}
        self._own_counts = {whole: len(found) for whole, found in own.items() if len(found) >= LEAST_SHINGLES}
        self._holders: dict[Gram, list[Gram]] = defaultdict(list)
        for whole in self._own_counts:
            for shingle in own[whole]:
                self._holders[shingle].append(whole)

    def __len__(self) -> int:
        return len(self._whole)

    def find(self, prompt: str, text: str) -> Match | None:
        """The first reference that an example holds.

        Args:
            prompt: what comes before the words that are learned.
            text: all of it.
        """
        said, asked = words(text), words(prompt)
        if (same := self._whole.get(asked)) is not None:
            return Match(MatchKind.NGRAM, same)
        for length in self._lengths:
            for start in range(len(said) - length + 1):
                if (found := self._grams.get(said[start : start + length])) is not None:
                    return Match(MatchKind.NGRAM, found)
        counts = Counter(whole for shingle in _grams(asked, SHINGLE_WORDS) for whole in self._holders.get(shingle, ()))
        near = [whole for whole, count in counts.items() if count >= self._similarity * self._own_counts[whole]]
        return Match(MatchKind.NEAR_DUPLICATE, self._whole[min(near)]) if near else None


def _own_grams(references: Mapping[Gram, Reference], ngram_words: int) -> dict[Gram, Reference]:
    """n-grams of exactly one reference, and references that are no longer than one."""
    owners: dict[Gram, list[Gram]] = defaultdict(list)
    for whole in references:
        if len(whole) >= LEAST_WORDS:
            for gram in _grams(whole, min(ngram_words, len(whole))):
                owners[gram].append(whole)
    own = {gram: found[0] for gram, found in owners.items() if len(found) == 1}
    own.update((gram, gram) for gram in owners if gram in references)
    return {gram: references[whole] for gram, whole in own.items()}


def _grams(text: Gram, length: int) -> set[Gram]:
    return {text[start : start + length] for start in range(len(text) - length + 1)}
