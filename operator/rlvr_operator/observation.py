"""What is observed of a run at one moment, in the words that both runtimes share."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlvr_api.conditions import Phase, Reason
from rlvr_api.process import Role
from rlvr_api.spec import RLVRJobSpec
from rlvr_api.status import Progress, RoleStatus


@dataclass(frozen=True)
class Ending:
    """Where a run is going, or has gone."""

    phase: Phase
    """Completing, Succeeded, Suspending, Suspended, Queued or Failed."""
    reason: Reason
    message: str


@dataclass(frozen=True)
class Problem:
    """Why something is not as it should be."""

    reason: Reason
    message: str
    """The object, and the words of whoever refused it."""


@dataclass(frozen=True)
class Admission:
    """Whether a job has its quota, and who says so."""

    holds: bool
    reason: Reason
    message: str


NO_QUEUE = Admission(True, Reason.NOT_REQUESTED, "the job waits in no queue")


@dataclass(frozen=True)
class Observation:
    """What is seen of a run at one moment."""

    spec: RLVRJobSpec
    roles: tuple[RoleStatus, ...]
    attempt: int
    failures: int
    """Failed attempts in a row."""
    progress: Progress | None
    ending: Ending | None = None
    problems: Mapping[Role, Problem] = field(default_factory=dict)
    """Why a role is not ready, where more is known than its last end."""
    unplaced: Problem | None = None
    """Why a pod has no node or no image. Clusters only."""
    admission: Admission = NO_QUEUE
    """Clusters only."""
    in_cluster: bool = False
    step_seconds: float | None = None
    """Seconds since the last finished step was seen."""

    def needed(self, role: RoleStatus) -> int:
        """Processes of a role that the run cannot do without."""
        least = {Role.ROLLOUT: self.spec.rollouts.min_available, Role.VERIFIER: 1, Role.LEARNER: self.spec.learner.nodes}[role.name]
        return min(least, role.desired)

    def all_needed_ready(self) -> bool:
        """Whether every role has as many ready processes as it needs."""
        return bool(self.roles) and all(role.ready >= self.needed(role) for role in self.roles)
