"""The learner: one Job for each attempt, which never restarts anything. Any lost pod ends the attempt; the operator starts the next."""

from rlvr_api import names
from rlvr_api.process import Role
from rlvr_api.spec import RLVRJob
from rlvr_operator.plan import plan
from rlvr_operator.render.pod import pod_template
from rlvr_operator.render.site import ANYWHERE, PLACES, Object, Owner, Placement, Site, addresses, metadata, spec_hash


def learner(job: RLVRJob, owner: Owner, site: Site, image: str, attempt: int, placement: Placement = ANYWHERE) -> Object:
    """The Job of one attempt. It is only ever created: its engines' addresses are those of the moment, and later ones are told to it."""
    planned = plan(job, addresses(job, owner, attempt), PLACES, attempt)
    template = pod_template(
        job, owner, site, planned.of(Role.LEARNER)[0], image, spec_hash(job, Role.LEARNER, image),
        attempt=attempt, preparation=planned.model_source, grace_seconds=job.spec.deadlines.grace_seconds,
        restart="Never", subdomain=names.service_name(owner.name, Role.LEARNER), placement=placement,
    )  # fmt: skip
    meta = metadata(owner, names.child_name(owner.name, Role.LEARNER, attempt), Role.LEARNER, attempt)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**meta, "annotations": {names.ANNOTATION_SPEC_HASH: spec_hash(job, Role.LEARNER, image)}},
        "spec": {
            "completionMode": "Indexed",
            "completions": job.spec.learner.nodes,
            "parallelism": job.spec.learner.nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": template,
        },
    }
