"""Kueue, as far as the operator must ask it: whether it is there, the priority of classes, and where the pods of an admitted job go.

A job that waits, or runs, costs no request: what was asked is remembered for each admission.
"""

import json
from collections.abc import Mapping
from dataclasses import replace

from rlvr_api import names
from rlvr_api.process import Role
from rlvr_api.spec import RLVRJob
from rlvr_operator.cache import Cache
from rlvr_operator.claims import Claim, Terms, flavor_names, placements, read_claim
from rlvr_operator.cluster import Cluster
from rlvr_operator.observe import Children, controller_uid, is_gone
from rlvr_operator.render import Object, Owner
from rlvr_operator.render.site import Placement
from rlvr_operator.render.workload import priority_class

TURNED_OFF = "the operator is installed without Kueue: set kueue.enabled of its chart"
NOT_THERE = f"the API server knows no Workload of {names.KUEUE_GROUP}/v1beta2: install Kueue 0.15 or newer"


class Kueue:
    """Answers what a job's queue means for it."""

    def __init__(self, cluster: Cluster, cache: Cache, is_enabled: bool) -> None:
        self._cluster, self._cache, self._is_enabled = cluster, cache, is_enabled
        self._placements: dict[tuple[str, str], tuple[str, dict[Role, Placement]]] = {}

    async def terms(self, owner: Owner, job: RLVRJob, seen: Children, may_ask: bool) -> tuple[Children, Terms]:
        """What is known of the queue that a job names; also the children with its Workload, should the watches not show it yet.

        Args:
            may_ask: the job wants to run; else nothing is asked.

        Raises:
            ClusterError: a request failed.
        """
        queue = job.spec.scheduling.queue
        if queue is None or not may_ask:
            return seen, Terms()
        if problem := self._problem():
            return seen, Terms(problem=f"spec.scheduling.queue {queue.name}: {problem}, or remove the field")
        seen = await self._with_workload(owner, seen)
        claim = read_claim(seen.objects.get(("Workload", names.kueue_workload_name(owner.name))))
        if claim is not None and claim.is_admitted:
            return seen, await self._admitted_terms(owner, claim)
        return seen, await self._waiting_terms(job, claim)

    def forget(self, namespace: str, name: str) -> None:
        """The job is gone."""
        self._placements.pop((namespace, name), None)

    def _problem(self) -> str:
        if not self._is_enabled:
            return TURNED_OFF
        return "" if self._cache.is_served("Workload") else NOT_THERE

    async def _with_workload(self, owner: Owner, seen: Children) -> Children:
        """Before pods are ended for want of a Workload, it is asked for."""
        slot = ("Workload", names.kueue_workload_name(owner.name))
        if slot in seen.objects or is_gone(seen):
            return seen
        found = await self._cluster.get(slot[0], owner.namespace, slot[1])
        if found is None or controller_uid(found) != owner.uid:
            return seen
        self._cache.put(found)
        return replace(seen, objects={**seen.objects, slot: found})

    async def _admitted_terms(self, owner: Owner, claim: Claim) -> Terms:
        status, key = claim.item["status"], (owner.namespace, owner.name)
        digest = json.dumps([claim.item["metadata"]["uid"], status.get("admission"), status.get("admissionChecks")], sort_keys=True)
        known = self._placements.get(key)
        if known is None or known[0] != digest:
            flavors: dict[str, Object] = {}
            for name in sorted(flavor_names(claim.item)):
                flavor = await self._cluster.get("ResourceFlavor", None, name)
                if flavor is None:
                    return Terms(problem=f"ResourceFlavor {name}, by which the job was admitted, is not there: create it")
                flavors[name] = flavor
            known = self._placements[key] = (digest, placements(claim.item, flavors))
        return Terms(placements=known[1])

    async def _waiting_terms(self, job: RLVRJob, claim: Claim | None) -> Terms:
        """Kueue itself keeps the priority of a Workload that it knows."""
        wanted = priority_class(job)
        if wanted is None:
            return Terms()
        spec: Mapping[str, object] = {} if claim is None else claim.item["spec"]
        if spec.get("priorityClassRef") == wanted and isinstance(known := spec.get("priority"), int):
            return Terms(priority=known)
        found = await self._cluster.get(wanted["kind"], None, wanted["name"])
        if found is None:
            return Terms(problem=f"{wanted['kind']} {wanted['name']}, which the job names for its queue, does not exist: create it")
        return Terms(priority=int(found["value"]))
