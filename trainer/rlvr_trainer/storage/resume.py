"""Where a new attempt goes on: a pure function of the newest checkpoint and the step records.

    state after checkpoint m  ->  retrain records m+1 .. k from Parquet  ->  collect for step k+1

The newest word on admissions counts: record k when there are records after the checkpoint, else the checkpoint, which saw admissions and
discards that no record has yet. Finished groups of the checkpoint are of use while their index is still pending.
Admissions that neither has seen are forgotten; their indices are given out again, for the same tasks.
After a rollback the checkpoint that it went back to is loaded, and the rollback is the newest word: nothing is pending.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from rlvr_trainer.rollout import Admission
from rlvr_trainer.storage.documents import Discard
from rlvr_trainer.storage.manifest import CheckpointManifest
from rlvr_trainer.storage.records import ChainHead, Committed, CommittedRecord, StepRecord, chain_heads
from rlvr_trainer.storage.rollback import ROLLED_BACK


@dataclass(frozen=True, slots=True)
class ResumePlan:
    """What a new attempt of a stage does before it collects."""

    loaded_step: int
    """Steps that are in the checkpoint's weights; 0 starts from the stage's initial weights."""
    replay: tuple[StepRecord, ...]
    """Records to train on, in order, from their Parquet objects."""
    start_step: int
    """First step that has no record: its groups are still to be collected."""
    pending: tuple[Admission, ...]
    """Admitted groups to finish, by index."""
    discarded: tuple[Discard, ...]
    """Given up, and in no record yet: the record of `start_step` must name them."""
    cursor: int
    """Next index to admit."""
    accepted: int
    """Groups that admission counts: consumed and pending ones."""
    curriculum: JsonValue
    """State of the curriculum; None at the start of the stage."""
    next_weight_version: int
    """Higher than any version that can have been published by then, 0 at the start of a job; engines may know higher ones, so take the
    maximum with theirs plus 1."""
    head: ChainHead
    """What the next record continues."""

    @property
    def reusable(self) -> frozenset[int]:
        """Indices whose finished groups in the checkpoint may still be used."""
        return frozenset(admission.index for admission in self.pending)


def plan_resume(manifest: CheckpointManifest | None, history: Sequence[Committed]) -> ResumePlan:
    """How to go on with a stage.

    Args:
        manifest: the newest checkpoint of this stage that counts; None when it has none, whatever earlier stages have.
        history: all records and rollbacks of this stage that count, in order.

    Raises:
        ValueError: records are missing, forked or lose an index, or the checkpoint belongs to other records. The store was damaged.
    """
    heads = chain_heads(history)
    later = history[0 if manifest is None else _seen_by(manifest, heads) :]
    newest = later[-1].record if later else manifest.state if manifest is not None else None
    return ResumePlan(
        loaded_step=manifest.step if manifest is not None else 0,
        replay=tuple(committed.record for committed in later if isinstance(committed, CommittedRecord)),
        start_step=heads[-1].step + 1,
        pending=tuple(sorted(newest.pending, key=lambda admission: admission.index)) if newest else (),
        discarded=manifest.state.discarded if manifest is not None and not later else (),
        cursor=newest.cursor if newest else 0,
        accepted=newest.accepted if newest else 0,
        curriculum=newest.curriculum if newest else None,
        next_weight_version=_next_version(manifest, history),
        head=heads[-1],
    )


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """What a rollback says of the indices of a stage, and where they go on."""

    kept: ChainHead
    """What counts of the chain."""
    discarded: tuple[Discard, ...]
    cursor: int
    accepted: int
    curriculum: JsonValue
    next_weight_version: int


def plan_rollback(history: Sequence[Committed], branch: int, step: int) -> RollbackPlan:
    """How to go back to a step: every index that was pending then or admitted since is given up.

    Args:
        history: all records and rollbacks of the stage that count, in order.
        branch, step: the place in it; 0 and 0 are the start of the stage.

    Raises:
        ValueError: there is no such place, or the records are damaged.
    """
    heads = chain_heads(history)
    at = next((number for number, head in enumerate(heads) if (head.branch, head.step) == (branch, step)), None)
    if at is None:
        raise ValueError(f"no step {step} of branch {branch} is recorded, so nothing can go back to it")
    kept, end, last = heads[at], heads[-1], history[at - 1].record if at else None
    reasons = {discard.index: discard.reason for committed in history[at:] for discard in committed.record.discarded}
    indices = sorted(kept.pending | set(range(kept.cursor, end.cursor)))
    return RollbackPlan(
        kept=kept,
        discarded=tuple(Discard(index=index, reason=reasons.get(index, ROLLED_BACK)) for index in indices),
        cursor=end.cursor,
        accepted=last.accepted - len(last.pending) if last is not None else 0,
        curriculum=last.curriculum if last is not None else None,
        next_weight_version=_next_version(None, history),
    )


def _next_version(manifest: CheckpointManifest | None, history: Sequence[Committed]) -> int:
    # A record names the version its step trained from; the step's own result may have been published as the next one.
    published = [
        committed.record.weight_version + 1 if isinstance(committed, CommittedRecord) else committed.record.next_weight_version - 1
        for committed in history
    ]
    if manifest is not None:
        published.append(manifest.state.weight_version)
    return max(published, default=-1) + 1


def _seen_by(manifest: CheckpointManifest, heads: Sequence[ChainHead]) -> int:
    """How many links of the chain a checkpoint was made after."""
    step, state = manifest.step, manifest.state
    for number, at in enumerate(heads):
        if (at.branch, at.step) != (manifest.branch, step):
            continue
        if state.record_sha256 != at.sha256:
            raise ValueError(f"the checkpoint of step {step} was trained on other records than those that are stored")
        known = {admission.index for admission in state.pending} | {discard.index for discard in state.discarded}
        if known != at.pending | set(range(at.cursor, state.cursor)):
            raise ValueError(f"the checkpoint of step {step} loses or invents admissions beside the record of that step")
        return number
    raise ValueError(f"the checkpoint of step {step} has no record: the newest record is of step {heads[-1].step}")
