"""How the pods of a role are sized and placed. For clusters alone: a local run refuses a job that sets any of it.

The shapes are Kubernetes' own, cut down to what a training job needs; the operator adds everything that keeps pods restricted (user,
capabilities, seccomp, read-only root) and that a person should not have to know (`/dev/shm`, scratch volumes, probes).
"""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from rlvr_api.model import ApiModel

Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$", max_length=32)]
"""Kubernetes' notation of an amount, for example `500m`, `2`, `16Gi`."""
QualifiedName = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=317)
]
"""A label key or resource name, with an optional DNS prefix."""
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
"""Name of a Kubernetes object that the job refers to."""
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
Environment = Annotated[dict[EnvName, Annotated[str, StringConstraints(max_length=4096)]], Field(max_length=64)]
"""Variables for a role's processes, for example NCCL's."""

RESERVED_ENV_PREFIXES = (
    "RLVR_",
    "AWS_",
    "TEACHER_API_KEY",
    "JUDGE_API_KEY",
    "VLLM_SERVER_DEV_MODE",
    "LD_PRELOAD",
    "PYTHONPATH",
    "HF_HUB_OFFLINE",
    "OTEL_SERVICE_NAME",
)


def refuse_reserved(env: dict[str, str], place: str) -> None:
    """Raises ValueError when `env` sets what the plan or the credentials' Secret does."""
    taken = sorted(name for name in env if name.startswith(RESERVED_ENV_PREFIXES))
    if taken:
        raise ValueError(f"{place} may not set {', '.join(taken)}: the plan does, from the spec's own fields")


class SecretReference(ApiModel):
    """A Secret in the job's namespace. The operator never reads it; pods do."""

    name: ObjectName
    """Its name."""


class Resources(ApiModel):
    """What one pod asks for, and may use at most. GPUs are asked for by the role's own field."""

    requests: Annotated[dict[QualifiedName, Quantity], Field(max_length=16)] = Field(default_factory=dict)
    """What the scheduler sets aside, for example `{cpu: 500m, memory: 4Gi}`."""
    limits: Annotated[dict[QualifiedName, Quantity], Field(max_length=16)] = Field(default_factory=dict)
    """What the kernel enforces; a process above its memory limit is killed."""


class Toleration(ApiModel):
    """Lets pods run on tainted nodes."""

    key: QualifiedName | None = None
    """Taint's key; unset with operator Exists: every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Whether the taint's value counts."""
    value: LabelValue | None = None
    """Taint's value, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint's effect; unset: all."""
    toleration_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """With NoExecute: how long a pod stays after the taint came."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError(f"value '{self.value}' means nothing with operator Exists: remove it, or write operator Equal")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("operator Equal needs a key; operator Exists without one tolerates every taint")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("tolerationSeconds counts for effect NoExecute only: set that effect, or remove it")
        return self


class Pod(ApiModel):
    """Size and place of a role's pods."""

    resources: Resources = Resources()
    """CPU, memory and extended resources such as `rdma/hca`."""
    node_selector: Annotated[dict[QualifiedName, LabelValue], Field(max_length=32)] = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that do not keep its pods away."""
    shared_memory: Quantity = "1Gi"
    """Size of `/dev/shm`, which counts against the memory limit. vLLM and NCCL between processes need some."""
    annotations: Annotated[dict[QualifiedName, Annotated[str, StringConstraints(max_length=4096)]], Field(max_length=32)] = Field(
        default_factory=dict
    )
    """Annotations of the pods, for example a network that a device plug-in attaches."""
