"""What the learner process was started with: the job, and the addresses that the plan put into its environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlvr_api.process import Variable
from rlvr_api.spec import RLVRJob


class BadInputError(ValueError):
    """The job cannot run as written, and no restart would change that; the message is one line for a person."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """The learner's inputs."""

    job: RLVRJob
    attempt: int
    engine_urls: Mapping[str, str]
    """Base URLs by engine name, `rollout-<ordinal>`; none for a run that waits until it is told of some."""
    verifier_url: str
    advertised_host: str
    status_port: int
    model_dir: Path
    s3_endpoint: str | None
    work_dir: Path
    last_progress_file: Path | None = None
    """Where it leaves its progress when it ends in order."""
    node: int = 0
    """Which of the learner's nodes this is; the first one leads."""
    rendezvous_port: int = 0
    """Of the lead, for the other nodes; 0: any."""


def read_context(environ: Mapping[str, str] = os.environ) -> RunContext:
    """Read the environment that the plan set.

    Raises:
        BadInputError: a variable is missing or the job's file is not a valid job.
    """
    path = Path(_require(environ, Variable.JOB_FILE))
    try:
        job = RLVRJob.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInputError(f"the job in {path} cannot be read: {error}") from None
    urls = [url for url in _require(environ, Variable.ENGINE_URLS, or_empty=True).split(",") if url]
    return RunContext(
        job=job,
        attempt=int(_require(environ, Variable.ATTEMPT)),
        engine_urls={f"rollout-{ordinal}": url.rstrip("/") for ordinal, url in enumerate(urls)},
        verifier_url=_require(environ, Variable.VERIFIER_URL).rstrip("/"),
        advertised_host=_require(environ, Variable.ADVERTISED_HOST),
        status_port=int(_require(environ, Variable.STATUS_PORT)),
        model_dir=Path(_require(environ, Variable.MODEL_DIR)),
        s3_endpoint=job.spec.storage.endpoint or environ.get(Variable.S3_ENDPOINT),
        work_dir=Path(_require(environ, Variable.WORK_DIR)),
        node=int(environ.get(Variable.NODE_RANK, "0")) if job.spec.learner.nodes > 1 else 0,
        rendezvous_port=int(_require(environ, Variable.RENDEZVOUS_PORT)) if job.spec.learner.nodes > 1 else 0,
        last_progress_file=Path(last) if (last := environ.get(Variable.LAST_PROGRESS_FILE)) else None,
    )


def _require(environ: Mapping[str, str], name: Variable, or_empty: bool = False) -> str:
    value = environ.get(name)
    if value is None or not (value or or_empty):
        raise BadInputError(f"the environment variable {name} is not set; start the learner with `rlvr run` or the operator")
    return value
