"""A verifier service of today for a job of then, as a child of this process, on loopback.

    job without audits, canaries and traces -> `python -m rlvr_verifier` -> ready -> its URL -> ended with the block

The command line is the plan's; a run's own seal is not used, since tasks are sampled anew.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from rlvr_api.cli import UserError
from rlvr_api.embedded_s3 import die_with_parent, end_process
from rlvr_api.integrity import Integrity
from rlvr_api.observability import Observability
from rlvr_api.process import Variable, verifier_command
from rlvr_api.spec import RLVRJob

HOST = "127.0.0.1"
POLL_SECONDS = 0.1
STOP_SECONDS = 15.0
TAIL_CHARACTERS = 500


def rescoring_job(job: RLVRJob, endpoint: str) -> RLVRJob:
    """The job with its environments alone: no audit and no canary, since nothing is trained.

    Args:
        endpoint: of the store that holds its datasets, as it is reached from here.
    """
    spec = job.spec
    changes = {
        "environments": tuple(environment.model_copy(update={"audit": None}) for environment in spec.environments),
        "integrity": Integrity(canary_rate=0.0, allow_uncertified=True),
        "observability": Observability(),
        "storage": spec.storage.model_copy(update={"endpoint": endpoint}),
        "verifiers": spec.verifiers.model_copy(update={"workers": min(spec.verifiers.workers, os.cpu_count() or 1)}),
    }
    return job.model_copy(update={"spec": spec.model_copy(update=changes)})


@contextmanager
def serving_verifier(job: RLVRJob) -> Iterator[str]:
    """The URL of a verifier service for `job`, while the block runs.

    Raises:
        UserError: it refuses the job, or is not ready within `deadlines.provisioningSeconds`.
    """
    with tempfile.TemporaryDirectory(prefix="rlvr-rescore-") as folder:
        job_file, log_file, port = Path(folder, "job.json"), Path(folder, "verifier.log"), _free_port()
        job_file.write_text(job.model_dump_json(by_alias=True))
        env = {**os.environ, Variable.JOB_FILE: str(job_file), Variable.WORK_DIR: folder, "OMP_NUM_THREADS": "1"}
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                verifier_command(sys.executable, HOST, port), env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=die_with_parent(),
            )  # fmt: skip
        try:
            _wait_until_ready(process, f"http://{HOST}:{port}", job.spec.deadlines.provisioning_seconds, log_file)
            yield f"http://{HOST}:{port}"
        finally:
            end_process(process, STOP_SECONDS)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, seconds: float, log_file: Path) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"the verifier of today refuses the run's environments: {_last_line(log_file)}")
        try:
            if httpx.get(f"{url}/readyz", timeout=5.0, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            time.sleep(POLL_SECONDS)
    raise UserError(f"the verifier was not ready within deadlines.provisioningSeconds {seconds:.0f}: {_last_line(log_file)}")


def _last_line(log_file: Path) -> str:
    lines = [line.strip() for line in log_file.read_text(errors="replace").splitlines() if line.strip()]
    return (lines or ["it said nothing"])[-1].removeprefix("error: ")[-TAIL_CHARACTERS:]


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])
