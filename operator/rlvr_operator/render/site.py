"""What rendering needs besides the job: whose the objects are, and what the installation says of images and of the operator itself."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlvr_api import names
from rlvr_api.process import ENGINE_PORT, LEARNER_STATUS_PORT, VERIFIER_PORT, Role
from rlvr_api.spec import RLVRJob
from rlvr_operator.plan import Address, Addresses, Places

Object = dict[str, Any]
"""A Kubernetes object as plain data."""

PYTHON = "/opt/venv/bin/python"
JOB_DIR = "/etc/rlvr"
SEAL_DIR = "/var/run/rlvr/seal"
MODEL_DIR = "/var/lib/rlvr/model"
WORK_DIR = "/var/lib/rlvr/work"
SANDBOX_DIR = "/var/run/rlvr/sandbox"
PLACES = Places(
    python=PYTHON,
    job_file=f"{JOB_DIR}/job.json",
    model_dir=MODEL_DIR,
    seal_key_file=f"{SEAL_DIR}/key",
    work_dir=WORK_DIR,
    sandbox_socket=f"{SANDBOX_DIR}/socket",
    last_progress_file="/dev/termination-log",
    openmp_library="/opt/venv/lib/libiomp5.so",
)
"""Where processes find things in the images and their mounts."""

NOT_STARTED_WITH: Mapping[str, Any] = {
    "suspend": True,
    "ttl": True,
    "failure_policy": True,
    "rollouts": {"replicas", "min_available"},
    "verifiers": {"replicas", "max_replicas"},
    "scheduling": {"disruption_budget", "queue"},
}
"""Fields of a spec that no process is started with."""


@dataclass(frozen=True)
class Owner:
    """The job that objects belong to, as it is on the API server."""

    name: str
    namespace: str
    uid: str

    def reference(self) -> Object:
        """The owner reference of every child."""
        return {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }


@dataclass(frozen=True)
class Site:
    """What the operator's installation says of all jobs."""

    images: Mapping[Role, str]
    """Default image of each role; a job's status pins those that it began with."""
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    operator_namespace: str = "rlvr-system"
    operator_labels: Mapping[str, str] = field(default_factory=lambda: {"app.kubernetes.io/name": "rlvr-operator"})
    """Labels of the operator's pods, which NetworkPolicies let in."""
    metrics_from: tuple[Object, ...] = ()
    """Peers, as in a NetworkPolicy, that may read the metrics of learners and verifiers."""
    sandbox_profile: str = "rlvr-sandbox.json"
    """Seccomp profile on the nodes, for sandboxes whose slots have namespaces of their own."""
    sandbox_user_namespaces: bool = False
    """Whether pods that run what a model wrote have a user namespace of their own: the nodes must offer it."""


@dataclass(frozen=True)
class Placement:
    """What the admission by a queue adds to the pods of a role. No reason to replace a pod: another admission finds none."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Object, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


ANYWHERE = Placement()


def metadata(owner: Owner, name: str, role: Role | None = None, attempt: int | None = None) -> Object:
    """Metadata of a child."""
    own = {names.LABEL_JOB: owner.name} if role is None else names.labels(owner.name, role, attempt)
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": {**names.MANAGED_BY, **own},
        "ownerReferences": [owner.reference()],
    }


def addresses(job: RLVRJob, owner: Owner, attempt: int) -> Addresses:
    """Where a job's processes reach each other, by names of the cluster's DNS."""

    def host(role: Role, pod: str = "") -> str:
        return f"{pod}{'.' if pod else ''}{names.service_name(owner.name, role)}.{owner.namespace}.svc"

    rollout = names.child_name(owner.name, Role.ROLLOUT)
    learner_pod = f"{names.child_name(owner.name, Role.LEARNER, attempt)}-0"
    return Addresses(
        bind_host="0.0.0.0",  # noqa: S104 - pods are reached from outside; NetworkPolicies say by whom
        engines=tuple(Address(host(Role.ROLLOUT, f"{rollout}-{n}"), ENGINE_PORT) for n in range(job.spec.rollouts.replicas)),
        verifier=Address(host(Role.VERIFIER), VERIFIER_PORT),
        learner=Address(host(Role.LEARNER, learner_pod), LEARNER_STATUS_PORT),
    )


def spec_hash(job: RLVRJob, role: Role, image: str) -> str:
    """Hash of the settings that a role's processes are started with; pods with another one are out of date.

    Left out is what changes nothing for them: numbers of replicas, other roles, what the operator alone reads. Defaults are, too: a version
    that knows one more field, or another default, makes no running pod out of date.
    """
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=NOT_STARTED_WITH)
    if role is Role.VERIFIER:  # the rest of it is for the learner
        spec["integrity"] = {name: value for name, value in spec.get("integrity", {}).items() if name in ("audit", "canaryRate")}
    keep = {
        Role.ROLLOUT: ("model", "precision", "rollouts", "weightSync", "observability", "scheduling", "storage"),
        Role.VERIFIER: ("environments", "integrity", "verifiers", "observability", "scheduling", "storage"),
        Role.LEARNER: tuple(set(spec) - {"rollouts", "verifiers"}),
    }[role]
    text = json.dumps({"image": image, **{name: spec[name] for name in keep if spec.get(name)}}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def traceparent(uid: str) -> str:
    """W3C trace context of a job: its trace id is its uid, so that operator and pods name the same trace without a word between them."""
    return f"00-{uuid.UUID(uid).hex}-{hashlib.sha256(uid.encode()).hexdigest()[:16]}-01"
