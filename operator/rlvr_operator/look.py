"""What one look at a job goes by, and what comes of it. Pure."""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from rlvr_api import names
from rlvr_api.process import Role
from rlvr_api.spec import RLVRJob
from rlvr_api.status import RLVRJobStatus
from rlvr_operator.autoscale import Scale
from rlvr_operator.claims import NO_TERMS, Claim, Terms, capped, is_outdated, read_claim
from rlvr_operator.observe import Children
from rlvr_operator.removals import Deletion
from rlvr_operator.render import Object, Owner, Site


class QueueUnavailableError(Exception):
    """A job can be in no queue; the message says why. Nothing is done to it."""


@dataclass(frozen=True)
class Decision:
    """What to do now."""

    status: RLVRJobStatus
    objects: tuple[Object, ...] = ()
    """Objects that must be there like this."""
    deletions: tuple[Deletion, ...] = ()
    claim_status: Object | None = None
    """What is to be told of the job's Workload: a merge patch, after the deletions."""
    needs_seal: bool = False
    """The Secret with the seal key must be there."""
    look_again_at: datetime | None = None
    """When time alone will change something."""


@dataclass(frozen=True)
class Look:
    """One look at a job."""

    job: RLVRJob
    owner: Owner
    generation: int
    site: Site
    previous: RLVRJobStatus
    seen: Children
    now: datetime
    unborn: int | None = None
    """Attempt whose Job is known not to have been created yet."""
    witnessed: int = 0
    """Latest attempt whose Job is known to have existed."""
    scale: Scale | None = None
    """Wanted verifiers, where they are scaled."""
    terms: Terms = NO_TERMS
    """Of the job's queue, if it names one."""

    @cached_property
    def claim(self) -> Claim | None:
        """The job's Workload."""
        return read_claim(self.seen.objects.get(("Workload", names.kueue_workload_name(self.owner.name))))

    @cached_property
    def granted(self) -> RLVRJob:
        """The job, with no more pods than it has quota for."""
        return capped(self.job, self.claim) if self.is_queued and self.claim is not None and self.may_run else self.job

    @property
    def is_queued(self) -> bool:
        """Whether the job names a queue."""
        return self.job.spec.scheduling.queue is not None

    @property
    def may_run(self) -> bool:
        """Whether pods of the job may exist."""
        return not self.is_queued or (self.claim is not None and self.claim.is_usable and not is_outdated(self.claim, self.job))

    def image(self, role: Role) -> str:
        """The pinned image of a role."""
        return self.previous.images.get(role) or self.site.images[role]
