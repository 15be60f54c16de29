"""Begins a job with the weights of another run's checkpoint: `spec.model.from`.

    address -> the newest checkpoint there -> fork.json, once over all attempts -> manifest, verified -> tensors, verified

What the address means may change while the other run goes on, so the first attempt writes down which checkpoint it found; all later ones
load that one or refuse. Weights are taken in float32 as they were trained; optimizer, schedule and data are new, as at any stage's begin.
Not covered: memory for less than the whole checkpoint, whose optimizer state is read and dropped.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import ValidationError
from torch import Tensor

from rlvr_trainer.context import BadInputError, RunContext
from rlvr_trainer.storage.attempts import AttemptClaim
from rlvr_trainer.storage.checkpoint_reader import committed_steps, latest_place, load_checkpoint
from rlvr_trainer.storage.client import ObjectStore, S3Settings
from rlvr_trainer.storage.documents import Sha256, StoredDocument, first_fault
from rlvr_trainer.storage.errors import AlreadyExistsError, CorruptObjectError, ObjectMissingError, StorageError
from rlvr_trainer.storage.layout import FORK, CheckpointPlace, StageKeys
from rlvr_trainer.storage.lineage import Lineage, SourceModel
from rlvr_trainer.storage.manifest import CheckpointManifest, parse_manifest

logger = logging.getLogger(__name__)


class ForkRecord(StoredDocument):
    """`fork.json`: the checkpoint that a job began with."""

    checkpoint: str
    """Address of its folder."""
    manifest_sha256: Sha256


@dataclass(frozen=True)
class Fork:
    """A checkpoint of another run."""

    record: ForkRecord
    settings: S3Settings

    def load(self) -> dict[str, Tensor]:
        """Its tensors, on the CPU.

        Raises:
            BadInputError: it is gone, or is not what it was.
        """
        store, manifest = self._manifest()
        try:
            return load_checkpoint(store, manifest).tensors
        except CorruptObjectError as error:
            raise BadInputError(f"spec.model.from: {error}") from error

    def source(self) -> tuple[SourceModel, Lineage | None]:
        """What a lineage says of it.

        Raises:
            BadInputError: as `load`.
        """
        return SourceModel(uri=self.record.checkpoint, sha256=self.record.manifest_sha256), self._manifest()[1].lineage

    def _manifest(self) -> tuple[ObjectStore, CheckpointManifest]:
        place = CheckpointPlace.parse(self.record.checkpoint)
        assert place.stage is not None
        assert place.step is not None
        store = ObjectStore.open(place.job, self.settings)
        key = place.stage.manifest(place.step)
        try:
            content = store.get(key)
        except ObjectMissingError:
            raise BadInputError(
                f"spec.model.from: {self.record.checkpoint}, which this job began with, is gone: restore it, or start a job of another name"
            ) from None
        if hashlib.sha256(content).hexdigest() != self.record.manifest_sha256:
            raise BadInputError(
                f"spec.model.from: {self.record.checkpoint} is another checkpoint than the one that this job began with: "
                "start a job of another name"
            )
        return store, parse_manifest(content, store.uri(key))


def open_fork(context: RunContext, store: ObjectStore, claim: AttemptClaim) -> Fork | None:
    """The checkpoint that the job begins with, fixed from now on; None for a job that begins with a folder.

    Args:
        store: the job's own folder.

    Raises:
        BadInputError: there is no checkpoint at `spec.model.from`, or it cannot be read.
    """
    uri = context.job.spec.model.from_
    if uri is None:
        return None
    settings = S3Settings(context.s3_endpoint, context.job.spec.storage.region)
    try:
        return Fork(_known(store) or _fix(store, claim, find_checkpoint(uri, settings)), settings)
    except StorageError as error:
        if not error.permanent:
            raise
        raise BadInputError(f"spec.model.from: {error}") from error


def find_checkpoint(uri: str, settings: S3Settings) -> ForkRecord:
    """The newest checkpoint that an address means.

    Raises:
        BadInputError: there is none.
        StorageError: the store cannot be read.
    """
    place = CheckpointPlace.parse(uri)
    store = ObjectStore.open(place.job, settings)
    if place.stage is None:
        step = latest_place(store, {stage.trunk for key in store.list() if (stage := StageKeys.parse(key)) is not None})
    elif place.step is None and not place.stage.branch:
        step = latest_place(store, place.stage)
    else:
        steps = committed_steps(store, place.stage)
        wanted = place.step if place.step in steps else steps[-1] if steps and place.step is None else None
        step = None if wanted is None else (place.stage, wanted)
    if step is None:
        raise BadInputError(
            f"spec.model.from: there is no committed checkpoint in {uri}: name the folder of a job, <storage.uri>/<job>, of one of its "
            "stages, or of a checkpoint below that; checkpoints that learner.checkpoint.keepLast does not keep are gone"
        )
    stage, number = step
    content = store.get(stage.manifest(number))
    return ForkRecord(checkpoint=store.uri(stage.checkpoint(number)).rstrip("/"), manifest_sha256=hashlib.sha256(content).hexdigest())


def begin_with(fork: Fork, load_tensors: Callable[[Mapping[str, Tensor]], None]) -> None:
    """Give a policy the fork's weights.

    Raises:
        BadInputError: they are another model's, or the checkpoint is gone.
    """
    try:
        load_tensors(fork.load())
    except ValueError as error:
        raise BadInputError(f"spec.model.from: {fork.record.checkpoint}: {error}") from error
    logger.info("the job begins with %s", fork.record.checkpoint)


def _known(store: ObjectStore) -> ForkRecord | None:
    try:
        return _parse(store.get(FORK), store)
    except ObjectMissingError:
        return None


def _fix(store: ObjectStore, claim: AttemptClaim, record: ForkRecord) -> ForkRecord:
    claim.check()
    try:
        store.put_if_absent(FORK, record.to_bytes())
    except AlreadyExistsError as error:
        return _parse(error.content, store)
    return record


def _parse(content: bytes, store: ObjectStore) -> ForkRecord:
    try:
        return ForkRecord.model_validate_json(content)
    except ValidationError as error:
        raise CorruptObjectError(f"{store.uri(FORK)} does not say what the job began with: {first_fault(error)}; restore it") from error
