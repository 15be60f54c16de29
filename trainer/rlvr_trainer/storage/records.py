"""Step records: the durable order in which a stage consumes its groups. This is where exactly-once is decided.

    write rollouts as Parquet -> RecordLog.commit(record of step k) -> train step k

A record says which groups step k trains on, in order, and where their rollouts are; which groups were discarded since record k-1; and
which are admitted and still pending. It binds record k-1 by digest, so the records of a stage form one chain that can only grow. Every
record partitions exactly the indices that could be in it:

    groups_k + discarded_k + pending_k  =  pending_{k-1} + [cursor_{k-1}, cursor_k)        (disjoint unions)

so by induction every admitted index below `cursor_k` is exactly one of consumed once, discarded with a reason, pending. An admission
that no record has seen yet does not count: its index is given out again after a crash, and the same index is the same task.
Steps are numbered from 1: record k is consumed by optimizer step k, and checkpoint k holds the state after it.
A rollback to step m takes the place of the records after m: it discards what they consumed and what was pending, so the same holds for
the records that count (`rollback.py`).
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from pydantic import AwareDatetime, JsonValue, ValidationError

from rlvr_trainer.integrity.evidence import StepEvidence
from rlvr_trainer.rollout import Admission
from rlvr_trainer.storage.attempts import AttemptClaim
from rlvr_trainer.storage.client import ObjectStore
from rlvr_trainer.storage.documents import Count, Discard, Sha256, StoredBlob, StoredDocument, first_fault
from rlvr_trainer.storage.errors import AlreadyExistsError, CorruptObjectError, RolledBackError, SupersededError
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.rollback import CommittedRollback, RollbackRecord, read_rollbacks, segments

FIRST = "0" * 64
"""What the first record of a stage gives as its predecessor's digest."""


class StepRecord(StoredDocument):
    """What one optimizer step consumes; `RecordLog.commit` fills in `previous`."""

    stage: str
    """Name of the stage."""
    step: Count
    """Number of the step, from 1."""
    attempt: Count
    """Attempt that committed it."""
    groups: tuple[Count, ...]
    """Indices of the groups it trains on, in their order."""
    rollouts: tuple[StoredBlob, ...]
    """Parquet objects with these groups, in the same order."""
    discarded: tuple[Discard, ...] = ()
    """Groups given up since the record before."""
    pending: tuple[Admission, ...] = ()
    """Admitted, and neither consumed nor discarded, by this record or an earlier one."""
    cursor: Count
    """Next index to admit."""
    accepted: Count
    """Groups that admission counts against its capacity: consumed and pending ones."""
    curriculum: JsonValue = None
    """State of the curriculum."""
    governor: JsonValue = None
    """State of the governor that the step is trained with; None without one."""
    weight_version: Count
    """Version that the step trains from."""
    evidence: StepEvidence = StepEvidence()
    """What the batch's audits, and canaries since the record before, say of the verifiers."""
    time: AwareDatetime
    """When the batch was taken."""
    previous: Sha256 = FIRST
    """SHA-256 of the record before, as stored."""


@dataclass(frozen=True, slots=True)
class CommittedRecord:
    """A record as it is in the store."""

    record: StepRecord
    sha256: str


Committed = CommittedRecord | CommittedRollback
"""A link of a chain."""


@dataclass(frozen=True, slots=True)
class ChainHead:
    """Where a chain of records stands: what the next record must fit."""

    step: int = 0
    sha256: str = FIRST
    cursor: int = 0
    pending: frozenset[int] = frozenset()
    branch: int = 0

    def then(self, committed: Committed) -> "ChainHead":
        """The head once `committed` is the last link."""
        record, pending = committed.record, frozenset(admission.index for admission in committed.record.pending)
        if isinstance(record, RollbackRecord):
            return ChainHead(record.to_step, committed.sha256, record.cursor, pending, record.branch)
        return ChainHead(record.step, committed.sha256, record.cursor, pending, self.branch)


