"""A job's children as plain values, read from what the API server says of them. Pure.

    raw objects by kind -> Children(learner Jobs, StatefulSet, Deployment, pods, the rest)

Only children whose controller is this very job (by uid), and pods that carry its uid, count; what an earlier job of the name left behind is
`foreign`, or nobody's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from rlvr_api import names
from rlvr_api.process import Role
from rlvr_api.status import Progress, Termination
from rlvr_operator.last_words import last_words
from rlvr_operator.render import Object, Owner

NEVER = datetime.max.replace(tzinfo=UTC)
OVERDUE_SECONDS = 10.0
"""How long after its deadline a deleted pod is waited for: its node does not answer."""
MAX_WORDS = 900
"""Characters of quoted messages: the tail of a log can be long."""

COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
"""Annotation of the pods of an indexed Job."""

REMOVALS = ("Evicted", "NodeLost", "Preempting", "Terminated")
"""A pod's own reasons for having been taken from its node."""


@dataclass(frozen=True)
class PodView:
    """One pod."""

    name: str
    uid: str
    role: Role
    attempt: int | None
    node: int
    """Of a learner's pod: which of the attempt's it is, from 0, the one that leads; 0 for all others."""
    ready: bool
    ended: bool
    """Its processes have ended for good, or it is overdue to be gone."""
    deleting: bool
    wedged: bool
    """Overdue to be gone, and the API server still waits for its node; one that was deleted without grace waits for finalizers alone."""
    scheduled: bool
    created: datetime
    address: str | None
    restarts: int
    settings_hash: str
    termination: Termination | None
    """The latest end of its main or init container."""
    last_progress: Progress | None
    """What a learner left behind when it ended in order."""
    waiting: tuple[str, str] | None
    """The kubelet's reason and message for a container that does not run."""
    unschedulable: str | None
    evicted: str | None

    @property
    def end_order(self) -> tuple[bool, datetime, bool, bool, str]:
        """Sorts the ends of an attempt's pods by which was the cause. Times are whole seconds; whoever ends with 1, and the lead, is rather
        the victim."""
        end = self.termination
        victim = end is not None and end.exit_code == 1
        return end is not None, NEVER if end is None else end.time, victim, self.node == 0, self.name

    @property
    def is_fine(self) -> bool:
        """It is ready, or was told by the lead that there is nothing more to do."""
        return self.ready or (self.node > 0 and self.ended and not self.is_lost)

    @property
    def is_lost(self) -> bool:
        """It has ended, and not because there was nothing more to do."""
        return self.ended and (self.termination is None or self.termination.exit_code != 0)


@dataclass(frozen=True)
class LearnerJobView:
    """The Job of one attempt."""

    name: str
    uid: str
    attempt: int
    settings_hash: str
    deleting: bool
    complete: bool
    failed: str | None
    """The Job controller's words when it gave up."""
    active: int
    created: datetime


@dataclass(frozen=True)
class Children:
    """All that is there of a job at one moment."""

    learner_jobs: tuple[LearnerJobView, ...] = ()
    rollout_set: Object | None = None
    verifier_deployment: Object | None = None
    pods: tuple[PodView, ...] = ()
    objects: Mapping[tuple[str, str], Object] = field(default_factory=dict)
    """Every own child but pods, by kind and name."""
    foreign: Mapping[tuple[str, str], Object] = field(default_factory=dict)
    """Objects of children's names that are not this job's."""
    progress: Progress | None = None
    """What the current attempt's learner last said."""
    step_seconds: float | None = None
    """Seconds since it was first seen at its step."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """The latest warning event of an object, by name, where it was asked for."""

    def of(self, role: Role, attempt: int | None = None) -> tuple[PodView, ...]:
        """Pods of a role, by name; learners of one attempt only, if it is given. Other roles have no attempts."""
        any_attempt = attempt is None or role is not Role.LEARNER
        return tuple(pod for pod in self.pods if pod.role is role and (any_attempt or pod.attempt == attempt))

    def lead(self, attempt: int) -> PodView | None:
        """The pod of an attempt that leads the others."""
        return next((pod for pod in self.of(Role.LEARNER, attempt) if pod.node == 0), None)

    def learner_job(self, attempt: int) -> LearnerJobView | None:
        """The Job of an attempt."""
        return next((job for job in self.learner_jobs if job.attempt == attempt), None)

    def is_over(self, job: LearnerJobView) -> bool:
        """Whether nothing of a Job runs any more; its pods know before the Job does."""
        pods = self.of(Role.LEARNER, job.attempt)
        return job.complete or job.failed is not None or (bool(pods) and all(pod.ended for pod in pods))


def is_gone(seen: Children) -> bool:
    """Whether neither pods nor what makes them are left."""
    return not (seen.pods or seen.learner_jobs or seen.rollout_set or seen.verifier_deployment)


def is_idle(seen: Children) -> bool:
    """Whether nothing runs or will: what is left of learners has ended."""
    services = seen.rollout_set or seen.verifier_deployment or seen.of(Role.ROLLOUT) or seen.of(Role.VERIFIER)
    return not services and all(pod.ended for pod in seen.pods) and all(map(seen.is_over, seen.learner_jobs))


def role_object(job: str, role: Role, attempt: int) -> tuple[str, str]:
    """Kind and name of the object that makes a role's pods; of learners, those of an attempt."""
    kind = {Role.ROLLOUT: "StatefulSet", Role.VERIFIER: "Deployment", Role.LEARNER: "Job"}[role]
    return kind, names.child_name(job, role, attempt if role is Role.LEARNER else None)


