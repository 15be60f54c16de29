"""What the operator may do in a namespace that it watches: the rules of the chart."""

from typing import Any

WRITES = ["get", "list", "watch", "create", "patch", "delete"]
RULES: list[dict[str, Any]] = [
    {"apiGroups": ["rlvr.dev"], "resources": ["rlvrjobs"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["rlvr.dev"], "resources": ["rlvrjobs/status"], "verbs": ["patch"]},
    {"apiGroups": ["rlvr.dev"], "resources": ["rlvrjobs/finalizers"], "verbs": ["update"]},
    {"apiGroups": ["apps"], "resources": ["statefulsets", "deployments"], "verbs": WRITES},
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": WRITES},
    {"apiGroups": [""], "resources": ["services", "configmaps", "serviceaccounts"], "verbs": WRITES},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "delete"]},
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": WRITES},
    {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "verbs": WRITES},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list", "create", "patch"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
]


def as_objects(namespace: str) -> list[dict[str, Any]]:
    """A ServiceAccount `operator` with these rights."""
    meta = {"name": "operator", "namespace": namespace}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": RULES},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
            "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": namespace}],
        },
    ]
