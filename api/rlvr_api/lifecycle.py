"""How a job lives on a cluster, as its spec says it: what is tried again, how long is waited, where pods go, and what stays at the end."""

from typing import Annotated

from pydantic import Field

from rlvr_api.model import ApiModel, PositiveSeconds
from rlvr_api.pods import ObjectName, QualifiedName


class FailurePolicy(ApiModel):
    """How often parts may fail before the job does."""

    max_learner_restarts: Annotated[int, Field(ge=0, le=1000)] = 3
    """New attempts of the learner; each resumes from the last committed checkpoint. The count starts anew after a committed step."""
    max_role_restarts: Annotated[int, Field(ge=0, le=10_000)] = 20
    """Restarts of each engine and verifier in a row without becoming ready."""


class Deadlines(ApiModel):
    """Bounds on waiting."""

    provisioning_seconds: PositiveSeconds = 1800.0
    """From start until engines and verifiers are ready."""
    stall_seconds: PositiveSeconds = 1800.0
    """Longest time without a finished group or optimizer step before the learner gives up the attempt."""
    grace_seconds: PositiveSeconds = 120.0
    """After a request to stop: time to commit a checkpoint and drain."""


class Ttl(ApiModel):
    """How long what a finished run used stays, in clusters. Checkpoints, rollouts and the final model stay in the store."""

    rollouts_after_finished_seconds: Annotated[int, Field(ge=0, le=2_592_000)] = 60
    """Engines and verifiers."""
    pods_after_finished_seconds: Annotated[int, Field(ge=0, le=2_592_000)] = 3600
    """The learner's finished pod with its log."""


class Queue(ApiModel):
    """A queue of Kueue. No pod starts before the queue has admitted the job as a whole: learner, engines and verifiers at their most."""

    name: ObjectName
    """LocalQueue in the job's namespace."""
    priority_class_name: ObjectName | None = None
    """WorkloadPriorityClass, by which jobs are ordered and preempt each other. Unset: the pods' PriorityClass, or priority 0."""


class Scheduling(ApiModel):
    """Where pods go, for all roles; `pod` of a role says more."""

    queue: Queue | None = None
    """Unset: the job waits in no queue."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of all pods."""
    gpu_resource: QualifiedName = "nvidia.com/gpu"
    """Resource that a GPU is asked for as, for example `amd.com/gpu`."""
    topology_key: QualifiedName | None = None
    """Node label, for example `topology.kubernetes.io/zone`: engines and learner are preferably put where it has the same value."""
    disruption_budget: bool = False
    """Protects learner and `rollouts.minAvailable` engines from voluntary evictions, and so blocks node drains meanwhile."""
