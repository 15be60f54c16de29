"""Finds, loads and prunes committed checkpoints.

    latest_manifest(stage) -> load_checkpoint(manifest) -> tensors and finished groups, each verified against its digest

Without a manifest there is no checkpoint, whatever blobs lie about. `load_latest(fall_back=True)` condemns a checkpoint that is corrupt and
takes the one before; the records of the steps between are still there, so nothing is lost but time. `prune` removes a manifest before its
blobs: no reader ever finds a manifest whose blobs are gone on purpose.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from rlvr_trainer.rollout import RolloutGroup
from rlvr_trainer.storage.client import ObjectStore
from rlvr_trainer.storage.errors import CorruptObjectError, ObjectMissingError
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.manifest import CheckpointManifest, parse_manifest
from rlvr_trainer.storage.rollback import segments
from rlvr_trainer.storage.rollouts import read_groups
from rlvr_trainer.storage.tensor_files import parse_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint in memory."""

    manifest: CheckpointManifest
    tensors: dict[str, Tensor]
    """On the CPU, as they were at the snapshot."""
    groups: tuple[RolloutGroup, ...]
    """Finished groups that were not consumed yet."""
    condemned: tuple[str, ...] = ()
    """Why newer checkpoints were passed over, one sentence each."""


def committed_steps(store: ObjectStore, stage: StageKeys) -> tuple[int, ...]:
    """Steps of one branch of a stage with a committed checkpoint, ascending."""
    keys = map(stage.checkpoint_key, store.list(stage.checkpoints))
    return tuple(sorted(key.step for key in keys if key is not None and key.attempt is None))


def committed_places(store: ObjectStore, stage: StageKeys) -> tuple[tuple[StageKeys, int], ...]:
    """Branch and step of every committed checkpoint of a stage that counts, oldest first: those that a rollback took back do not."""
    return tuple(
        (segment.keys, step) for segment in segments(store, stage) for step in committed_steps(store, segment.keys) if segment.holds(step)
    )


def latest_place(store: ObjectStore, stages: StageKeys | Iterable[StageKeys]) -> tuple[StageKeys, int] | None:
    """Branch and step of the newest checkpoint of a stage, or of the last of several stages that has one; None when there is none."""
    for stage in sorted([stages] if isinstance(stages, StageKeys) else stages, reverse=True):
        places = committed_places(store, stage)
        if places:
            return places[-1]
    return None


def latest_manifest(store: ObjectStore, stages: StageKeys | Iterable[StageKeys]) -> CheckpointManifest | None:
    """The checkpoint of `latest_place`; None when there is none.

    Raises:
        CorruptObjectError: the manifest cannot be read.
    """
    place = latest_place(store, stages)
    return None if place is None else read_manifest(store, *place)


def read_manifest(store: ObjectStore, stage: StageKeys, step: int) -> CheckpointManifest:
    """The manifest of one checkpoint.

    Raises:
        ObjectMissingError: there is no committed checkpoint of this step.
        CorruptObjectError: the manifest cannot be read, or is that of another checkpoint.
    """
    key = stage.manifest(step)
    manifest = parse_manifest(store.get(key), store.uri(key))
    if (manifest.stage_index, manifest.stage, manifest.branch, manifest.step) != (stage.index, stage.name, stage.branch, step):
        raise CorruptObjectError(
            f"{store.uri(key)} is the manifest of step {manifest.step} of stage '{manifest.stage}'; it was moved or changed"
        )
    return manifest


def load_checkpoint(store: ObjectStore, manifest: CheckpointManifest) -> LoadedCheckpoint:
    """Everything a manifest binds, verified. Needs memory for the tensors once, and one file more.

    Raises:
        CorruptObjectError: a blob is missing, has another size or digest than was committed, or is no safetensors or Parquet file.
    """
    tensors: dict[str, Tensor] = {}
    try:
        for blob in manifest.tensors:
            tensors.update(parse_tensors(store.read(blob), store.uri(blob.key)))
        groups = read_groups(store, manifest.groups) if manifest.groups is not None else ()
    except (ObjectMissingError, ValueError) as error:
        raise CorruptObjectError(
            f"the checkpoint of step {manifest.step} of stage '{manifest.stage}' is corrupt: {error}; resume from an earlier one"
        ) from error
    return LoadedCheckpoint(manifest, tensors, groups)


