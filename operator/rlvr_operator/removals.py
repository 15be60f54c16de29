"""What must go, and how: each with the uid that was seen, so that nothing newer of the name is ever removed. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from rlvr_api.process import Role
from rlvr_operator.claims import Claim
from rlvr_operator.observe import Children, LearnerJobView, PodView
from rlvr_operator.render import Object

REPORT_AGE_SECONDS = 20.0
"""A pod younger than this is not the one that a report of its learner speaks of."""


@dataclass(frozen=True)
class Deletion:
    """One object to delete."""

    kind: str
    name: str
    uid: str
    grace_seconds: int | None = None
    """None: the object's own; 0 does not wait for its node."""


def remove_learners(jobs: Iterable[LearnerJobView]) -> list[Deletion]:
    """The Jobs of attempts, and with them their pods, which get SIGTERM and their grace."""
    return [Deletion("Job", job.name, job.uid) for job in jobs if not job.deleting]


def remove_services(seen: Children) -> list[Deletion]:
    """Engines and verifiers."""
    items = [item for item in (seen.rollout_set, seen.verifier_deployment) if item is not None]
    return [
        Deletion(item["kind"], item["metadata"]["name"], item["metadata"]["uid"])
        for item in items
        if "deletionTimestamp" not in item["metadata"]
    ]


def drain(seen: Children) -> tuple[Deletion, ...]:
    """Everything that makes or is a pod: first the learner, which commits a checkpoint, then what it needs for that."""
    deletions = remove_learners(seen.learner_jobs)
    if all(pod.ended for pod in seen.of(Role.LEARNER)):
        deletions += remove_services(seen)
    return (*deletions, *wedged_pods(seen))


def remove_claim(claim: Claim | None) -> tuple[Deletion, ...]:
    """The job's Workload, and with it its quota."""
    if claim is None or claim.is_going:
        return ()
    meta = claim.item["metadata"]
    return (Deletion("Workload", meta["name"], meta["uid"]),)


def needless_budgets(seen: Children, wanted: Iterable[Object]) -> list[Deletion]:
    """Disruption budgets that the job asks for no more: they would go on blocking node drains."""
    kept = {(item["kind"], item["metadata"]["name"]) for item in wanted}
    return [
        Deletion(kind, name, item["metadata"]["uid"])
        for (kind, name), item in sorted(seen.objects.items())
        if kind == "PodDisruptionBudget" and (kind, name) not in kept and "deletionTimestamp" not in item["metadata"]
    ]


def outdated_engines(seen: Children, settings_hash: str) -> list[Deletion]:
    """Engines that were started with other settings: those that do not serve at once, and one of the others while all answer."""
    engines = seen.of(Role.ROLLOUT)
    old = [pod for pod in engines if pod.settings_hash != settings_hash and not pod.deleting]
    idle = [pod for pod in old if not pod.ready]
    if idle or not old:
        return [_pod(pod) for pod in idle]
    return [_pod(old[0])] if all(pod.ready for pod in engines) else []


def restarting_engines(seen: Children) -> list[Deletion]:
    """Engines of which the learner says that only a new process helps."""
    progress = seen.progress
    if progress is None:
        return []
    named = {pod.name.rpartition("-")[2]: pod for pod in seen.of(Role.ROLLOUT)}
    wanted = [named.get(name.rpartition("-")[2]) for name, engine in progress.engines.items() if engine.needs_restart]
    oldest = progress.last_updated - timedelta(seconds=REPORT_AGE_SECONDS)
    return [_pod(pod) for pod in wanted if pod is not None and not pod.deleting and pod.created < oldest]


def wedged_pods(seen: Children) -> list[Deletion]:
    """Deleted pods whose node does not answer: the API server forgets them, and fencing keeps what may still run there from doing harm."""
    return [Deletion("Pod", pod.name, pod.uid, grace_seconds=0) for pod in seen.pods if pod.wedged]


def _pod(pod: PodView) -> Deletion:
    return Deletion("Pod", pod.name, pod.uid)
