"""Finds a run and opens its object store, starting the embedded S3 server when a local run's own is no longer up.

RUN -> runs/<name>/job.json -> storage.endpoint, or the server over runs/<name>/s3 -> RunSource(job, store)
FILE, a job of a cluster as `kubectl get rlvr NAME -o yaml` prints it -> storage.endpoint, or --endpoint -> RunSource(job, store)
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML

from rlvr_api.cli import UserError
from rlvr_api.embedded_s3 import EmbeddedS3, EmbeddedS3Error, find_running
from rlvr_api.loading import InvalidJobError, load_job
from rlvr_api.spec import RLVRJob
from rlvr_api.status import RLVRJobStatus
from rlvr_trainer.storage.client import ObjectStore, S3Settings, split_uri

JOB_FILE = "job.json"
STATUS_FILE = "status.json"
S3_DATA = "s3"
S3_CONFIG = "s3.json"


@dataclass(frozen=True, slots=True)
class RunSource:
    """A run that can be read."""

    job: RLVRJob
    store: ObjectStore
    """The job's part of the object store."""
    status: RLVRJobStatus | None = None
    """What the runtime last wrote about it; None when it wrote nothing."""


@contextmanager
def open_run(run: str, runs_dir: Path, endpoint: str | None = None) -> Iterator[RunSource]:
    """Open a local run by its job's name or the path of its folder, or a job of a cluster by a file that holds it.

    Args:
        endpoint: where the store is reached from here, for a job of a cluster whose own address of it is not.

    Raises:
        UserError: there is no such run, or its store cannot be opened.
    """
    if Path(run).is_file():
        yield _open_cluster_job(Path(run), endpoint)
        return
    if endpoint is not None:
        raise UserError(
            f"--endpoint is for jobs of a cluster, and {run} is no file: write `kubectl get rlvr {run} -o yaml` to one, and name it"
        )
    folder = find_run(run, runs_dir)
    job = read_job(folder / JOB_FILE)
    with ExitStack() as stack:
        endpoint = job.spec.storage.endpoint
        if endpoint is None:
            endpoint = _embedded_endpoint(stack, folder, job)
        settings = S3Settings(endpoint, job.spec.storage.region, outage_seconds=0.0)  # a person waits for the answer
        store = ObjectStore.open(job.spec.storage.uri, settings, job.metadata.name)
        yield RunSource(job, store, read_status(folder / STATUS_FILE))


def _open_cluster_job(file: Path, endpoint: str | None) -> RunSource:
    try:
        text = file.read_bytes()
        job = load_job(text)
        status = YAML(typ="safe", pure=True).load(text).get("status")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except InvalidJobError as error:
        raise UserError(f"{file} is not a valid RLVRJob\n" + "\n".join(f"  {problem}" for problem in error.problems)) from error
    storage = job.spec.storage
    settings = S3Settings(endpoint or storage.endpoint, storage.region, outage_seconds=0.0)
    store = ObjectStore.open(storage.uri, settings, job.metadata.name)
    try:
        return RunSource(job, store, RLVRJobStatus.model_validate(status or {}))
    except ValidationError:  # of another version; a report is worth having without it
        return RunSource(job, store)


def find_run(run: str, runs_dir: Path) -> Path:
    """The folder of a run.

    Raises:
        UserError: there is none; the message lists the runs that exist.
    """
    for folder in (runs_dir / run, Path(run)):
        if (folder / JOB_FILE).is_file():
            return folder
    found = sorted(path.parent.name for path in runs_dir.glob(f"*/{JOB_FILE}"))
    known = f"runs there: {', '.join(found)}" if found else "there is none there yet; `rlvr run JOB.yaml` makes one"
    raise UserError(f"no run '{run}' in {runs_dir}/: {known}")


def read_job(path: Path) -> RLVRJob:
    """The job of a run, as the runtime resolved it.

    Raises:
        UserError: the file is missing or no job.
    """
    try:
        return RLVRJob.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path} is not a job that this version knows: {'.'.join(map(str, first['loc']))}: {first['msg']}; "
            "use the version that made the run"
        ) from error


def read_status(path: Path) -> RLVRJobStatus | None:
    """The status that the runtime wrote; None when there is none, or not of this version: a report is worth having without it."""
    try:
        return RLVRJobStatus.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _embedded_endpoint(stack: ExitStack, folder: Path, job: RLVRJob) -> str:
    if not (folder / S3_CONFIG).is_file():
        raise UserError(f"{folder} has no {S3_CONFIG}, so the run never started its store; start it with `rlvr run`")
    try:
        server = EmbeddedS3(folder / S3_DATA, folder / S3_CONFIG, bucket=split_uri(job.spec.storage.uri)[0])
        stack.enter_context(_environment(server.environment()))
        running = find_running(folder / S3_DATA)
        return running or stack.enter_context(server).endpoint
    except EmbeddedS3Error as error:
        raise UserError(str(error)) from error


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
