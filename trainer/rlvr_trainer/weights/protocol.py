"""What learner and engine workers say to each other about weights.

1. `Invitation` goes as `init_info` over `/init_weight_transfer_engine`: join the group of an epoch, and this is the layout of its buckets.
2. `UpdateHeader` goes through the group's store: the broadcast of a version begins. Workers receive it on a thread of their own, so that
   no HTTP call and no step of the engine is in the way, and answer with an `Acknowledgement` when the weights are staged.
3. `SwapOrder` goes as `update_info` over `/update_weights` while the engine is paused: the staged weights of that update are the ones
   that `/finish_weight_update` makes live. With `discard` it ends an update that a dead learner left open.

Attempt and epoch order everything: a worker follows only what is newer than all it has seen, so a learner that was thought dead cannot
overwrite the weights of its successor. Not covered: who may speak. The routes and the store have no authentication; the network policy
of the plan lets only the job's own learner reach them.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

WireDtype = Literal["float32", "bfloat16", "float16"]
DTYPE_BYTES: dict[WireDtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

Carrier = Literal["gloo", "nccl", "object_store"]


class Message(BaseModel):
    """A frozen message; a field it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TensorSlot(Message):
    """One tensor's place in a bucket."""

    name: Annotated[str, Field(min_length=1, max_length=1024)]
    """Name in the checkpoint, for example `model.norm.weight`."""
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    """Whole shape, not a shard's."""
    dtype: WireDtype
    """The engine's dtype: the learner casts."""
    offset_bytes: Annotated[int, Field(ge=0)]
    """Start within the bucket."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor, without padding."""
        size = DTYPE_BYTES[self.dtype]
        for extent in self.shape:
            size *= extent
        return size


class Bucket(Message):
    """Tensors that travel in one broadcast of `size_bytes` bytes."""

    size_bytes: Annotated[int, Field(ge=0)]
    """Size, padding included."""
    slots: tuple[TensorSlot, ...]
    """Tensors in ascending order of their offsets, without overlap."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        end = 0
        for slot in self.slots:
            if slot.offset_bytes < end:
                raise ValueError(
                    f"tensor '{slot.name}' starts at byte {slot.offset_bytes}, within the tensor before it, which ends at {end}"
                )
            end = slot.offset_bytes + slot.size_bytes
        if end > self.size_bytes:
            raise ValueError(f"tensor '{self.slots[-1].name}' ends at byte {end} of a bucket of {self.size_bytes}")
        return self


class Layout(Message):
    """All tensors of an update, in buckets."""

    buckets: tuple[Bucket, ...]
    """Buckets in the order of their broadcasts."""
    adapter_scale: Annotated[float, Field(gt=0.0)] | None = None
    """The tensors are adapters, float32: what their products are multiplied by before they are added to the weights that the engine was
    started with. None: they are the model's weights."""

    @property
    def size_bytes(self) -> int:
        """Bytes of one update."""
        return sum(bucket.size_bytes for bucket in self.buckets)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(slot.name for bucket in self.buckets for slot in bucket.slots)


class Invitation(Message):
    """To one engine: join the group of this epoch. The engine's workers take the ranks from `rank_offset` on; rank 0 is the learner."""

    attempt: Annotated[int, Field(ge=0)]
    """Attempt of the learner."""
    epoch: Annotated[int, Field(ge=1)]
    """Number of the group, counted from 1 in each attempt."""
    world_size: Annotated[int, Field(ge=2)]
    """Members of the group, the learner included."""
    rank_offset: Annotated[int, Field(ge=1)]
    """Rank of the engine's first worker."""
    store_host: Annotated[str, Field(min_length=1, max_length=253)]
    """Address of the learner's store."""
    store_port: Annotated[int, Field(ge=1, le=65_535)]
    """Port of the learner's store."""
    collective: Carrier
    """What moves the bytes."""
    timeout_seconds: Annotated[float, Field(gt=0.0)]
    """Bound of joining and of receiving one update."""
    layout: Layout
    """Buckets of every update of this epoch."""

    @property
    def order(self) -> tuple[int, int]:
        """Later invitations are greater."""
        return self.attempt, self.epoch


class UpdateHeader(Message):
    """The broadcast of one version begins."""

    sequence: Annotated[int, Field(ge=0)]
    """Number of the update within its epoch."""
    version: Annotated[int, Field(ge=0)]
    """Version of the weights; never used for other weights."""


class SwapOrder(Message):
    """To a paused engine: make the staged weights of this update live."""

    attempt: Annotated[int, Field(ge=0)]
    """Attempt of the learner."""
    epoch: Annotated[int, Field(ge=1)]
    """Epoch in which they were received."""
    sequence: Annotated[int, Field(ge=0)]
    """Number of the update within its epoch."""
    version: Annotated[int, Field(ge=0)]
    """Version of the weights."""
    discard: bool = False
    """End the open update without a swap. The answer is an error by design: only an error closes vLLM's update session."""


class Acknowledgement(Message):
    """A worker's answer in the store."""

    outcome: Literal["done", "cut", "refused"]
    """`done`; `cut`: the connection failed, which another member may have caused; `refused`: this worker cannot take these weights."""
    message: str = ""
    """What went wrong, in words."""


def check_newer(invitation: Invitation, seen: tuple[int, int]) -> None:
    """Refuse an invitation that is not newer than (attempt, epoch) `seen`.

    Raises:
        ValueError: it comes from an older attempt, or is older than the group that this worker is in.
    """
    if invitation.order <= seen:
        raise ValueError(
            f"attempt {invitation.attempt}, epoch {invitation.epoch} is refused: this engine already follows attempt {seen[0]}, "
            f"epoch {seen[1]}; a learner of an older attempt must stop"
        )
