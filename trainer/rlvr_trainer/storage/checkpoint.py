"""Commits checkpoints while training goes on.

    snapshot(): copy tensors to memory (training waits for this only) -> background thread: blobs -> check sizes -> MANIFEST.json

At most one upload is in flight; a snapshot that comes too early waits for it, bounded. Blobs lie below the attempt's own prefix, and the
manifest is written with `If-None-Match: *` after the attempt's claim was checked, so a checkpoint is committed once, whole, or not at
all. What is guaranteed about attempts is in `attempts.py`; reading and pruning are in `checkpoint_reader.py`.
Staging memory is as large as the tensors and is kept between snapshots of equal layout: fresh memory costs more time than the copy.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import Tensor

from rlvr_trainer.rollout import RolloutGroup
from rlvr_trainer.storage.attempts import AttemptClaim
from rlvr_trainer.storage.client import ObjectStore
from rlvr_trainer.storage.errors import (
    AlreadyExistsError,
    CheckpointBusyError,
    ObjectMissingError,
    StoreFailedError,
    SupersededError,
)
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.lineage import Lineage, running_code
from rlvr_trainer.storage.manifest import CheckpointManifest, CheckpointState, parse_manifest
from rlvr_trainer.storage.rollouts import write_groups
from rlvr_trainer.storage.tensor_files import ShardPlan, plan_shards, stage, tensor_bytes
from rlvr_trainer.streamed import any_on_gpu, outline

log = logging.getLogger(__name__)

SHARD_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """What a snapshot cost the training thread."""

    bytes: int
    """Tensor bytes copied."""
    waited_seconds: float
    """Waiting for the previous upload."""
    copied_seconds: float
    """Copying."""


@dataclass(frozen=True, slots=True)
class CheckpointOutcome:
    """How an upload ended; exactly one of `manifest` and `error` is set."""

    step: int
    seconds: float
    """From the end of the snapshot to the commit."""
    manifest: CheckpointManifest | None = None
    error: Exception | None = None


class CheckpointConflictError(SupersededError):
    """Another attempt has committed this step's checkpoint."""

    def __init__(self, message: str, other: CheckpointManifest) -> None:
        super().__init__(message)
        self.other = other
        """What it committed."""


