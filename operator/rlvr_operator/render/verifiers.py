"""The verifier service: a Deployment. It keeps no state, so new settings roll through it and a lost pod is nobody's loss."""

from rlvr_api import names
from rlvr_api.process import Role
from rlvr_api.spec import RLVRJob
from rlvr_operator.autoscale import Scale
from rlvr_operator.plan import plan
from rlvr_operator.render.pod import pod_template
from rlvr_operator.render.site import ANYWHERE, PLACES, Object, Owner, Placement, Site, addresses, metadata, spec_hash


def verifiers(job: RLVRJob, owner: Owner, site: Site, image: str, scale: Scale, placement: Placement = ANYWHERE) -> Object:
    """The Deployment, with as many pods as the operator finds needed."""
    meta = metadata(owner, names.child_name(owner.name, Role.VERIFIER), Role.VERIFIER)
    if scale.changed is not None:
        meta["annotations"] = {names.ANNOTATION_SCALED_AT: scale.changed.isoformat()}
    workload = plan(job, addresses(job, owner, 1), PLACES, 1).of(Role.VERIFIER)[0]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "replicas": scale.replicas,
            "selector": {"matchLabels": names.labels(owner.name, Role.VERIFIER)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": pod_template(job, owner, site, workload, image, spec_hash(job, Role.VERIFIER, image), placement=placement),
        },
    }
