"""Rollbacks: which steps of a stage count, after `integrity.onViolation: Rollback` took some back.

    branch 0: 1 .. 40 .. 65  --ROLLBACK.json of branch 1 (to step 40)-->  branch 1: 41 .. 50  --...

A rollback is one committed document. The records, rollouts and checkpoints that follow it lie in a folder of their own, a branch, so
nothing that was committed is overwritten or deleted: what came after the step that was gone back to stays, and does not count. Whoever
reads a stage asks `segments` first.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

from pydantic import AwareDatetime, Field, JsonValue, ValidationError

from rlvr_trainer.rollout import Admission
from rlvr_trainer.storage.documents import Count, Discard, Sha256, StoredDocument, first_fault
from rlvr_trainer.storage.errors import CorruptObjectError
from rlvr_trainer.storage.layout import StageKeys

ROLLED_BACK = "rolledBack"
"""Why an index that was consumed by a step, or pending, is discarded by a rollback."""


class Reader(Protocol):
    """What reading needs of an object store."""

    def get(self, key: str) -> bytes:
        """All bytes of an object."""
        ...

    def list(self, prefix: str = "") -> Sequence[str]:
        """Keys that begin with `prefix`."""
        ...


class RollbackRecord(StoredDocument):
    """`ROLLBACK.json`, the first document of a branch: takes the place of all records after `to_step`."""

    stage: str
    """Name of the stage."""
    branch: Annotated[int, Field(ge=1)]
    """The branch that begins with it."""
    attempt: Count
    """Attempt that committed it."""
    from_step: Count
    """Last step that was taken back."""
    to_step: Count
    """Last step that goes on counting; the next record is of the one after it. 0: the stage begins anew."""
    to_branch: Count
    """Branch that has the record of `to_step`, and its checkpoint."""
    kept: Sha256
    """SHA-256 of the record, or rollback, that it goes on from."""
    previous: Sha256
    """SHA-256 of the last record that it takes back."""
    discarded: tuple[Discard, ...]
    """What became of every index that was pending at `to_step` or admitted after it: it is not trained on, and not given out again."""
    cursor: Count
    """Next index to admit."""
    accepted: Count
    """Groups that admission counts: those that steps up to `to_step` consumed."""
    curriculum: JsonValue = None
    """State of the curriculum after `to_step`."""
    next_weight_version: Count
    """Higher than any version that can have been published."""
    reason: str
    """What was wrong with the reward, for programs."""
    message: str
    """The same for people."""
    time: AwareDatetime
    """When."""

    @property
    def pending(self) -> tuple[Admission, ...]:
        """Nothing is pending after it."""
        return ()


@dataclass(frozen=True, slots=True)
class CommittedRollback:
    """A rollback as it is in the store."""

    record: RollbackRecord
    sha256: str


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps of one branch that count."""

    keys: StageKeys
    last_step: int | None
    """None: all that follow."""

    def holds(self, step: int) -> bool:
        """Whether a step of this branch counts."""
        return self.last_step is None or step <= self.last_step


def read_rollbacks(store: Reader, stage: StageKeys) -> tuple[CommittedRollback, ...]:
    """All rollbacks of a stage, in the order of their branches.

    Raises:
        CorruptObjectError: one is no rollback of this stage.
    """
    found: list[CommittedRollback] = []
    while (keys := replace(stage, branch=len(found) + 1)).rollback in store.list(keys.rollback):
        found.append(parse_rollback(store.get(keys.rollback), keys.rollback, keys))
    return tuple(found)


def newest_branch(store: Reader, stage: StageKeys) -> StageKeys:
    """Where a stage goes on."""
    return replace(stage, branch=len(read_rollbacks(store, stage)))


def segments(store: Reader, stage: StageKeys, branch: int | None = None) -> tuple[Segment, ...]:
    """What counts of a stage, oldest first; steps grow from one segment to the next.

    Args:
        branch: as it was at the end of this branch; None: as it is now.
    """
    rollbacks = read_rollbacks(store, stage)
    number = len(rollbacks) if branch is None else branch
    found = [Segment(replace(stage, branch=number), None)]
    while number:
        record = rollbacks[number - 1].record
        number = record.to_branch
        found.append(Segment(replace(stage, branch=number), record.to_step))
    return tuple(reversed(found))


def segment_of(found: Sequence[Segment], step: int) -> StageKeys:
    """The branch that has a step that counts."""
    return next(segment.keys for segment in found if segment.holds(step))


def parse_rollback(content: bytes, place: str, keys: StageKeys) -> CommittedRollback:
    """A rollback from its bytes.

    Raises:
        CorruptObjectError: it is none of this branch.
    """
    try:
        record = RollbackRecord.model_validate_json(content)
    except ValidationError as error:
        fault = first_fault(error)
        raise CorruptObjectError(f"{place} is not a rollback: {fault}; restore it, or use the version that wrote it") from error
    if (record.stage, record.branch) != (keys.name, keys.branch) or record.to_branch >= record.branch:
        raise CorruptObjectError(
            f"{place} is the rollback to branch {record.to_branch} that begins branch {record.branch} of stage '{record.stage}'; it was "
            "moved or changed"
        )
    return CommittedRollback(record, hashlib.sha256(content).hexdigest())