class CheckpointWriter:
    """Checkpoints of one stage by one attempt. The training thread owns it.

    Args:
        store: the job's folder.
        stage: the stage.
        claim: the attempt's right to write.
        shard_bytes: largest safetensors file, unless a tensor is larger by itself.
        lineage: what the weights come from after a step.
    """

    def __init__(
        self, store: ObjectStore, stage: StageKeys, claim: AttemptClaim, shard_bytes: int = SHARD_BYTES,
        lineage: Callable[[int], Lineage | None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._store, self._stage, self._claim, self._shard_bytes, self._lineage = store, stage, claim, shard_bytes, lineage
        self._plans: tuple[ShardPlan, ...] = ()
        self._buffers: tuple[Tensor, ...] = ()
        self._thread: threading.Thread | None = None
        self._outcomes: list[CheckpointOutcome] = []
        self._last_step = self._committed_step = -1

    def snapshot(
        self, tensors: Mapping[str, Tensor], state: CheckpointState, groups: Sequence[RolloutGroup] = (), wait_seconds: float = 600.0
    ) -> SnapshotReport:
        """Copy the state to memory and start its upload. A step that this writer has committed already is left as it is.

        Args:
            tensors: weights, optimizer and generator states, of any shape and device, each storage once; may be changed on return.
            state: everything else.
            groups: finished groups that are not consumed yet; a subset of `state.pending`.
            wait_seconds: longest wait for the previous upload.

        Raises:
            CheckpointBusyError: the previous upload has not ended by then; nothing was copied.
            SupersededError: an earlier upload found that another attempt has taken over.
            ValueError: a group that is not pending, a step before the last one, or a dtype that safetensors cannot hold.
        """
        if state.step < self._last_step:
            raise ValueError(f"a snapshot of step {state.step} after one of step {self._last_step}")
        strange = {group.admission.index for group in groups} - {admission.index for admission in state.pending}
        if strange:
            raise ValueError(f"groups {sorted(strange)} are finished, but not pending in the state of step {state.step}")
        began = time.monotonic()
        self.wait(wait_seconds)
        copying = time.monotonic()
        if state.step == self._committed_step:
            return SnapshotReport(0, copying - began, 0.0)
        self._stage_tensors(tensors)
        copied, self._last_step = time.monotonic(), state.step
        manifest = CheckpointManifest(
            stage=self._stage.name,
            stage_index=self._stage.index,
            branch=self._stage.branch,
            attempt=self._claim.attempt,
            code_version=running_code().version,
            time=datetime.now(UTC),
            lineage=self._lineage(state.step),
            state=state,
            tensors=(),
        )
        self._thread = threading.Thread(target=self._run, args=(manifest, tuple(groups), copied), name="checkpoint-upload", daemon=True)
        self._thread.start()
        return SnapshotReport(sum(plan.data_bytes for plan in self._plans), copying - began, copied - copying)

    @property
    def busy(self) -> bool:
        """An upload is in flight."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout_seconds: float) -> None:
        """Wait until no upload is in flight. Ordinary failures stay in `take_outcomes`.

        Raises:
            CheckpointBusyError: one still is.
            SupersededError: an upload found that another attempt has taken over.
        """
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():
                raise CheckpointBusyError(
                    f"the previous checkpoint of {self._place} is still being uploaded after {timeout_seconds:.0f} s; "
                    "write checkpoints less often (learner.checkpoint.everySteps), or use a faster store"
                )
            self._thread = None
        for outcome in self._outcomes:
            if isinstance(outcome.error, SupersededError):
                raise outcome.error

    def take_outcomes(self) -> tuple[CheckpointOutcome, ...]:
        """Uploads that ended since the last call, oldest first; never blocks."""
        taken = tuple(self._outcomes)
        del self._outcomes[: len(taken)]
        return taken

    @property
    def _place(self) -> str:
        return self._store.uri(self._stage.folder)

    def _stage_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        plans = plan_shards(outline(tensors), self._shard_bytes)
        on_gpu = any_on_gpu(tensors)
        if plans != self._plans:
            self._buffers = ()  # frees the old ones first
            # Pinned memory: copies from the GPU run at full speed, and all of them at once.
            self._buffers = tuple(torch.empty(plan.data_bytes, dtype=torch.uint8, pin_memory=on_gpu) for plan in plans)
            self._plans = plans
        for plan, buffer in zip(plans, self._buffers, strict=True):
            stage(plan, tensors, buffer)
        if on_gpu:
            torch.cuda.synchronize()

    def _run(self, manifest: CheckpointManifest, groups: Sequence[RolloutGroup], began: float) -> None:
        try:
            committed = self._upload(manifest, groups)
        except Exception as error:  # the border of the thread: the training thread gets the error, and decides
            log.exception("the checkpoint of step %d was not committed", manifest.step)
            self._outcomes.append(CheckpointOutcome(manifest.step, time.monotonic() - began, error=error))
        else:
            self._committed_step = manifest.step
            self._outcomes.append(CheckpointOutcome(manifest.step, time.monotonic() - began, manifest=committed))

    def _upload(self, manifest: CheckpointManifest, groups: Sequence[RolloutGroup]) -> CheckpointManifest:
        self._claim.check()
        present = self._find_present(manifest)
        if present is not None:
            return present
        blobs = [
            self._store.upload(self._key(manifest, f"{number:05d}.safetensors"), _file(plan, buffer))
            for number, (plan, buffer) in enumerate(zip(self._plans, self._buffers, strict=True))
        ]
        finished = write_groups(self._store, self._key(manifest, "groups.parquet"), groups) if groups else None
        manifest = manifest.model_copy(update={"tensors": tuple(blobs), "groups": finished})
        self._check_sizes(manifest)
        self._claim.check()
        return self._commit(manifest)

    def _commit(self, manifest: CheckpointManifest) -> CheckpointManifest:
        key = self._stage.manifest(manifest.step)
        try:
            self._store.put_if_absent(key, manifest.to_bytes())
        except AlreadyExistsError as error:
            self._store.delete(blob.key for blob in manifest.blobs)
            return self._adopt(manifest, parse_manifest(error.content, self._store.uri(key)))
        return manifest

    def _find_present(self, manifest: CheckpointManifest) -> CheckpointManifest | None:
        """The step's checkpoint if an earlier attempt has committed it, as after a stop and a resume without a step between."""
        key = self._stage.manifest(manifest.step)
        try:
            content = self._store.get(key)
        except ObjectMissingError:
            return None
        return self._adopt(manifest, parse_manifest(content, self._store.uri(key)))

    def _adopt(self, manifest: CheckpointManifest, other: CheckpointManifest) -> CheckpointManifest:
        if other.attempt < manifest.attempt and other.state.record_sha256 == manifest.state.record_sha256:
            # It was trained on the same records, so it is this checkpoint.
            log.info("step %d was checkpointed by attempt %d already; its checkpoint stays", manifest.step, other.attempt)
            return other
        raise CheckpointConflictError(
            f"the checkpoint of step {manifest.step} in {self._place} was committed by attempt {other.attempt}, "
            f"so attempt {manifest.attempt} may not",
            other,
        )

    def _check_sizes(self, manifest: CheckpointManifest) -> None:
        """One LIST: does the store hold what it acknowledged?"""
        sizes = self._store.sizes(self._stage.checkpoint(manifest.step))
        for blob in manifest.blobs:
            if sizes.get(blob.key) != blob.bytes:
                raise StoreFailedError(
                    f"{self._store.uri(blob.key)} has {sizes.get(blob.key, 'no')} bytes right after {blob.bytes} were written; "
                    "the checkpoint is not committed; look at the store's disk and log"
                )

    def _key(self, manifest: CheckpointManifest, name: str) -> str:
        return self._stage.checkpoint_blob(manifest.step, manifest.attempt, name)


def _file(plan: ShardPlan, buffer: Tensor) -> Iterator[memoryview]:
    yield memoryview(plan.header)
    yield tensor_bytes(buffer)
