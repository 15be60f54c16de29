"""What the chart lets the operator do, and what the API server's audit log says that it did."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

CHART = Path(__file__).parents[2] / "charts" / "rlvr-operator"
IDENTITY = "operator"
"""Name of the ServiceAccount and of the Lease."""

Right = tuple[str, str, str]
"""Group, resource and verb."""


def chart_objects(namespace: str, *settings: str) -> list[dict[str, Any]]:
    """ServiceAccount and rights of an operator that is installed in a namespace and watches that one alone.

    Args:
        settings: values of the chart besides, as `name=value`.
    """
    templates = ("--show-only", "templates/rbac.yaml", "--show-only", "templates/serviceaccount.yaml")
    named = (f"fullnameOverride={IDENTITY}", f"watchNamespaces={{{namespace}}}", *settings)
    values = tuple(part for value in named for part in ("--set", value))
    command = ("helm", "template", IDENTITY, str(CHART), "--namespace", namespace, *values, *templates)
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return [item for item in YAML(typ="safe").load_all(text) if item]


def granted(namespace: str, *settings: str) -> set[Right]:
    """What those rules allow."""
    rules = [rule for item in chart_objects(namespace, *settings) for rule in item.get("rules", ())]
    return {
        (group, resource, verb) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
    }


@dataclass(frozen=True)
class AuditedRequest:
    """One request, as the API server saw it."""

    right: Right
    name: str
    code: int
    is_forbidden: bool

    @property
    def is_write(self) -> bool:
        """Whether it could change something; the Lease aside."""
        return self.right[2] not in ("get", "list", "watch") and self.right[1] != "leases"


@dataclass
class AuditLog:
    """The requests of one namespace's operator since a moment."""

    file: Path
    namespace: str
    offset: int = 0

    @staticmethod
    def path() -> Path | None:
        """The log of the API server that KUBECONFIG leads to, where this machine has it."""
        named = os.environ.get("RLVR_AUDIT_LOG")
        file = Path(named) if named else Path(os.environ.get("KUBECONFIG", "")).parent / "audit.log"
        return file if file.is_file() else None

    def skip(self) -> None:
        """From now on only."""
        self.offset = self.file.stat().st_size

    def requests(self) -> list[AuditedRequest]:
        """All of them."""
        user = f"system:serviceaccount:{self.namespace}:{IDENTITY}"
        return [_request(entry) for entry in self._entries(user.encode()) if entry["user"]["username"] == user and "objectRef" in entry]

    def _entries(self, mark: bytes) -> Iterator[dict[str, Any]]:
        with self.file.open("rb") as log:
            log.seek(self.offset)
            for line in log:
                if mark in line and line.endswith(b"\n"):
                    yield json.loads(line)


def _request(entry: dict[str, Any]) -> AuditedRequest:
    target, status = entry["objectRef"], entry.get("responseStatus", {})
    resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
    denied = entry.get("annotations", {}).get("authorization.k8s.io/decision") == "forbid"
    return AuditedRequest((target.get("apiGroup", ""), resource, entry["verb"]), target.get("name", ""), status.get("code", 0), denied)