def load_latest(store: ObjectStore, stages: StageKeys | Sequence[StageKeys], *, fall_back: bool = False) -> LoadedCheckpoint | None:
    """The newest checkpoint in memory; None when none is committed.

    Args:
        store: the job's folder.
        stages: one stage, or several in which the last one with a checkpoint counts.
        fall_back: condemn checkpoints that are corrupt and take the newest sound one. Their manifests are renamed, so that their steps
            can be committed again; only a process that has claimed the newest attempt may ask for this.

    Raises:
        CorruptObjectError: the newest one is corrupt, and `fall_back` was not asked for; or no sound one is left, and there were some.
    """
    corrupt: dict[tuple[StageKeys, int], CorruptObjectError] = {}
    for stage in sorted([stages] if isinstance(stages, StageKeys) else stages, reverse=True):
        for place in reversed(committed_places(store, stage)):
            try:
                loaded = load_checkpoint(store, read_manifest(store, *place))
            except CorruptObjectError as error:
                if not fall_back:
                    raise
                corrupt[place] = error
            else:
                for at in corrupt:
                    _condemn(store, *at)
                return LoadedCheckpoint(loaded.manifest, loaded.tensors, loaded.groups, tuple(map(str, corrupt.values())))
    if corrupt:
        raise CorruptObjectError(f"all {len(corrupt)} checkpoints in {store.uri()} are corrupt, the newest: {next(iter(corrupt.values()))}")
    return None


def kept_steps(steps: Sequence[int], keep_last: int, window_steps: int | None = None) -> frozenset[int]:
    """Checkpoints to keep: the newest, and, for a rollback, one from before the window of the newest step, and the one to follow it.

    Args:
        steps: with a checkpoint, ascending.
        window_steps: steps that a rollback must be able to go back over; None: there are no rollbacks.
    """
    kept = set(steps[-keep_last:])
    if window_steps is not None and steps:
        old = [step for step in steps if step <= steps[-1] - window_steps]
        kept |= {*old[-1:], *steps[len(old) : len(old) + 1]}
    return frozenset(kept)


def prune(store: ObjectStore, stage: StageKeys, keep_last: int, attempt: int, window_steps: int | None = None) -> tuple[int, ...]:
    """Remove all checkpoints of a branch but those of `kept_steps`, and what attempts before `attempt` left unfinished.

    Manifests go first, so an interrupted prune leaves blobs without a manifest, which the next one removes. Blobs of `attempt` itself are
    never touched unless their manifest went: an upload may be in flight.

    Returns:
        Steps whose checkpoints were removed.

    Raises:
        ValueError: `keep_last` is below 1.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last must be at least 1, not {keep_last}: a run without a checkpoint cannot go on")
    steps = committed_steps(store, stage)
    kept = kept_steps(steps, keep_last, window_steps)
    removed = tuple(step for step in steps if step not in kept)
    store.delete(stage.manifest(step) for step in removed)
    store.delete(_garbage(store, stage, attempt, frozenset(removed)))
    for upload_id, key in store.unfinished_uploads(stage.checkpoints).items():
        found = stage.checkpoint_key(key)
        if found is not None and found.attempt is not None and found.attempt < attempt:
            store.abort_upload(key, upload_id)
    return removed


def _garbage(store: ObjectStore, stage: StageKeys, attempt: int, removed: frozenset[int]) -> list[str]:
    """Blobs that no manifest binds and nobody is writing: below steps just removed, or of older attempts."""
    blobs: dict[str, tuple[int, int]] = {}
    committed: list[int] = []
    for key in store.list(stage.checkpoints):
        found = stage.checkpoint_key(key)
        if found is None:
            continue
        if found.attempt is None:
            committed.append(found.step)
        else:
            blobs[key] = (found.step, found.attempt)
    bound = {blob.key for step in committed if step not in removed for blob in read_manifest(store, stage, step).blobs}
    return [key for key, (step, writer) in blobs.items() if key not in bound and (writer < attempt or step in removed)]


def _condemn(store: ObjectStore, stage: StageKeys, step: int) -> None:
    """Keep the manifest's text for people, under a name that no reader looks at, and free its key."""
    key = stage.manifest(step)
    log.warning("the checkpoint in %s is corrupt and was condemned", store.uri(stage.checkpoint(step)))
    store.put(f"{stage.checkpoint(step)}CONDEMNED.json", store.get(key))
    store.delete([key])
