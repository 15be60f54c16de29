"""When an attempt of the learner has ended, what that means, and when the next one may begin. Pure.

An attempt ends with its pod, whatever ended it. Its number is never used again: commits and weight updates carry it, and older ones are
refused.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from rlvr_api.conditions import ConditionType
from rlvr_api.process import ExitCode, Role
from rlvr_api.status import RLVRJobStatus, Termination
from rlvr_operator.backoff import DEFAULT_BACKOFF, Backoff
from rlvr_operator.observe import Children, LearnerJobView

REFUSED_BACKOFF = Backoff(base_seconds=5.0)
"""Between tries of a learner whose preflight refuses: a person may be mending what it named."""
BIRTH_SECONDS = 120.0
"""How long the Job controller may take to make a pod, before a Job without one counts as ended."""


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
    if any(not pod.ended for pod in pods):
        return None
    since = _lost_since(status, job, now)
    if pods:
        return _from_pod(pods[-1].termination, pods[-1].evicted, since)
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


def _from_pod(termination: Termination | None, evicted: str | None, since: datetime) -> AttemptEnd:
    if termination is None:
        return AttemptEnd(None, evicted or "its pod was lost", since)
    return AttemptEnd(termination.exit_code, evicted or f"{termination.reason}: {termination.message}", termination.time)


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
