"""What a target of the fuzzer is, and what holds for every score whatever was scored."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from rlvr_api.wire import VerdictStatus
from rlvr_verifier.environments.base import Score


@dataclass(frozen=True, slots=True)
class Target:
    """One function that reads untrusted bytes, and what must hold of it."""

    check: Callable[[bytes], None]
    """Raises where an invariant does not hold, or where more is raised than is said."""
    seeds: tuple[str, ...]
    """Inputs to begin with; a lone surrogate from U+DC80 on is the byte that it stands for."""
    words: tuple[str, ...] = ()
    """What mutations put in as a whole."""
    max_bytes: int = 256
    """Of an input."""
    others: tuple[ModuleType, ...] = ()
    """Modules of Python itself that guide, too."""

    @property
    def first_inputs(self) -> tuple[bytes, ...]:
        """The seeds as bytes."""
        return tuple(seed.encode(errors="surrogateescape") for seed in self.seeds)


def text_of(data: bytes) -> str:
    """As completions arrive: what is no UTF-8 is U+FFFD."""
    return data.decode(errors="replace")


def check_score(score: Score, gold: int | None = None) -> None:
    """A score makes a verdict, and does not tell the gold answer of what it does not pay."""
    assert score.status in (VerdictStatus.PASS, VerdictStatus.FAIL, VerdictStatus.INVALID), score
    assert 0.0 <= score.score <= 1.0, score
    assert (score.score > 0) is (score.status is VerdictStatus.PASS), score
    assert 0 < len(score.reason) <= 500, score
    assert gold is None or score.score > 0 or not re.search(rf"{gold}(?![0-9])", score.reason), score
