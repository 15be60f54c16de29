"""Jobs and their surroundings for tests of the operator: what a person wrote, whose it is, and where it runs."""

import copy
from datetime import UTC, datetime

from rlvr_api.process import Role
from rlvr_api.spec import RLVRJob
from rlvr_operator.render import Owner, Site

NOW = datetime(2026, 5, 4, 9, 0, tzinfo=UTC)
OWNER = Owner("arithmetic", "research", "5d2c1f6e-9d0b-4f7e-8f0a-0c7d0e3b1a11")
SITE = Site(images={role: f"example.test/rlvr-{role}:1" for role in Role})

SMALL = {
    "model": {"uri": "s3://models/tiny", "maxModelLen": 64},
    "storage": {"uri": "s3://runs", "endpoint": "http://store:8333", "credentialsSecret": {"name": "s3"}},
    "environments": [{"name": "sums", "arithmetic": {}}],
    "sampling": {"maxTokens": 8},
    "stages": [{"name": "climb", "rlvr": {"steps": 20}}],
}


def manifest(name=OWNER.name, **sections):
    """A job as a person writes it: the smallest one, with each of `sections` (snake_case) merged into its part of the spec."""
    spec = copy.deepcopy(SMALL)
    for section, value in sections.items():
        key = {"failure_policy": "failurePolicy"}.get(section, section)
        spec[key] = {**spec.get(key, {}), **value} if isinstance(value, dict) else value
    metadata = {"name": name, "namespace": OWNER.namespace}
    return {"apiVersion": "rlvr.dev/v1alpha1", "kind": "RLVRJob", "metadata": metadata, "spec": spec}


def make_job(name=OWNER.name, **sections):
    """The same, validated."""
    return RLVRJob.model_validate(manifest(name, **sections))