def read_children(owner: Owner, raw: Iterable[Object], now: datetime) -> Children:
    """Sort raw objects of the job's name into views."""
    jobs: list[LearnerJobView] = []
    pods: list[PodView] = []
    own: dict[tuple[str, str], Object] = {}
    foreign: dict[tuple[str, str], Object] = {}
    for item in raw:
        kind, name = item["kind"], item["metadata"]["name"]
        if kind == "Pod":
            if (pod := _pod(item, owner, now)) is not None:
                pods.append(pod)
        elif controller_uid(item) != owner.uid:
            foreign[kind, name] = item
        else:
            own[kind, name] = item
            if kind == "Job":
                jobs.append(_learner_job(item))
    return Children(
        learner_jobs=tuple(sorted(jobs, key=lambda job: job.attempt)),
        rollout_set=own.get(role_object(owner.name, Role.ROLLOUT, 0)),
        verifier_deployment=own.get(role_object(owner.name, Role.VERIFIER, 0)),
        pods=tuple(sorted(pods, key=lambda pod: pod.name)),
        objects=own,
        foreign=foreign,
    )


def controller_uid(item: Object) -> str | None:
    """Uid of the object that controls this one."""
    references = item["metadata"].get("ownerReferences", ())
    return next((str(reference["uid"]) for reference in references if reference.get("controller")), None)


def _learner_job(item: Object) -> LearnerJobView:
    meta, status = item["metadata"], item.get("status", {})
    conditions = {entry["type"]: entry for entry in status.get("conditions", ()) if entry.get("status") == "True"}
    failed = conditions.get("Failed")
    return LearnerJobView(
        name=meta["name"],
        uid=meta["uid"],
        attempt=int(meta["labels"].get(names.LABEL_ATTEMPT, 0)),
        settings_hash=meta.get("annotations", {}).get(names.ANNOTATION_SPEC_HASH, ""),
        deleting="deletionTimestamp" in meta,
        complete="Complete" in conditions or "SuccessCriteriaMet" in conditions,
        failed=None if failed is None else f"{failed.get('reason', '')}: {failed.get('message', '')}",
        active=int(status.get("active", 0)),
        created=_time(meta["creationTimestamp"]),
    )


def _pod(item: Object, owner: Owner, now: datetime) -> PodView | None:
    meta, status = item["metadata"], item.get("status", {})
    labels = meta.get("labels", {})
    if labels.get(names.LABEL_JOB_UID) != owner.uid or labels.get(names.LABEL_ROLE) not in tuple(Role):
        return None
    conditions = {entry["type"]: entry for entry in status.get("conditions", ())}
    containers = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    overdue = "deletionTimestamp" in meta and now > _time(meta["deletionTimestamp"]) + timedelta(seconds=OVERDUE_SECONDS)
    placed = conditions.get("PodScheduled", {})
    return PodView(
        name=meta["name"],
        uid=meta["uid"],
        role=Role(labels[names.LABEL_ROLE]),
        attempt=int(labels[names.LABEL_ATTEMPT]) if names.LABEL_ATTEMPT in labels else None,
        node=int(meta.get("annotations", {}).get(COMPLETION_INDEX, 0)),
        ready=conditions.get("Ready", {}).get("status") == "True" and "deletionTimestamp" not in meta,
        ended=overdue or status.get("phase") in ("Succeeded", "Failed"),
        deleting="deletionTimestamp" in meta,
        wedged=overdue and meta.get("deletionGracePeriodSeconds") != 0,
        scheduled=placed.get("status") == "True",
        created=_time(meta["creationTimestamp"]),
        address=status.get("podIP"),
        restarts=sum(int(container.get("restartCount", 0)) for container in containers),
        settings_hash=meta.get("annotations", {}).get(names.ANNOTATION_SPEC_HASH, ""),
        termination=_latest_termination(meta["name"], containers),
        last_progress=_last_progress(status.get("containerStatuses", ())),
        waiting=_waiting(containers),
        unschedulable=placed.get("message") if placed.get("reason") == "Unschedulable" else None,
        evicted=f"{status['reason']}: {status.get('message', '')}"
        if status.get("reason") in ("Evicted", "NodeLost", "Preempting")
        else None,
    )


def _latest_termination(pod: str, containers: Iterable[Mapping[str, Any]]) -> Termination | None:
    states = [container.get(key, {}).get("terminated") for container in containers for key in ("state", "lastState")]
    ends = [state for state in states if state is not None and not (state.get("exitCode") == 0 and _is_init(state, containers))]
    latest = max(ends, key=lambda state: state.get("finishedAt") or "", default=None)
    if latest is None:
        return None
    return Termination(
        exit_code=int(latest.get("exitCode", -1)),
        reason=str(latest.get("reason", ""))[:64],
        process=pod,
        message=last_words(str(latest.get("message", "")), MAX_WORDS),
        time=_time(latest.get("finishedAt") or latest.get("startedAt") or "1970-01-01T00:00:00Z"),
    )


def _last_progress(containers: Iterable[Mapping[str, Any]]) -> Progress | None:
    for container in containers:
        message = container.get("state", {}).get("terminated", {}).get("message", "")
        if message.startswith("{"):
            try:
                return Progress.model_validate_json(message)
            except ValidationError:
                return None
    return None


def _is_init(state: Mapping[str, Any], containers: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a finished state belongs to the init container, whose success is no end of the pod."""
    return any(container["name"] == "model" and container.get("state", {}).get("terminated") is state for container in containers)


def _waiting(containers: Iterable[Mapping[str, Any]]) -> tuple[str, str] | None:
    for container in containers:
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return str(waiting["reason"]), " ".join(str(waiting.get("message", "")).split())[:MAX_WORDS]
    return None


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)
