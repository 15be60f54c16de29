"""The pod of a workload: restricted, non-root, with the mounts that `site.PLACES` promises and the probes of the plan."""

import math
from collections.abc import Iterable, Mapping

from rlvr_api import names
from rlvr_api.pods import Pod, Toleration
from rlvr_api.process import JUDGE_API_KEY, TEACHER_API_KEY, Role, judge_key_variable
from rlvr_api.spec import RLVRJob
from rlvr_operator.plan import Preparation, Workload
from rlvr_operator.render.sandbox import VOLUME, sandbox_container, sandbox_mount
from rlvr_operator.render.site import ANYWHERE, JOB_DIR, MODEL_DIR, SEAL_DIR, WORK_DIR, Object, Owner, Placement, Site, traceparent

USER_ID = 10001
"""User and group of every process; images are built for it."""
NODE_LOST_SECONDS = 30
"""How long a pod stays on a node that does not answer; Kubernetes' own default is 300."""
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def pod_template(
    job: RLVRJob, owner: Owner, site: Site, workload: Workload, image: str, settings_hash: str, *,
    attempt: int | None = None, preparation: Preparation | None = None, grace_seconds: float = 30.0, restart: str = "Always",
    subdomain: str | None = None, placement: Placement = ANYWHERE,
) -> Object:  # fmt: skip
    """The pod template of a role.

    Args:
        preparation: runs first, as init container.
        grace_seconds: between SIGTERM and SIGKILL.
        subdomain: headless Service under which pods are known by name.
        placement: where the job's queue has it run.
    """
    role, settings = workload.role, _settings(job, workload.role)
    spec: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "serviceAccountName": names.service_account_name(owner.name),
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": math.ceil(grace_seconds),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(job, owner, site, workload, image)],
        "volumes": _volumes(owner, role, settings),
        "tolerations": [*_node_loss(), *map(_toleration, settings.tolerations), *placement.tolerations],
    }
    before = [] if preparation is None else [_init_container(job, site, preparation, image, role)]
    if workload.sidecar is not None:
        before.append(sandbox_container(job, site, workload.sidecar, image))
        spec["volumes"].append(VOLUME)
        if site.sandbox_user_namespaces:
            spec["hostUsers"] = False
    if before:
        spec["initContainers"] = before
    spec |= _placement(job, owner, role, settings, placement)
    if subdomain is not None:
        spec["subdomain"] = subdomain
    if site.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in site.pull_secrets]
    labels = {**placement.labels, **names.MANAGED_BY, **names.labels(owner.name, role, attempt), names.LABEL_JOB_UID: owner.uid}
    annotations = {**settings.annotations, **placement.annotations, names.ANNOTATION_SPEC_HASH: settings_hash}
    return {
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": spec,
    }


def _settings(job: RLVRJob, role: Role) -> Pod:
    return {Role.ROLLOUT: job.spec.rollouts.pod, Role.VERIFIER: job.spec.verifiers.pod, Role.LEARNER: job.spec.learner.pod}[role]


def _container(job: RLVRJob, owner: Owner, site: Site, workload: Workload, image: str) -> Object:
    role, settings = workload.role, _settings(job, workload.role)
    gpus = {job.spec.scheduling.gpu_resource: str(workload.gpus)} if workload.gpus else {}
    return {
        "name": str(role),
        "image": image,
        "imagePullPolicy": site.pull_policy,
        "command": list(workload.command),
        "env": _env(job, {**workload.env, **_own_env(job, owner)}, workload.needs_storage)
        + _teacher_key(job, role)
        + _judge_keys(job, role),
        "ports": [{"name": "http", "containerPort": workload.port, "protocol": "TCP"}],
        "resources": _resources({**settings.resources.requests, **gpus}, {**settings.resources.limits, **gpus}),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        # NVIDIA's container hook writes into the root file system of containers that get a GPU.
        "securityContext": _locked(read_only_root=not workload.gpus),
        "volumeMounts": [*_mounts(role), *([] if workload.sidecar is None else [sandbox_mount(read_only=True)])],
        **_probes(job, workload),
    }


def _init_container(job: RLVRJob, site: Site, preparation: Preparation, image: str, role: Role) -> Object:
    return {
        "name": "model",
        "image": image,
        "imagePullPolicy": site.pull_policy,
        "command": list(preparation.command),
        "env": _env(job, {**preparation.env, "HOME": "/tmp"}, needs_storage=True),  # noqa: S108
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": _locked(read_only_root=True),
        "volumeMounts": _mounts(role),
    }


