"""A job's claim to quota: its Workload, and what Kueue says of it. Pure.

    no claim, or a waiting one   no pod                                        the operator may still write what is asked for
    admitted                     pods, where the admitted flavors have them    what is asked for is fixed
    evicted                      no pod any more, then `released`              Kueue queues it again
    the job is over              `finished`                                    the quota is free

Kueue changes the status of a Workload, and leaves some of it to whoever made it: that pods are ready, that quota can go back because no
pod is left, and that all is over. Those are merge patches with the version that was seen, since the lists in them hold Kueue's words, too.

Not covered: topology-aware scheduling, partial admission, elastic workload slices.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rlvr_api import names
from rlvr_api.conditions import Reason
from rlvr_api.process import Role
from rlvr_api.spec import RLVRJob
from rlvr_operator.observation import Problem
from rlvr_operator.render.site import Object, Placement
from rlvr_operator.render.workload import claim_hash, most

REQUEUED_AT_ONCE = ("Preempted", "NodeFailures")
"""Evictions after which Kueue leaves it to the owner to say that the workload may be queued again."""


@dataclass(frozen=True)
class Terms:
    """What is known of a job's queue beside its claim."""

    priority: int = 0
    """Of the class that the job names."""
    placements: Mapping[Role, Placement] = field(default_factory=dict)
    """Of an admitted job."""
    problem: str | None = None
    """Why the job can be in no queue; for the user."""


NO_TERMS = Terms()


@dataclass(frozen=True)
class Claim:
    """One Workload."""

    item: Object
    is_reserved: bool
    """Quota is set aside for it."""
    is_admitted: bool
    """It may run: admission checks have passed, too."""
    is_finished: bool
    is_going: bool
    """It is being deleted."""
    evicted: Problem | None
    """Why Kueue wants the quota back."""

    @property
    def settings_hash(self) -> str:
        """Hash of what it was made for."""
        return str(self.item["metadata"].get("annotations", {}).get(names.ANNOTATION_SPEC_HASH, ""))

    @property
    def is_usable(self) -> bool:
        """Whether pods may run on it."""
        return self.is_admitted and not (self.is_finished or self.is_going or self.evicted)

    def limit(self, role: Role) -> int:
        """Pods of a role that have quota."""
        assigned = self.item.get("status", {}).get("admission", {}).get("podSetAssignments", ())
        count = next((entry.get("count", 0) for entry in assigned if entry["name"] == role), 0)
        return int(count) - self.returned(role)

    def returned(self, role: Role) -> int:
        """Pods of a role whose quota was given back since the admission."""
        entries = self.item.get("status", {}).get("reclaimablePods", ())
        return next((int(entry["count"]) for entry in entries if entry["name"] == role), 0)


def read_claim(item: Object | None) -> Claim | None:
    """The claim in a Workload as the API server has it."""
    if item is None:
        return None
    evicted = _true(item, "Evicted")
    return Claim(
        item=item,
        is_reserved=_true(item, "QuotaReserved") is not None,
        is_admitted=_true(item, "Admitted") is not None,
        is_finished=_true(item, "Finished") is not None,
        is_going="deletionTimestamp" in item["metadata"],
        evicted=None if evicted is None else Problem(Reason.EVICTED_BY_QUEUE, f"{evicted['reason']}: {evicted.get('message', '')}"),
    )


def is_outdated(claim: Claim, job: RLVRJob) -> bool:
    """Whether a claim was made for something else than the job asks for now."""
    return claim.settings_hash != claim_hash(job)


def why_not_admitted(claim: Claim | None, job: RLVRJob) -> Problem:
    """What the job waits for, in Kueue's words."""
    queue = "" if job.spec.scheduling.queue is None else job.spec.scheduling.queue.name
    if claim is None or claim.is_going:
        return Problem(Reason.WAITING_FOR_QUOTA, f"queue {queue} is asked for quota")
    name = claim.item["metadata"]["name"]
    if claim.is_reserved and is_outdated(claim, job):
        return Problem(Reason.REQUESTS_CHANGED, "the job asks for something else now: its quota goes back, and it queues anew")
    if not claim.item["spec"].get("active", True):
        words = "is deactivated" if claim.evicted is None else f"was taken out: {claim.evicted.message}"
        return Problem(Reason.EVICTED_BY_QUEUE, f"Workload {name} {words}; set its spec.active to true to queue again")
    if claim.evicted is not None and claim.is_reserved:
        return claim.evicted
    return Problem(Reason.WAITING_FOR_QUOTA, f"queue {queue}: {_waits(claim.item)}")


def _waits(item: Object) -> str:
    checks = item.get("status", {}).get("admissionChecks", ())
    open_checks = [f"{check['name']}: {check.get('message') or check['state']}" for check in checks if check["state"] != "Ready"]
    if _true(item, "QuotaReserved") is not None:
        return f"quota is reserved; admission checks: {'; '.join(open_checks) or 'not yet asked'}"
    reserved = _condition(item, "QuotaReserved")
    return str(reserved["message"]) if reserved is not None else "Kueue has not looked at it yet"


def admitted_by(claim: Claim, asked: RLVRJob) -> str:
    """Who admitted a job, and what of it has no quota.

    Args:
        asked: the job as a person wrote it.
    """
    by = f"by ClusterQueue {claim.item['status']['admission'].get('clusterQueue', '')}"
    wanted = {"engines": (asked.spec.rollouts.replicas, claim.limit(Role.ROLLOUT)), "verifiers": (most(asked), claim.limit(Role.VERIFIER))}
    short = [f"{limit} of {count} {noun}" for noun, (count, limit) in wanted.items() if count > limit]
    if not short:
        return by
    return f"{by}, with quota for {' and '.join(short)}: suspend and resume the job to queue for all of them"


