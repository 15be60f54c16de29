"""The kinds of objects that the operator reads or writes, and where the API server keeps them."""

from dataclasses import dataclass

from rlvr_api import names


@dataclass(frozen=True)
class Kind:
    """One kind."""

    name: str
    group: str
    version: str
    plural: str
    is_child: bool = True
    """Belongs to jobs, and is watched by the label of children."""
    needs_kueue: bool = False
    """Is there only where Kueue is."""

    @property
    def api_version(self) -> str:
        """As in manifests."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of the collection, or of one object."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root, *(["namespaces", namespace] if namespace else []), self.plural, *([name] if name else [])]
        return "/".join([*parts, *([subresource] if subresource else [])])


KINDS = {
    kind.name: kind
    for kind in (
        Kind(names.KIND, names.GROUP, names.VERSION, names.PLURAL, is_child=False),
        Kind("Pod", "", "v1", "pods"),
        Kind("StatefulSet", "apps", "v1", "statefulsets"),
        Kind("Deployment", "apps", "v1", "deployments"),
        Kind("Job", "batch", "v1", "jobs"),
        Kind("ConfigMap", "", "v1", "configmaps"),
        Kind("ServiceAccount", "", "v1", "serviceaccounts"),
        Kind("Service", "", "v1", "services"),
        Kind("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies"),
        Kind("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets"),
        Kind("Workload", names.KUEUE_GROUP, "v1beta2", "workloads", needs_kueue=True),
        Kind("ResourceFlavor", names.KUEUE_GROUP, "v1beta2", "resourceflavors", is_child=False, needs_kueue=True),
        Kind("WorkloadPriorityClass", names.KUEUE_GROUP, "v1beta2", "workloadpriorityclasses", is_child=False, needs_kueue=True),
        Kind("PriorityClass", "scheduling.k8s.io", "v1", "priorityclasses", is_child=False),
        Kind("Secret", "", "v1", "secrets", is_child=False),
        Kind("Event", "", "v1", "events", is_child=False),
        Kind("Lease", "coordination.k8s.io", "v1", "leases", is_child=False),
    )
}
WATCHED = tuple(kind for kind in KINDS.values() if kind.is_child and not kind.needs_kueue)
WATCHED_WITH_KUEUE = (*WATCHED, KINDS["Workload"])
CHILD_SELECTOR = ",".join(f"{key}={value}" for key, value in names.MANAGED_BY.items())
