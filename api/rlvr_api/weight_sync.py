"""How new weights reach the engines: the transports, of which a job has one."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from rlvr_api.model import ApiModel, PositiveSeconds


class TorchDistributed(ApiModel):
    """Broadcast through a torch.distributed process group: NCCL between GPUs, gloo otherwise."""

    bucket_mib: Annotated[int, Field(ge=1, le=4096)] = 64
    """Size of one broadcast. 64 MiB is where gloo stops gaining."""


class ObjectStoreDeltas(ApiModel):
    """Through the job's bucket: after each step what changed, verified by digest, on a base. For engines that no fast network joins to the
    learner, and many of them; in bfloat16 a few percent of the elements change in a step. They read by signed addresses, without
    credentials, and must reach the store."""

    bucket_mib: Annotated[int, Field(ge=1, le=4096)] = 64
    """Size of the parts that are compared, written and fetched at the same time, four at once."""
    max_deltas: Annotated[int, Field(ge=0, le=1000)] = 20
    """Deltas in a row before all weights are written again; a base also comes when they have as many bytes as the last one. An engine that
    comes late fetches the base and all of them. 0 writes all weights each time."""


class WeightSync(ApiModel):
    """How new weights reach the engines; one transport at most is set."""

    torch_distributed: TorchDistributed | None = None
    """The transport, unless another one is set."""
    object_store: ObjectStoreDeltas | None = None
    """The transport instead."""
    timeout_seconds: PositiveSeconds = 120.0
    """Bound of every wait in one update; an engine that needs longer is dropped and rejoins later."""
    probe_tolerance: Annotated[float, Field(gt=0.0, le=10.0)] | None = None
    """Largest difference of a token's log-prob between engine and trainer after an update. Unset: 1e-3 when both compute in float32,
    1.0 otherwise."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.torch_distributed is not None and self.object_store is not None:
            raise ValueError("torchDistributed and objectStore are both set, and weights take one way: remove one")
        return self

    @property
    def transport(self) -> TorchDistributed | ObjectStoreDeltas:
        """The one that is set, or the default."""
        return self.object_store or self.torch_distributed or TorchDistributed()

    @property
    def transport_kind(self) -> str:
        """Name of the member."""
        return transport_kind(self.transport)


def transport_kind(transport: TorchDistributed | ObjectStoreDeltas) -> str:
    """Name of the member of `weightSync` that settings belong to."""
    return "object_store" if isinstance(transport, ObjectStoreDeltas) else "torch_distributed"
