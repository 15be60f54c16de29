"""The verifier service as a process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from commands import free_port, wait_for

from rlvr_api.process import Variable
from rlvr_api.spec import RLVRJob

START_SECONDS = 60


def write_job(job: RLVRJob, folder: Path) -> Path:
    """The file of a job."""
    file = folder / "job.json"
    file.write_text(job.model_dump_json(by_alias=True, exclude_none=True))
    return file


def is_ready(url: str) -> bool:
    """Whether a service takes requests."""
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def start_service(job_file: Path, python_path: str = "") -> "tuple[subprocess.Popen[str], str]":
    """The service and its address, once it is ready or has ended; imports from `python_path` first."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    path = os.pathsep.join(part for part in (python_path, os.environ.get("PYTHONPATH")) if part)
    env = {**os.environ, Variable.JOB_FILE: str(job_file), "PYTHONPATH": path}
    command = [sys.executable, "-m", "rlvr_verifier", "--port", str(port)]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: process.poll() is not None or is_ready(url), START_SECONDS, "the service is neither ready nor over")
    return process, url


@contextmanager
def serving(job: RLVRJob, folder: Path, python_path: str = "") -> Iterator[httpx.Client]:
    """A client of the service of a job."""
    process, url = start_service(write_job(job, folder), python_path)
    try:
        assert process.poll() is None, process.communicate()[1]
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield client
    finally:
        process.kill()
        process.communicate()
