"""What makes a checkpoint: the document that binds its blobs, and the learner's state that is no tensor."""

from typing import Literal, Self

from pydantic import AwareDatetime, Field, JsonValue, ValidationError, model_validator

from rlvr_trainer.rollout import Admission
from rlvr_trainer.storage.documents import Count, Discard, Sha256, StoredBlob, StoredDocument, first_fault
from rlvr_trainer.storage.errors import CorruptObjectError
from rlvr_trainer.storage.lineage import Lineage


class CheckpointState(StoredDocument):
    """The learner's state after an optimizer step, without tensors and finished groups."""

    step: Count
    """Optimizer steps of the stage that are done."""
    final: bool = False
    """The stage is finished."""
    weight_version: Count
    """Version that engines were given last."""
    record_sha256: Sha256
    """Digest of the step's record (`RecordLog.head.sha256`), so that a checkpoint cannot be joined to other records."""
    model: str
    """Where the model's configuration and tokenizer come from."""
    scalars: dict[str, JsonValue] = Field(default_factory=dict)
    """Optimizer, scheduler and whatever else is no tensor. Generator states are tensors (uint8)."""
    cursor: Count
    """Next index to admit."""
    accepted: Count
    """Groups that admission counts against its capacity: consumed and pending ones."""
    curriculum: JsonValue = None
    """State of the curriculum."""
    pending: tuple[Admission, ...] = ()
    """Admitted, and neither consumed nor discarded."""
    discarded: tuple[Discard, ...] = ()
    """Given up since the step's record; the next record must name them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        pending = {admission.index for admission in self.pending}
        if len(pending) != len(self.pending) or pending & {discard.index for discard in self.discarded}:
            raise ValueError("an index is pending twice, or both pending and discarded")
        if pending and max(pending) >= self.cursor:
            raise ValueError(f"index {max(pending)} is pending, and the cursor is only at {self.cursor}")
        return self


class CheckpointManifest(StoredDocument):
    """`MANIFEST.json`: a checkpoint is what its manifest says; without one it does not exist."""

    schema_version: Literal[1] = 1
    """Version of this document."""
    stage: str
    """Name of the stage."""
    stage_index: Count
    """Its position in the job, from 0."""
    branch: Count = 0
    """Rollbacks of the stage before it."""
    attempt: Count
    """Attempt that committed it."""
    code_version: str
    """Version of the program that wrote it."""
    time: AwareDatetime
    """When the snapshot was taken."""
    lineage: Lineage | None = None
    """What the weights come from; None for tensors that are no model's."""
    state: CheckpointState
    """The learner's state."""
    tensors: tuple[StoredBlob, ...]
    """Safetensors files: weights, optimizer, generators."""
    groups: StoredBlob | None = None
    """Parquet file with the pending groups that were finished already; None when there were none."""

    @property
    def step(self) -> int:
        """Optimizer steps of the stage that are done."""
        return self.state.step

    @property
    def blobs(self) -> tuple[StoredBlob, ...]:
        """All objects that it binds."""
        return self.tensors if self.groups is None else (*self.tensors, self.groups)


def parse_manifest(content: bytes, place: str) -> CheckpointManifest:
    """A manifest from its bytes.

    Raises:
        CorruptObjectError: it is not one.
    """
    try:
        return CheckpointManifest.model_validate_json(content)
    except ValidationError as error:
        raise CorruptObjectError(
            f"{place} is not a checkpoint manifest: {first_fault(error)}; restore it, or use the version that wrote it"
        ) from error
