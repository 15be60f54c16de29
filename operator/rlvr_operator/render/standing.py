"""What every job has for as long as it exists: its spec as a file, an identity without rights, addresses, and walls."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from rlvr_api import names
from rlvr_api.process import ENGINE_PORT, LEARNER_STATUS_PORT, VERIFIER_PORT, Role
from rlvr_api.spec import RLVRJob
from rlvr_operator.render.site import Object, Owner, Site, metadata

DNS_PORT = 53


def standing(job: RLVRJob, owner: Owner, site: Site) -> tuple[Object, ...]:
    """All of them, those first that pods cannot start without."""
    return (
        _config_map(job, owner),
        _service_account(owner),
        _service(owner, Role.ROLLOUT, ENGINE_PORT, headless=True),
        _service(owner, Role.LEARNER, LEARNER_STATUS_PORT, headless=True),
        _service(owner, Role.VERIFIER, VERIFIER_PORT, headless=False),
        *_network_policies(job, owner, site),
        *_disruption_budgets(job, owner),
    )


def _config_map(job: RLVRJob, owner: Owner) -> Object:
    """The job as its processes read it, without defaults: a pinned, older image would refuse a field that it does not know."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(owner, names.config_map_name(owner.name)),
        "data": {"job.json": job.model_dump_json(by_alias=True, exclude_defaults=True)},
    }


def _service_account(owner: Owner) -> Object:
    meta = metadata(owner, names.service_account_name(owner.name))
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta, "automountServiceAccountToken": False}


def _service(owner: Owner, role: Role, port: int, headless: bool) -> Object:
    spec: Object = {
        "selector": names.labels(owner.name, role),
        "ports": [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}],
    }
    if headless:  # learner and engines find each other before they are ready
        spec |= {"clusterIP": "None", "publishNotReadyAddresses": True}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata(owner, names.service_name(owner.name, role), role), "spec": spec}


def _network_policies(job: RLVRJob, owner: Owner, site: Site) -> Iterator[Object]:
    """The weight routes of an engine are open to whoever reaches them: nobody but this job's own pods and the operator does.

    gloo and NCCL connect all ranks with each other on random ports, hence all ports between engines and learner, and among learners.
    """
    mesh = {"from": [_pods(owner, Role.ROLLOUT), _pods(owner, Role.LEARNER)]}
    yield _policy(owner, Role.ROLLOUT, [mesh, _from_operator(site, ENGINE_PORT)])
    yield _policy(owner, Role.LEARNER, [mesh, _from_operator(site, LEARNER_STATUS_PORT), *_from_monitoring(site, LEARNER_STATUS_PORT)])
    judged = {"from": [_pods(owner, Role.LEARNER)], "ports": _tcp(VERIFIER_PORT)}
    ingress = [judged, _from_operator(site, VERIFIER_PORT), *_from_monitoring(site, VERIFIER_PORT)]
    yield _policy(owner, Role.VERIFIER, ingress, egress=_verifier_egress(job))


def _policy(owner: Owner, role: Role, ingress: list[Object], egress: list[Object] | None = None) -> Object:
    spec: Object = {"podSelector": {"matchLabels": names.labels(owner.name, role)}, "policyTypes": ["Ingress"], "ingress": ingress}
    if egress is not None:
        spec |= {"policyTypes": ["Egress", "Ingress"], "egress": egress}
    meta = metadata(owner, f"{owner.name}-{role}", role)
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}


def _verifier_egress(job: RLVRJob) -> list[Object]:
    """DNS, and the ports of store, trace collector and judges: an address in a job is a name, which a NetworkPolicy cannot hold."""
    dns = [{"protocol": protocol, "port": DNS_PORT} for protocol in ("TCP", "UDP")]
    tracing, storage = job.spec.observability.tracing, job.spec.storage
    urls = [storage.endpoint or "https://s3", *([tracing.endpoint] if tracing is not None else [])]
    urls += [environment.judge.endpoint for environment in job.spec.environments if environment.judge is not None]
    return [{"ports": dns}, {"ports": _tcp(*sorted({_port(url) for url in urls}))}]


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _tcp(*ports: int) -> list[Object]:
    return [{"protocol": "TCP", "port": port} for port in ports]


def _pods(owner: Owner, role: Role) -> Object:
    return {"podSelector": {"matchLabels": names.labels(owner.name, role)}}


def _from_operator(site: Site, port: int) -> Object:
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": site.operator_namespace}},
        "podSelector": {"matchLabels": dict(sorted(site.operator_labels.items()))},
    }
    return {"from": [operator], "ports": _tcp(port)}


def _from_monitoring(site: Site, port: int) -> list[Object]:
    return [{"from": list(site.metrics_from), "ports": _tcp(port)}] if site.metrics_from else []


def _disruption_budgets(job: RLVRJob, owner: Owner) -> Iterator[Object]:
    if not job.spec.scheduling.disruption_budget:
        return
    rollouts = job.spec.rollouts
    for role, least in ((Role.ROLLOUT, min(rollouts.min_available, rollouts.replicas)), (Role.LEARNER, job.spec.learner.nodes)):
        selector = {"matchLabels": names.labels(owner.name, role)}
        meta = metadata(owner, f"{owner.name}-{role}", role)
        spec = {"minAvailable": least, "selector": selector, "unhealthyPodEvictionPolicy": "AlwaysAllow"}
        yield {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta, "spec": spec}
