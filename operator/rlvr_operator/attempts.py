"""When an attempt of the learner has ended, what that means, and when the next one may begin. Pure.

An attempt ends with the first of its pods that is lost, whatever ended that one: the others cannot go on. The pod that leads is given a
moment to say itself how it ended; what still runs then ends before the next attempt begins. An attempt's number is never used again:
commits and weight updates carry it, and older ones are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rlvr_api.conditions import ConditionType
from rlvr_api.process import ExitCode, Role
from rlvr_api.status import RLVRJobStatus
from rlvr_operator.backoff import DEFAULT_BACKOFF, Backoff
from rlvr_operator.observe import Children, LearnerJobView, PodView

REFUSED_BACKOFF = Backoff(base_seconds=5.0)
"""Between tries of a learner whose preflight refuses: a person may be mending what it named."""
BIRTH_SECONDS = 120.0
"""How long the Job controller may take to make a pod, before a Job without one counts as ended."""

TELLING = frozenset({
    ExitCode.DONE, ExitCode.BAD_INPUT, ExitCode.SUSPENDED, ExitCode.UNTRUSTWORTHY, ExitCode.SUPERSEDED,
})  # fmt: skip
"""Exit codes of a lead that is no victim of another pod's end."""
LEAD_SECONDS = 45.0
"""How long a lead may take to end by itself after another pod did: it notices when they next compute together, or is told to stop."""


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended."""

    exit_code: int | None
    """None: nobody knows, since the pod is gone."""
    message: str
    time: datetime
    counts: bool = True
    """Against the restart budget; False when nobody knows that it ever began, for example after a restart of the operator."""

    @property
    def is_done(self) -> bool:
        """All stages are finished."""
        return self.exit_code == ExitCode.DONE


def attempt_end(seen: Children, status: RLVRJobStatus, unborn: int | None, witnessed: int, now: datetime) -> AttemptEnd | None:
    """How the attempt of `status` ended; None while it goes on, or has not begun.

    Args:
        unborn: attempt whose Job is known not to have been created yet.
        witnessed: latest attempt whose Job is known to have existed.
    """
    attempt = status.execution_attempt
    job, pods = seen.learner_job(attempt), seen.of(Role.LEARNER, attempt)
    if job is None and attempt == unborn:
        return None
    if job is not None and job.complete:
        return AttemptEnd(ExitCode.DONE, "", now)
    since, lost = _lost_since(status, job, now), [pod for pod in pods if pod.is_lost]
    if any(not pod.ended for pod in pods) and not _is_given_up(pods, lost, since, now):
        return None
    if pods:
        return _from_pod(telling_pod(pods), len(pods), since)
    if job is None:
        words = "was deleted" if attempt == witnessed else "is not there, and may never have been"
        return AttemptEnd(None, f"the Job of attempt {attempt} {words}", since, counts=attempt == witnessed)
    if job.failed is not None:
        return AttemptEnd(None, job.failed, since)
    young = now < job.created + timedelta(seconds=BIRTH_SECONDS)
    return None if young or job.active > 0 or job.name in seen.warnings else AttemptEnd(None, "its pod was deleted", since)


def _lost_since(status: RLVRJobStatus, job: LearnerJobView | None, now: datetime) -> datetime:
    """When an attempt was lost whose pod cannot say so any more; the same at every look, or nobody would ever have waited long enough."""
    ready = next((condition for condition in status.conditions if condition.type is ConditionType.LEARNER_READY), None)
    since = now if ready is None or ready.status == "True" else ready.last_transition_time
    return since if job is None else max(since, job.created)


def _is_given_up(pods: Sequence[PodView], lost: Sequence[PodView], since: datetime, now: datetime) -> bool:
    """Whether what still runs is of no use: a pod is lost, and the lead has ended or did not within its time."""
    if not lost:
        return False
    moments = [pod.termination.time if pod.termination is not None else since for pod in lost]
    leads = any(pod.node == 0 and not pod.ended for pod in pods)
    return not leads or now >= min(moments) + timedelta(seconds=LEAD_SECONDS)


def telling_pod(pods: Sequence[PodView]) -> PodView:
    """The pod of an attempt whose end is the attempt's: the lead, where its end says what to do, else the first one that was lost."""
    lost = [pod for pod in pods if pod.is_lost]
    lead = next((pod for pod in pods if pod.node == 0 and pod.ended and pod.termination is not None), None)
    if lead is not None and lead.termination is not None and lead.termination.exit_code in TELLING:
        return lead
    # A pod that cannot say its end was taken away: the others ended for that.
    return min(lost, key=lambda pod: pod.end_order, default=pods[0])


def _from_pod(pod: PodView, pods: int, since: datetime) -> AttemptEnd:
    termination, place = pod.termination, f"pod {pod.name}: " if pods > 1 else ""
    if termination is None:
        return AttemptEnd(None, place + (pod.evicted or "its pod was lost"), since)
    return AttemptEnd(termination.exit_code, place + (pod.evicted or f"{termination.reason}: {termination.message}"), termination.time)


def failures_after(end: AttemptEnd, status: RLVRJobStatus, step: int | None) -> int:
    """Failed attempts in a row, with this one; an attempt that finished a step begins the count anew, one that was stopped in order adds
    nothing then.

    Args:
        step: the last step that the attempt is known to have finished.
    """
    if not end.counts:
        return status.restarts
    first = status.attempt_first_step
    advanced = first is not None and step is not None and step > first
    if end.exit_code == ExitCode.SUSPENDED and advanced:
        return 0
    return 1 if advanced else status.restarts + 1


def next_attempt_at(end: AttemptEnd, failures: int, attempt: int, refused: bool) -> datetime:
    """When the next attempt may begin."""
    backoff, tries = (REFUSED_BACKOFF, attempt) if refused else (DEFAULT_BACKOFF, max(failures, 1))
    # No jitter: every look must find the same moment, and the learners of different jobs do not fail together.
    return end.time + timedelta(seconds=backoff.delay_seconds(tries, unit_random=0.5))