def check_partition(head: ChainHead, record: StepRecord) -> None:
    """Whether `record` accounts for every index exactly once, given the record before.

    Raises:
        ValueError: a sentence that names the indices at fault.
    """
    if record.step != head.step + 1:
        raise ValueError(f"the record of step {record.step} cannot follow the record of step {head.step}")
    named = [*record.groups, *(discard.index for discard in record.discarded), *(admission.index for admission in record.pending)]
    expected = head.pending | set(range(head.cursor, record.cursor))
    twice = sorted({index for index in named if named.count(index) > 1}) if len(set(named)) != len(named) else []
    problems = {
        "named more than once": twice,
        "lost": sorted(expected - set(named)),
        "consumed or discarded before, or never admitted": sorted(set(named) - expected),
    }
    for problem, indices in problems.items():
        if indices:
            raise ValueError(f"the record of step {record.step} is wrong: indices {_some(indices)} are {problem}")


def check_rollback(head: ChainHead, record: RollbackRecord) -> None:
    """Whether `record` accounts for every index exactly once, given what it goes on from.

    Raises:
        ValueError: what is wrong.
    """
    if (record.to_branch, record.to_step, record.kept) != (head.branch, head.step, head.sha256):
        raise ValueError(f"the rollback to step {record.to_step} goes on from another record of step {head.step} than the stored one")
    named = [discard.index for discard in record.discarded]
    wrong = sorted((head.pending | set(range(head.cursor, record.cursor))) ^ set(named))
    if wrong or len(set(named)) != len(named):
        indices = _some(wrong or named)
        raise ValueError(f"the rollback to step {record.to_step} is wrong: indices {indices} are lost, invented or named twice")


def check_chain(records: Sequence[Committed], head: ChainHead | None = None) -> ChainHead:
    """Whether records and rollbacks continue `head` (default: the start of a stage) without gap, fork or lost index.

    Returns:
        The head after the last one.

    Raises:
        ValueError: the first fault.
    """
    return chain_heads(records, head)[-1]


def chain_heads(records: Sequence[Committed], head: ChainHead | None = None) -> tuple[ChainHead, ...]:
    """As `check_chain`; the heads before the first, and after each of them."""
    heads = [head or ChainHead()]
    for committed in records:
        record, head = committed.record, heads[-1]
        if isinstance(record, RollbackRecord):
            check_rollback(head, record)
        else:
            check_partition(head, record)
            if record.previous != head.sha256:
                raise ValueError(f"the record of step {record.step} continues another record of step {head.step} than the stored one")
        heads.append(head.then(committed))
    return tuple(heads)


