"""The accounting of groups: every admitted index is exactly one of consumed, discarded, or outstanding.

Admission is bounded by staleness (arXiv 2505.24298, eq. 3): with η the largest staleness, B groups a step and v optimizer steps done,

    capacity = (η + v + 1)·B − (consumed + outstanding)

so a group that is admitted now is consumed at most η steps late when groups finish in order. A discarded group leaves the sum, else
admission would starve. Groups that waited longer than `dropBeyond` all the same are discarded when a batch is taken.

The ledger is plain state without clocks, threads or I/O; the collector guards it with a lock.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pydantic import JsonValue

from rlvr_api.off_policy import OffPolicy
from rlvr_api.stages import Rlvr
from rlvr_trainer.collector.curriculum import Curriculum, Outcome
from rlvr_trainer.collector.schedule import Schedule
from rlvr_trainer.rollout import Admission, RolloutGroup

ZERO_VARIANCE = "zero_variance"
STALE = "stale"
UNJUDGED = "infra_error"
TOO_LONG = "prompt_too_long"


@dataclass(frozen=True, slots=True)
class Batch:
    """What one optimizer step trains on, and what the step's record says."""

    groups: tuple[RolloutGroup, ...]
    discarded: tuple[tuple[int, str], ...]
    """Indices given up since the last batch, with the reason."""
    pending: tuple[Admission, ...]
    """Outstanding admissions once the batch is out, by index."""
    cursor: int
    """Next index to admit."""
    curriculum: dict[str, JsonValue]
    """State of the curriculum once the batch is out."""


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """The state of the ledger at one moment, for a checkpoint."""

    finished: tuple[RolloutGroup, ...]
    """Groups that wait to be consumed."""
    discarded: tuple[tuple[int, str], ...]
    """Indices given up since the last batch, with the reason."""
    pending: tuple[Admission, ...]
    """Outstanding admissions, by index."""
    cursor: int
    """Next index to admit."""
    curriculum: dict[str, JsonValue]
    """State of the curriculum."""


@dataclass
class GroupLedger:
    """Admission, completion and consumption of the groups of one stage."""

    stage: Rlvr
    off_policy: OffPolicy
    schedule: Schedule
    curriculum: Curriculum
    step: int = 0
    """Optimizer steps done."""
    consumed: int = 0
    """Groups taken in batches."""
    cursor: int = 0
    """Next index to admit."""
    outstanding: dict[int, Admission] = field(default_factory=dict)
    """Admitted, and neither consumed nor discarded."""
    discarded: list[tuple[int, str]] = field(default_factory=list)
    """Given up since the last batch, with the reason."""
    _finished: dict[int, RolloutGroup] = field(default_factory=dict)
    _resampled: int = 0

    @property
    def finished(self) -> tuple[RolloutGroup, ...]:
        """Groups that wait to be consumed, in the order they finished."""
        return tuple(self._finished.values())

    def capacity(self) -> int:
        """Groups that may be admitted now; never beyond what the stage's last step can consume."""
        batch = self.stage.prompts_per_step
        horizon = min(self.off_policy.max_staleness + self.step + 1, self.stage.steps)
        return max(0, horizon * batch - (self.consumed + len(self.outstanding)))

    def admit(self) -> Admission:
        """Give out the next index."""
        index = self.cursor
        environment = self.schedule.environment(index, self.curriculum.shares)
        admission = Admission(index, environment, self.curriculum.levels[environment], self.schedule.task_seed(index))
        self.outstanding[index] = admission
        self.cursor += 1
        return admission

    def finish(self, group: RolloutGroup, *, zero_variance: bool) -> None:
        """Take a finished group; one without variance is discarded when the stage resamples and the bound allows."""
        index = group.admission.index
        if not self.stage.ordered:
            self.curriculum.observe(Outcome.of(group))
        if zero_variance and self._may_resample():
            self._resampled += 1
            self.discard(index, ZERO_VARIANCE)
            return
        self._finished[index] = group

    def restore(self, groups: Iterable[RolloutGroup]) -> None:
        """Put back finished groups of a checkpoint whose indices are still outstanding."""
        self._finished.update((group.admission.index, group) for group in groups if group.admission.index in self.outstanding)

    def discard(self, index: int, reason: str) -> None:
        """Give an index up for good."""
        del self.outstanding[index]
        self._finished.pop(index, None)
        self.discarded.append((index, reason))

    def take(self, staleness: Callable[[RolloutGroup], int]) -> Batch | None:
        """The next batch, or None while there is none.

        Args:
            staleness: optimizer steps between the oldest token of a group and now.
        """
        for group in self.finished:
            if not self.stage.ordered and staleness(group) > self.off_policy.drop_beyond:
                self.discard(group.admission.index, STALE)
        chosen = self._choose()
        if chosen is None:
            return None
        groups = tuple(self._finished.pop(index) for index in chosen)
        for index in chosen:
            del self.outstanding[index]
        self.consumed += len(groups)
        if self.stage.ordered:  # in the order of the index, not in that in which they happened to finish
            for group in groups:
                self.curriculum.observe(Outcome.of(group))
        discarded, self.discarded, self._resampled = tuple(self.discarded), [], 0
        return Batch(groups, discarded, self._pending(), self.cursor, self.curriculum.state())

    def snapshot(self) -> LedgerSnapshot:
        """The state now."""
        return LedgerSnapshot(self.finished, tuple(self.discarded), self._pending(), self.cursor, self.curriculum.state())

    def _pending(self) -> tuple[Admission, ...]:
        return tuple(self.outstanding[index] for index in sorted(self.outstanding))

    def _choose(self) -> list[int] | None:
        size = self.stage.prompts_per_step
        if self.stage.ordered:
            expected = sorted(self.outstanding)[:size]
            return expected if len(expected) == size and all(index in self._finished for index in expected) else None
        return list(self._finished)[:size] if len(self._finished) >= size else None

    def _may_resample(self) -> bool:
        if self.stage.zero_variance != "resample":
            return False
        return self._resampled < (self.stage.max_resample_rounds - 1) * self.stage.prompts_per_step
