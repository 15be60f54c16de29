"""What a job asks of a queue: a Workload of Kueue with a set of pods for each role, which is admitted as a whole or not at all.

The sets hold what Kueue counts and places by, taken from the pods as they are rendered: requests, node selectors, tolerations, priority.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from rlvr_api import names
from rlvr_api.process import Role
from rlvr_api.spec import RLVRJob
from rlvr_operator.autoscale import Scale
from rlvr_operator.render.learner import learner
from rlvr_operator.render.rollouts import rollouts
from rlvr_operator.render.site import Object, Owner, Site, metadata
from rlvr_operator.render.verifiers import verifiers

CLAIMED_POD = {"resources", "node_selector", "tolerations"}
CLAIMED: Mapping[str, Any] = {
    "rollouts": {"gpus_per_replica": True, "pod": CLAIMED_POD},
    "learner": {"nodes": True, "gpus": True, "pod": CLAIMED_POD},
    "verifiers": {"workers": True, "sandbox_resources": True, "pod": CLAIMED_POD},
    "scheduling": {"gpu_resource", "priority_class_name", "queue"},
}
"""Fields of a spec that say what is asked of a queue; numbers of replicas aside, which `capped` sees to."""
POD_FIELDS = ("nodeSelector", "tolerations", "priorityClassName")
CONTAINER_FIELDS = ("name", "resources", "restartPolicy")


def workload(job: RLVRJob, owner: Owner, site: Site, images: Mapping[Role, str], priority: int) -> Object:
    """The Workload of a job that names a queue.

    Args:
        priority: of the class that the job names.

    Raises:
        ValueError: it names none.
    """
    queue = job.spec.scheduling.queue
    if queue is None:
        raise ValueError(f"job {owner.name} names no queue")
    scale = Scale(most(job), None)
    sets = {
        Role.LEARNER: (job.spec.learner.nodes, learner(job, owner, site, images[Role.LEARNER], 1)),
        Role.ROLLOUT: (job.spec.rollouts.replicas, rollouts(job, owner, site, images[Role.ROLLOUT])),
        Role.VERIFIER: (scale.replicas, verifiers(job, owner, site, images[Role.VERIFIER], scale)),
    }
    meta = metadata(owner, names.kueue_workload_name(owner.name))
    meta["labels"][names.KUEUE_JOB_UID] = owner.uid
    reference = priority_class(job)
    return {
        "apiVersion": f"{names.KUEUE_GROUP}/v1beta2",
        "kind": "Workload",
        "metadata": {**meta, "annotations": {names.ANNOTATION_SPEC_HASH: claim_hash(job)}},
        "spec": {
            "queueName": queue.name,
            "priority": priority,
            **({} if reference is None else {"priorityClassRef": reference}),
            "podSets": [
                {"name": str(role), "count": count, "template": {"spec": _bare(item["spec"]["template"]["spec"])}}
                for role, (count, item) in sets.items()
            ],
        },
    }


def claim_hash(job: RLVRJob) -> str:
    """Hash of what the job asks of its queue. It is of the spec, not of rendered pods: another version of the operator evicts nobody."""
    asked = job.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=dict(CLAIMED))
    if not job.spec.runs_code:
        asked.get("verifiers", {}).pop("workers", None)
    asked = {name: value for name, value in asked.items() if value}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def most(job: RLVRJob) -> int:
    """Verifiers that the job may have at a time."""
    return job.spec.verifiers.max_replicas or job.spec.verifiers.replicas


def priority_class(job: RLVRJob) -> Object | None:
    """Reference of the class that a job's place in its queue comes from."""
    scheduling = job.spec.scheduling
    if scheduling.queue is not None and scheduling.queue.priority_class_name is not None:
        return {"group": names.KUEUE_GROUP, "kind": "WorkloadPriorityClass", "name": scheduling.queue.priority_class_name}
    if scheduling.priority_class_name is not None:
        return {"group": "scheduling.k8s.io", "kind": "PriorityClass", "name": scheduling.priority_class_name}
    return None


def _bare(spec: Object) -> Object:
    kept = {name: spec[name] for name in POD_FIELDS if name in spec}
    for kind in ("initContainers", "containers"):
        if kind in spec:
            kept[kind] = [{name: container[name] for name in CONTAINER_FIELDS if name in container} for container in spec[kind]]
    return kept
