"""What a process of a job finds in its environment: one list, so that the local runtime and the cluster cannot drift apart."""

from enum import StrEnum


class Role(StrEnum):
    """A part of a job that runs as processes."""

    ROLLOUT = "rollout"
    VERIFIER = "verifier"
    LEARNER = "learner"


class Variable(StrEnum):
    """Environment variables that the plan sets, and who reads them."""

    JOB_FILE = "RLVR_JOB_FILE"
    """All: path of the job as JSON, with every default filled in."""
    ATTEMPT = "RLVR_ATTEMPT"
    """Learner: number of this attempt, from 1. Commits and weight updates carry it; older attempts are refused."""
    ENGINE_URLS = "RLVR_ENGINE_URLS"
    """Learner: base URLs of the rollout engines at its start, comma-separated; may be empty. `PUT /engines` replaces them."""
    VERIFIER_URL = "RLVR_VERIFIER_URL"
    """Learner: base URL of the verifier service."""
    ADVERTISED_HOST = "RLVR_ADVERTISED_HOST"
    """Learner: host name or address under which engines reach its rendezvous store."""
    STATUS_PORT = "RLVR_STATUS_PORT"
    """Learner: port of its status endpoint."""
    MODEL_DIR = "RLVR_MODEL_DIR"
    """Rollout and learner: local folder of the model."""
    SEAL_KEY_FILE = "RLVR_SEAL_KEY_FILE"
    """Verifier: file with the 32-byte key that seals gold answers."""
    SANDBOX_SOCKET = "RLVR_SANDBOX_SOCKET"
    """Verifier: Unix socket of the container that runs what the model wrote. Unset, as in a local run: children of the service run it."""
    NODE_RANK = "JOB_COMPLETION_INDEX"
    """Learner of several pods: which of them this is, from 0; Kubernetes sets it. The first one leads."""
    RENDEZVOUS_PORT = "RLVR_RENDEZVOUS_PORT"
    """Learner of several pods: port of the first one, at its advertised host, where the processes of all meet."""
    LAST_PROGRESS_FILE = "RLVR_LAST_PROGRESS_FILE"
    """Learner: file to which it writes its progress when it ends in order, since nobody can ask it any more. In a pod, the termination
    message."""
    S3_ENDPOINT = "RLVR_S3_ENDPOINT"
    """Learner and verifier: S3 endpoint, when the job names none. Credentials are the usual AWS_ variables."""
    WORK_DIR = "RLVR_WORK_DIR"
    """All: a folder for scratch files of this process."""


def verifier_command(python: str, host: str, port: int) -> tuple[str, ...]:
    """Command line of the verifier service, for all who start one."""
    return (python, "-m", "rlvr_verifier", "--host", host, "--port", str(port))


TEACHER_API_KEY = "TEACHER_API_KEY"
"""Learner: bearer token for the teachers of `distill` stages, out of a Secret or the person's environment."""
JUDGE_API_KEY = "JUDGE_API_KEY"
"""Verifier: bearer token for the judges of all environments without a key of their own; out of the person's environment."""
MAX_LAST_PROGRESS_BYTES = 4096
"""Size of the file LAST_PROGRESS_FILE; Kubernetes cuts longer termination messages."""
VERIFIER_PORT = 8081
LEARNER_STATUS_PORT = 8082
LEARNER_RENDEZVOUS_PORT = 29400
ENGINE_PORT = 8000
"""Ports in the cluster; local runs take free ones."""


def judge_key_variable(environment: str) -> str:
    """Verifier: the variable with the bearer token for the judge of one environment, out of a Secret."""
    return f"{JUDGE_API_KEY}_{environment.upper().replace('-', '_')}"


class ExitCode:
    """Exit codes of the learner, and what a supervisor does about them."""

    DONE = 0
    """All stages are finished. Not restarted."""
    BAD_INPUT = 2
    """The job cannot run as written; the last line on stderr says why. Not restarted."""
    SUSPENDED = 75
    """Stopped on request after committing a checkpoint. Restarted when asked."""
    UNTRUSTWORTHY = 77
    """The reward cannot be believed (`integrity.onViolation: Pause` or `Rollback`); a checkpoint or a rollback is committed, and the last
    line on stderr says why. Restarted when the spec was changed."""
    SUPERSEDED = 76
    """A newer attempt has committed. Not restarted."""
