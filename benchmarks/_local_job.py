"""A job of sums, and `rlvr run` of it to its end, for benchmarks that look at what it wrote."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rlvr_api.spec import RLVRJob
from rlvr_trainer.report.source import RunSource, open_run

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 1800.0


ENVIRONMENT: Mapping[str, Any] = {"name": "sums", "arithmetic": {"operations": ["+"], "extraction": "lastInteger"}}
MAX_TOKENS = 11


def make_sums_job(name: str, model: Path, stages: Sequence[Mapping[str, Any]], rollouts: Mapping[str, Any], **spec: Any) -> RLVRJob:
    """A job of sums of two digits for two cores: one for the engine, one for the learner.

    Args:
        rollouts, spec: further settings.
    """
    return RLVRJob.model_validate({
        "apiVersion": "rlvr.dev/v1alpha1", "kind": "RLVRJob", "metadata": {"name": name},
        "spec": {
            "model": {"uri": f"file://{model}", "maxModelLen": 128}, "environments": [ENVIRONMENT],
            "sampling": {"temperature": 1.0, "maxTokens": MAX_TOKENS}, "stages": stages,
            "rollouts": {"replicas": 1, "cpuThreads": 1, **rollouts}, "learner": {"cpuThreads": 1, "tokensPerMicroBatch": 512}, **spec,
        },
    })  # fmt: skip


def run_job(job: RLVRJob, runs: Path) -> AbstractContextManager[RunSource]:
    """The finished run, to be opened; what the command prints goes to stderr. Engines can import from this folder."""
    runs.mkdir()
    file = runs / "job.json"
    file.write_text(job.model_dump_json(by_alias=True, exclude_unset=True))
    command = [sys.executable, "-m", "rlvr_api", "run", str(file), "--runs-dir", str(runs), "--plain"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, stdout=sys.stderr, check=True, timeout=TIMEOUT_SECONDS)
    return open_run(job.metadata.name, runs)
