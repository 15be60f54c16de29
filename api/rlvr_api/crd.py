"""The CustomResourceDefinition of RLVRJob, generated from the models.

    RLVRJob, RLVRJobStatus -> rlvr_api.schema.structural_schema -> wrapped with names, printer columns and subresources -> YAML

`metadata` is left to the API server; its one rule (the name's form) is a rule on the root that looks at creation only.
"""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from rlvr_api import names
from rlvr_api.schema import Schema, structural_schema
from rlvr_api.spec import RLVRJob
from rlvr_api.status import RLVRJobStatus

LINE_WIDTH = 140


def custom_resource_definition() -> dict[str, Any]:
    """The CRD as plain data."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
            },
            "scope": "Namespaced",
            "versions": [_version()],
        },
    }


def crd_yaml() -> str:
    """The CRD as YAML text."""
    writer = YAML()
    writer.width = LINE_WIDTH
    writer.representer.ignore_aliases = lambda _: True
    stream = StringIO()
    writer.dump(custom_resource_definition(), stream)
    return stream.getvalue()


def job_schema() -> Schema:
    """Schema of the whole object: metadata as the API server has it, spec and status from the models."""
    job = structural_schema(RLVRJob)
    job["properties"]["apiVersion"] = {"type": "string"}
    job["properties"]["kind"] = {"type": "string"}
    job["properties"]["metadata"] = {"type": "object"}
    job["properties"]["status"] = structural_schema(RLVRJobStatus)
    job["required"] = ["spec"]
    return job


def _version() -> dict[str, Any]:
    return {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [
            _column("Phase", "string", ".status.phase"),
            _column("Stage", "string", ".status.stage"),
            _column("Step", "integer", ".status.progress.step"),
            _column("Reward", "number", ".status.progress.reward"),
            _column("Held-out", "number", ".status.progress.heldOutPassRate"),
            _column("Rollouts", "string", ".status.rolloutsSummary"),
            _column("Restarts", "integer", ".status.restarts"),
            _column("Age", "date", ".metadata.creationTimestamp"),
            {**_column("Queue", "string", ".spec.scheduling.queue.name"), "priority": 1},
            {**_column("Reason", "string", ".status.reason"), "priority": 1},
            {**_column("Message", "string", ".status.message"), "priority": 1},
            {**_column("Weights", "integer", ".status.progress.weightVersion"), "priority": 1},
            {**_column("Checkpoint", "integer", ".status.checkpoint.step"), "priority": 1},
        ],
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.rollouts.replicas",
                "statusReplicasPath": ".status.rolloutReplicas",
                "labelSelectorPath": ".status.rolloutSelector",
            },
        },
        "schema": {"openAPIV3Schema": job_schema()},
    }


def _column(name: str, kind: str, path: str) -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path}
