"""Which attempt of a learner may write.

    claim_attempt(store, n) -> AttemptClaim;  claim.check() before every commit

A supervisor starts attempt n+1 when it believes attempt n to be dead, and may be wrong. What is guaranteed:

- Each number is claimed once: two processes with the same number, and a process with a lower number than a claimed one, are refused.
- After attempt n+1 has claimed, every `check()` of attempt n raises `SupersededError`. Since n checks before each commit, all that can
  still arrive of n is what it was sending just then: one record and one manifest at most.
- Such a late commit does no harm: `If-None-Match` lets one writer win each key, a record binds its predecessor by digest, and blobs
  carry the attempt in their key. If n+1 loses a record to it, n+1 gets `SupersededError` with the winner's record and plans anew.
- A process that is frozen between check and commit for longer than n+1 needs to commit a checkpoint of its own can leave a manifest of
  an older step whose blobs are pruned. It is never the newest; reading it names the missing blob.

S3 has no transactions over several keys, so more cannot be had without a lock service.
"""

import os
import uuid
from datetime import UTC, datetime

from pydantic import AwareDatetime, ValidationError

from rlvr_trainer.storage.client import ObjectStore
from rlvr_trainer.storage.documents import Count, StoredDocument
from rlvr_trainer.storage.errors import AlreadyExistsError, SupersededError
from rlvr_trainer.storage.layout import ATTEMPTS, attempt_key, attempt_of


class ClaimDocument(StoredDocument):
    """Content of `attempts/<attempt>.json`."""

    attempt: Count
    """The attempt."""
    nonce: str
    """Tells two processes with the same number apart."""
    host: str
    """Where it runs, for people."""
    process: Count
    """Its process id there."""
    time: AwareDatetime
    """When it claimed."""


class AttemptClaim:
    """The right of one process to commit, until a newer attempt claims it."""

    def __init__(self, store: ObjectStore, attempt: int) -> None:
        self._store, self.attempt = store, attempt

    def check(self) -> None:
        """One LIST request.

        Raises:
            SupersededError: a newer attempt has claimed.
        """
        newest = max(_claimed(self._store, after=attempt_key(self.attempt)), default=self.attempt)
        if newest > self.attempt:
            raise SupersededError(
                f"attempt {self.attempt} may not write to {self._store.uri()} any more: attempt {newest} has taken over; stop this process"
            )


def claim_attempt(store: ObjectStore, attempt: int) -> AttemptClaim:
    """Take over the job in `store` as attempt number `attempt`, once and for all.

    Raises:
        SupersededError: this attempt or a newer one is claimed already.
    """
    claim = AttemptClaim(store, attempt)
    claim.check()
    document = ClaimDocument(attempt=attempt, nonce=uuid.uuid4().hex, host=os.uname().nodename, process=os.getpid(), time=datetime.now(UTC))
    try:
        store.put_if_absent(attempt_key(attempt), document.to_bytes())
    except AlreadyExistsError as error:
        raise SupersededError(
            f"attempt {attempt} of {store.uri()} is claimed already{_by(error.content)}; start with attempt {attempt + 1} or higher"
        ) from error
    claim.check()
    return claim


def newest_attempt(store: ObjectStore) -> int:
    """Highest attempt that was ever claimed; 0 when none was."""
    return max(_claimed(store), default=0)


def _by(content: bytes) -> str:
    try:
        other = ClaimDocument.model_validate_json(content)
    except ValidationError:
        return ""
    return f" by process {other.process} on {other.host} at {other.time.isoformat(timespec='seconds')}"


def _claimed(store: ObjectStore, after: str = "") -> list[int]:
    return [attempt for key in store.list(ATTEMPTS, after) if (attempt := attempt_of(key)) is not None]
