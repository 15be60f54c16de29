"""Where a new attempt goes on: a pure function of the newest checkpoint and the step records.

    state after checkpoint m  ->  retrain records m+1 .. k from Parquet  ->  collect for step k+1

The newest word on admissions counts: record k when there are records after the checkpoint, else the checkpoint, which saw admissions and
discards that no record has yet. Finished groups of the checkpoint are of use while their index is still pending.
Admissions that neither has seen are forgotten; their indices are given out again, for the same tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from rlvr_trainer.rollout import Admission
from rlvr_trainer.storage.documents import Discard
from rlvr_trainer.storage.manifest import CheckpointManifest
from rlvr_trainer.storage.records import ChainHead, CommittedRecord, StepRecord, check_chain


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


def plan_resume(manifest: CheckpointManifest | None, records: Sequence[CommittedRecord]) -> ResumePlan:
    """How to go on with a stage.

    Args:
        manifest: the newest checkpoint of this stage; None when it has none, whatever earlier stages have.
        records: all records of this stage, in order.

    Raises:
        ValueError: records are missing, forked or lose an index, or the checkpoint belongs to other records. The store was damaged.
    """
    head = check_chain(records)
    loaded = manifest.step if manifest is not None else 0
    if manifest is not None:
        _check_manifest(manifest, records)
    replay = tuple(committed.record for committed in records[loaded:])
    newest = replay[-1] if replay else manifest.state if manifest is not None else None
    return ResumePlan(
        loaded_step=loaded,
        replay=replay,
        start_step=head.step + 1,
        pending=tuple(sorted(newest.pending, key=lambda admission: admission.index)) if newest else (),
        discarded=manifest.state.discarded if manifest is not None and not replay else (),
        cursor=newest.cursor if newest else 0,
        accepted=newest.accepted if newest else 0,
        curriculum=newest.curriculum if newest else None,
        next_weight_version=_next_version(manifest, records),
        head=head,
    )


def _next_version(manifest: CheckpointManifest | None, records: Sequence[CommittedRecord]) -> int:
    # A record names the version its step trained from; the step's own result may have been published as the next one.
    published = [committed.record.weight_version + 1 for committed in records]
    if manifest is not None:
        published.append(manifest.state.weight_version)
    return max(published, default=-1) + 1


def _check_manifest(manifest: CheckpointManifest, records: Sequence[CommittedRecord]) -> None:
    step, state = manifest.step, manifest.state
    if step > len(records):
        raise ValueError(f"the checkpoint of step {step} has no record: the newest record is of step {len(records)}")
    bound = records[step - 1].sha256 if step else ChainHead().sha256
    if state.record_sha256 != bound:
        raise ValueError(f"the checkpoint of step {step} was trained on other records than those that are stored")
    at = ChainHead.after(records[step - 1]) if step else ChainHead()
    known = {admission.index for admission in state.pending} | {discard.index for discard in state.discarded}
    if known != at.pending | set(range(at.cursor, state.cursor)):
        raise ValueError(f"the checkpoint of step {step} loses or invents admissions beside the record of that step")