def _own_env(job: RLVRJob, owner: Owner) -> dict[str, str]:
    """Variables that only pods have."""
    home = {"HOME": "/tmp"}  # noqa: S108 - an emptyDir of the pod's own
    return home if job.spec.observability.tracing is None else {**home, "TRACEPARENT": traceparent(owner.uid)}


def _env(job: RLVRJob, plain: Mapping[str, str], needs_storage: bool) -> list[Object]:
    env: list[Object] = [{"name": name, "value": plain[name]} for name in sorted(plain)]
    secret = job.spec.storage.credentials_secret
    if needs_storage and secret is not None:
        env += [{"name": key, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": key}}} for key in CREDENTIALS]
    return env


def _teacher_key(job: RLVRJob, role: Role) -> list[Object]:
    if role is not Role.LEARNER:
        return []
    found = dict.fromkeys(secret.name for secret in job.spec.teacher_secrets)
    return [{"name": TEACHER_API_KEY, "valueFrom": {"secretKeyRef": {"name": name, "key": TEACHER_API_KEY}}} for name in found]


def _judge_keys(job: RLVRJob, role: Role) -> list[Object]:
    if role is not Role.VERIFIER:
        return []
    found = [(environment.name, environment.judge.credentials_secret) for environment in job.spec.environments if environment.judge]
    return [
        {"name": judge_key_variable(name), "valueFrom": {"secretKeyRef": {"name": secret.name, "key": JUDGE_API_KEY}}}
        for name, secret in found
        if secret is not None
    ]


def _resources(requests: Mapping[str, str], limits: Mapping[str, str]) -> Object:
    return {
        **({"requests": dict(sorted(requests.items()))} if requests else {}),
        **({"limits": dict(sorted(limits.items()))} if limits else {}),
    }


def _locked(read_only_root: bool) -> Object:
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": read_only_root, "capabilities": {"drop": ["ALL"]}}


def _mounts(role: Role) -> list[Object]:
    mounts: list[Object] = [
        {"name": "job", "mountPath": JOB_DIR, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "work", "mountPath": WORK_DIR},
    ]
    if role is Role.VERIFIER:
        return [*mounts, {"name": "seal", "mountPath": SEAL_DIR, "readOnly": True}]
    return [*mounts, {"name": "model", "mountPath": MODEL_DIR}]


def _volumes(owner: Owner, role: Role, settings: Pod) -> list[Object]:
    volumes: list[Object] = [
        {"name": "job", "configMap": {"name": names.config_map_name(owner.name)}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "work", "emptyDir": {}},
    ]
    if role is Role.VERIFIER:
        return [*volumes, {"name": "seal", "secret": {"secretName": names.seal_secret_name(owner.name), "defaultMode": 0o440}}]
    return [*volumes, {"name": "model", "emptyDir": {}}]


def _probes(job: RLVRJob, workload: Workload) -> Object:
    """Readiness as the plan says; liveness far more patient: a process that computes on every core answers late and is not dead."""
    alive = "/health" if workload.role is Role.ROLLOUT else "/healthz"
    starts = max(1, math.ceil(job.spec.deadlines.provisioning_seconds / 2))
    return {
        "startupProbe": _probe(alive, period_seconds=2, failures=starts),
        "readinessProbe": _probe(workload.readiness.path, period_seconds=2, failures=3),
        "livenessProbe": _probe(alive, period_seconds=10, failures=12),
    }


def _probe(path: str, period_seconds: int, failures: int) -> Object:
    return {"httpGet": {"path": path, "port": "http"}, "periodSeconds": period_seconds, "timeoutSeconds": 10, "failureThreshold": failures}


def _placement(job: RLVRJob, owner: Owner, role: Role, settings: Pod, admitted: Placement) -> Object:
    scheduling, fields = job.spec.scheduling, Object()
    if selector := {**settings.node_selector, **admitted.node_selector}:
        fields["nodeSelector"] = selector
    if scheduling.priority_class_name is not None:
        fields["priorityClassName"] = scheduling.priority_class_name
    if scheduling.topology_key is not None and role is not Role.VERIFIER:
        near = {"labelSelector": {"matchLabels": {names.LABEL_JOB: owner.name}}, "topologyKey": scheduling.topology_key}
        preferred = [{"weight": 100, "podAffinityTerm": near}]
        fields["affinity"] = {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    return fields


def _node_loss() -> Iterable[Object]:
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        yield {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NODE_LOST_SECONDS}


def _toleration(toleration: Toleration) -> Object:
    fields = {
        "key": toleration.key,
        "operator": toleration.operator,
        "value": toleration.value,
        "effect": toleration.effect,
        "tolerationSeconds": toleration.toleration_seconds,
    }
    return {name: value for name, value in fields.items() if value is not None}
