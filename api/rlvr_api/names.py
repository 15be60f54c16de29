"""Every name that is derived from a job's name: child objects, processes, label keys. No other module spells one.

A job's name has at most 40 characters (`rlvr_api.model.Name`), so `<job>-rollout-<ordinal>` and `<job>-learner-<attempt>` stay DNS labels,
and StatefulSets and Jobs keep room for the suffixes that Kubernetes adds to their pods.
"""

from rlvr_api.process import Role

GROUP = "rlvr.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "RLVRJob"
PLURAL = "rlvrjobs"
SINGULAR = "rlvrjob"
SHORT_NAME = "rlvr"

MAX_JOB_NAME = 40
"""Characters of a job's name."""
MAX_LABEL = 63
"""Characters of a DNS label."""

LABEL_JOB = f"{GROUP}/job"
"""On every child: the job's name."""
LABEL_JOB_UID = f"{GROUP}/job-uid"
"""On pods: the job's uid. Their owners are of Kubernetes' making, and pods of an earlier job of the name can stay for a while."""
LABEL_ROLE = f"{GROUP}/role"
"""On every child: the role of its processes."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "rlvr-operator"}
"""On every child: what the operator's watches select."""
ANNOTATION_SPEC_HASH = f"{GROUP}/spec-hash"
"""On pods: hash of the settings that they were started with."""
ANNOTATION_SCALED_AT = f"{GROUP}/scaled-at"
"""On the verifiers' Deployment: when the operator last changed its replicas."""
KUEUE_GROUP = "kueue.x-k8s.io"
KUEUE_JOB_UID = f"{KUEUE_GROUP}/job-uid"
"""On the Workload: what Kueue knows the job by."""
KUEUE_POD_SET = f"{KUEUE_GROUP}/podset"
"""On pods that Kueue admitted, as a label: their pod set."""
KUEUE_WORKLOAD = f"{KUEUE_GROUP}/workload"
"""On pods that Kueue admitted, as an annotation: their Workload."""
LABEL_ATTEMPT = f"{GROUP}/attempt"
"""On the learner's objects: the attempt they belong to."""


def workload_name(role: Role, ordinal: int) -> str:
    """Name of a process within its job: `rollout-0`, `verifier-0`, `learner`. The learner is one process, so it has no ordinal."""
    return str(role) if role is Role.LEARNER else f"{role}-{ordinal}"


def child_name(job: str, role: Role, attempt: int | None = None) -> str:
    """Name of the object that holds a role's processes: `<job>-rollout`, `<job>-verifier`, `<job>-learner-<attempt>`.

    Raises:
        ValueError: a learner without an attempt, another role with one, or a name that is no DNS label any more.
    """
    if (attempt is not None) is not (role is Role.LEARNER):
        raise ValueError(f"only a learner's name carries the attempt: role {role}, attempt {attempt}")
    name = f"{job}-{role}" if attempt is None else f"{job}-{role}-{attempt}"
    if len(name) > MAX_LABEL:
        raise ValueError(
            f"'{name}' has {len(name)} characters, and a DNS label at most {MAX_LABEL}: shorten metadata.name to {MAX_JOB_NAME}"
        )
    return name


def service_name(job: str, role: Role) -> str:
    """Name of the Service in front of a role's pods, headless for engines and learner."""
    return f"{job}-{role}"


def config_map_name(job: str) -> str:
    """Name of the ConfigMap with the job as JSON."""
    return f"{job}-spec"


def seal_secret_name(job: str) -> str:
    """Name of the Secret with the key that seals gold answers."""
    return f"{job}-seal"


def kueue_workload_name(job: str) -> str:
    """Name of the Workload by which Kueue knows the job."""
    return f"{job}-kueue"


def service_account_name(job: str) -> str:
    """Name of the ServiceAccount of all pods of a job."""
    return f"{job}-pods"


def labels(job: str, role: Role, attempt: int | None = None) -> dict[str, str]:
    """Labels of a role's objects and pods."""
    pairs = {LABEL_JOB: job, LABEL_ROLE: str(role)}
    if attempt is not None:
        pairs[LABEL_ATTEMPT] = str(attempt)
    return pairs


def selector(job: str, role: Role) -> str:
    """Label selector of a role's pods, as the scale subresource wants it."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels(job, role).items()))
