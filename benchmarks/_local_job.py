"""`rlvr run` of a job to its end, for benchmarks that look at what it wrote."""

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from rlvr_api.spec import RLVRJob
from rlvr_trainer.report.source import RunSource, open_run

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 1800.0


def run_job(job: RLVRJob, runs: Path) -> AbstractContextManager[RunSource]:
    """The finished run, to be opened; what the command prints goes to stderr. Engines can import from this folder."""
    runs.mkdir()
    file = runs / "job.json"
    file.write_text(job.model_dump_json(by_alias=True, exclude_unset=True))
    command = [sys.executable, "-m", "rlvr_api", "run", str(file), "--runs-dir", str(runs), "--plain"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, stdout=sys.stderr, check=True, timeout=TIMEOUT_SECONDS)
    return open_run(job.metadata.name, runs)