class RecordLog:
    """The records of one stage, for one attempt. Not thread-safe: the learner's loop owns it."""

    def __init__(self, store: ObjectStore, stage: StageKeys, claim: AttemptClaim) -> None:
        self._store, self._stage, self._claim = store, stage, claim
        self.head = ChainHead()
        """After the last record that this log has read or committed."""

    def read_all(self) -> tuple[StepRecord, ...]:
        """All records of the stage that count, verified; the next commit continues them.

        Raises:
            CorruptObjectError: one is missing, was changed, or loses an index.
        """
        committed = read_history(self._store, self._stage)
        try:
            self.head = check_chain(committed)
        except ValueError as error:
            raise CorruptObjectError(f"{self._store.uri(self._stage.records)} is corrupt: {error}; restore what is missing") from error
        return tuple(item.record for item in committed if isinstance(item, CommittedRecord))

    def commit(self, record: StepRecord) -> StepRecord:
        """Write the next record, exactly once over all attempts. The groups' Parquet objects must be in the store.

        Returns:
            The record as stored.

        Raises:
            SupersededError: a newer attempt has claimed, or another process has committed this step; `other` is its record then.
            RolledBackError: an older attempt has rolled the stage back since this one read it.
            ValueError: the record does not continue the chain: a mistake of the caller, and nothing was written.
        """
        record = record.model_copy(update={"previous": self.head.sha256})
        if (record.stage, record.attempt) != (self._stage.name, self._claim.attempt):
            raise ValueError(
                f"a record of stage {record.stage}, attempt {record.attempt} in the log of {self._stage}, {self._claim.attempt}"
            )
        if self.head.branch != self._stage.branch:
            raise ValueError(f"a record in branch {self._stage.branch} of a stage that goes on in branch {self.head.branch}")
        check_partition(self.head, record)
        self._claim.check()
        if self._next_branch.rollback in self._store.list(self._next_branch.rollback):
            raise self._rolled_back()
        key = self._stage.record(record.step)
        try:
            blob = self._store.put_if_absent(key, record.to_bytes())
        except AlreadyExistsError as error:
            other = parse_record(error.content, self._store.uri(key)).record
            raise RecordConflictError(
                f"step {record.step} of {self._store.uri(self._stage.folder)} was committed by attempt {other.attempt}, so attempt "
                f"{record.attempt} may not; read the records and plan anew",
                other,
            ) from error
        self.head = self.head.then(CommittedRecord(record, blob.sha256))
        return record

    def roll_back(self, record: RollbackRecord) -> RollbackRecord:
        """Write a rollback, after which this log takes no record: what follows is in another branch, for the next attempt.

        Returns:
            The rollback as stored.

        Raises:
            SupersededError: a newer attempt has claimed.
            RolledBackError: an older one has rolled back.
            ValueError: it is not of this log's branch or end: a mistake of the caller, and nothing was written.
        """
        keys = self._next_branch
        record = record.model_copy(update={"previous": self.head.sha256})
        if (record.branch, record.from_step, record.attempt) != (keys.branch, self.head.step, self._claim.attempt):
            raise ValueError(f"a rollback from step {record.from_step} to branch {record.branch} in a log that is at {self.head}")
        history = read_history(self._store, self._stage)
        kept = next(head for head in chain_heads(history) if (head.branch, head.step) == (record.to_branch, record.to_step))
        check_rollback(kept, record)
        self._claim.check()
        try:
            blob = self._store.put_if_absent(keys.rollback, record.to_bytes())
        except AlreadyExistsError as error:
            raise self._rolled_back() from error
        self.head = kept.then(CommittedRollback(record, blob.sha256))
        return record

    @property
    def _next_branch(self) -> StageKeys:
        return replace(self._stage, branch=self._stage.branch + 1)

    def _rolled_back(self) -> RolledBackError:
        return RolledBackError(
            f"{self._store.uri(self._stage.folder)} was rolled back by an earlier attempt; the next attempt goes on from "
            f"{self._store.uri(self._next_branch.rollback)}"
        )


class RecordConflictError(SupersededError):
    """Another process has committed this step."""

    def __init__(self, message: str, other: StepRecord) -> None:
        super().__init__(message)
        self.other = other
        """What it committed."""


def read_history(store: ObjectStore, stage: StageKeys) -> tuple[Committed, ...]:
    """The records and rollbacks of a stage that count, in order; `check_chain` verifies them together.

    Raises:
        CorruptObjectError: as `read_records`, or one is no rollback.
    """
    rollbacks = {rollback.record.branch: rollback for rollback in read_rollbacks(store, stage)}
    found: list[Committed] = []
    for segment in segments(store, stage):
        if segment.keys.branch:
            found.append(rollbacks[segment.keys.branch])
        found += [committed for committed in read_records(store, segment.keys) if segment.holds(committed.record.step)]
    return tuple(found)


def read_records(store: ObjectStore, stage: StageKeys) -> tuple[CommittedRecord, ...]:
    """All records of one branch of a stage in the order of their steps, each of the right form; `check_chain` verifies them together.

    Raises:
        CorruptObjectError: one has another form, or another step than its key.
    """
    keys = [key for key in store.list(stage.records) if stage.record_step(key) is not None]
    with ThreadPoolExecutor(8, thread_name_prefix="s3-records") as pool:
        records = tuple(pool.map(lambda key: parse_record(store.get(key), store.uri(key)), keys))
    for key, committed in zip(keys, records, strict=True):
        if committed.record.step != stage.record_step(key):
            raise CorruptObjectError(f"{store.uri(key)} holds the record of step {committed.record.step}; it was moved or changed")
    return records


def parse_record(content: bytes, place: str) -> CommittedRecord:
    """A record from its bytes.

    Raises:
        CorruptObjectError: it is not one.
    """
    try:
        record = StepRecord.model_validate_json(content)
    except ValidationError as error:
        raise CorruptObjectError(
            f"{place} is not a step record: {first_fault(error)}; restore it, or use the version that wrote it"
        ) from error
    return CommittedRecord(record, hashlib.sha256(content).hexdigest())


def _some(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:10]))
    return shown if len(indices) <= 10 else f"{shown} and {len(indices) - 10} more"