def capped(job: RLVRJob, claim: Claim) -> RLVRJob:
    """The job with no more engines and verifiers than it has quota for."""
    engines, verifiers = job.spec.rollouts, job.spec.verifiers
    limits = {"rollouts": claim.limit(Role.ROLLOUT), "verifiers": claim.limit(Role.VERIFIER)}
    if engines.replicas <= limits["rollouts"] and most(job) <= limits["verifiers"]:
        return job
    upper = None if verifiers.max_replicas is None else min(verifiers.max_replicas, limits["verifiers"])
    spec = job.spec.model_copy(
        update={
            "rollouts": engines.model_copy(update={"replicas": min(engines.replicas, limits["rollouts"])}),
            "verifiers": verifiers.model_copy(
                update={"replicas": min(verifiers.replicas, limits["verifiers"]), "max_replicas": upper}
            ),
        }
    )  # fmt: skip
    return job.model_copy(update={"spec": spec})


def placements(item: Object, flavors: Mapping[str, Object]) -> dict[Role, Placement]:
    """Where an admitted Workload's pods go: node labels and tolerations of the flavors, and what admission checks add.

    Args:
        flavors: ResourceFlavors by name, all that the admission names.
    """
    checks = [update for check in item["status"].get("admissionChecks", ()) for update in check.get("podSetUpdates", ())]
    found = {}
    for assignment in item["status"]["admission"]["podSetAssignments"]:
        used = [flavors[name].get("spec", {}) for name in sorted(set(assignment.get("flavors", {}).values()))]
        updates = [update for update in checks if update["name"] == assignment["name"]]
        found[Role(assignment["name"])] = Placement(
            node_selector=_merged([spec.get("nodeLabels", {}) for spec in used] + [update.get("nodeSelector", {}) for update in updates]),
            tolerations=tuple(entry for source in (*used, *updates) for entry in source.get("tolerations", ())),
            labels={names.KUEUE_POD_SET: assignment["name"], **_merged([update.get("labels", {}) for update in updates])},
            annotations={names.KUEUE_WORKLOAD: item["metadata"]["name"], **_merged([update.get("annotations", {}) for update in updates])},
        )
    return found


def flavor_names(item: Object) -> set[str]:
    """ResourceFlavors that an admission names."""
    assigned = item["status"]["admission"]["podSetAssignments"]
    return {name for entry in assigned for name in entry.get("flavors", {}).values()}


def released(claim: Claim, now: datetime) -> Object:
    """Gives the quota of an evicted claim back, once no pod is left."""
    condition = _true(claim.item, "Evicted") or {"reason": "Evicted", "message": ""}
    reason, message = condition["reason"], condition.get("message", "")
    changes = [
        ("QuotaReserved", "False", "Pending", message),
        ("Admitted", "False", "NoReservation", "The workload has no reservation"),
        ("Requeued", "True" if reason in REQUEUED_AT_ONCE else "False", reason, message),
        ("PodsReady", "False", "WaitForStart", "No pod of the job exists"),
    ]
    return _patch(claim.item, changes, now, admission=None, reclaimablePods=None)


def finished(claim: Claim, has_failed: bool, message: str, now: datetime) -> Object:
    """Ends a claim for good."""
    return _patch(claim.item, [("Finished", "True", "Failed" if has_failed else "Succeeded", message)], now)


def in_use(claim: Claim, is_ready: bool, spare: Mapping[Role, int], now: datetime) -> Object | None:
    """Tells Kueue how the pods of an admitted claim are; None where it knows.

    Args:
        is_ready: all that the job needs was ready since the admission.
        spare: pods of roles that are gone and not wanted any more.
    """
    changes = []
    if is_ready and _true(claim.item, "PodsReady") is None:
        changes.append(("PodsReady", "True", "Started", "All pods that the job needs were ready since the admission"))
    returned = {role: claim.returned(role) for role in Role}
    after = {role: count + max(0, spare.get(role, 0)) for role, count in returned.items()}
    if not changes and after == returned:
        return None
    lists = {} if after == returned else {"reclaimablePods": [{"name": str(role), "count": n} for role, n in after.items() if n]}
    return _patch(claim.item, changes, now, **lists)


def _patch(item: Object, changes: list[tuple[str, str, str, str]], now: datetime, **status: Any) -> Object:
    """A merge patch of the status, for the version that was seen."""
    conditions = {entry["type"]: entry for entry in item.get("status", {}).get("conditions", ())}
    for kind, value, reason, message in changes:
        before = conditions.get(kind, {})
        since = before["lastTransitionTime"] if before.get("status") == value else now.strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions[kind] = {
            "type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": since,
            "observedGeneration": item["metadata"]["generation"],
        }  # fmt: skip
    return {
        "metadata": {"resourceVersion": item["metadata"]["resourceVersion"]},
        "status": {**({"conditions": list(conditions.values())} if changes else {}), **status},
    }


def _condition(item: Object, kind: str) -> Object | None:
    return next((entry for entry in item.get("status", {}).get("conditions", ()) if entry["type"] == kind), None)


def _true(item: Object, kind: str) -> Object | None:
    found = _condition(item, kind)
    return found if found is not None and found["status"] == "True" else None


def _merged(parts: list[Mapping[str, str]]) -> dict[str, str]:
    return {key: value for part in parts for key, value in part.items()}
