"""Rollout engines: a StatefulSet, so that each keeps its name. A new template touches no pod; the operator replaces them one by one."""

from rlvr_api import names
from rlvr_api.process import ENGINE_PORT, Role
from rlvr_api.spec import RLVRJob
from rlvr_operator.plan import engine_workload, model_source
from rlvr_operator.render.pod import pod_template
from rlvr_operator.render.site import ANYWHERE, PLACES, Object, Owner, Placement, Site, metadata, spec_hash


def rollouts(job: RLVRJob, owner: Owner, site: Site, image: str, placement: Placement = ANYWHERE) -> Object:
    """The StatefulSet of all engines."""
    workload = engine_workload(job, "0.0.0.0", ENGINE_PORT, PLACES, 0)  # noqa: S104 - see site.addresses
    preparation = model_source(job, PLACES.python, PLACES.job_file, PLACES.model_dir)
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(owner, names.child_name(owner.name, Role.ROLLOUT), Role.ROLLOUT),
        "spec": {
            "serviceName": names.service_name(owner.name, Role.ROLLOUT),
            "replicas": job.spec.rollouts.replicas,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": names.labels(owner.name, Role.ROLLOUT)},
            "template": pod_template(
                job, owner, site, workload, image, spec_hash(job, Role.ROLLOUT, image), preparation=preparation, placement=placement
            ),
        },
    }  # fmt: skip
