"""The whole thing on one machine: real vLLM, real verifier service, real S3; and the learner killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rlvr_trainer.pretrained import write_tiny_model

JOB = """
apiVersion: rlvr.dev/v1alpha1
kind: RLVRJob
metadata: {{name: {name}}}
spec:
  model: {{uri: "file://{model}", maxModelLen: 64}}
  environments: [{{name: sums, arithmetic: {{instruction: "{{problem}}="}}}}]
  sampling: {{maxTokens: 3}}
  stages: [{{name: climb, rlvr: {{steps: {steps}, promptsPerStep: 8, groupSize: 4, optimizer: {{learningRate: 1.0e-3}}}}}}]
  evaluation: {{tasksPerEnvironment: 8, samplesPerTask: 4}}
  learner: {{checkpoint: {{everySteps: 3, keepLast: 2}}}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_model(folder)
    return folder


@pytest.fixture
def job(tmp_path: Path, model: Path) -> Callable[[str, int], Path]:
    def write(name: str, steps: int) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(JOB.format(name=name, model=model, steps=steps))
        return path

    return write


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def start(path: Path, processes: list["subprocess.Popen[str]"]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "rlvr_api", "run", str(path), "--runs-dir", str(path.parent / "runs"), "--plain"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    processes.append(process)
    return process


def step_of(folder: Path) -> int:
    status = folder / "status.json"
    progress = json.loads(status.read_text()).get("progress") if status.is_file() else None
    return progress["step"] if progress else 0


def test_a_job_survives_a_killed_learner_and_ends_with_a_report(
    job: Callable[[str, int], Path], processes: list["subprocess.Popen[str]"]
) -> None:
    path = job("tiny", 30)
    run = start(path, processes)
    folder = path.parent / "runs" / "tiny"
    deadline = time.monotonic() + 200
    while step_of(folder) < 5:
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline, "no fifth step"
        time.sleep(0.1)
    learners = [child for child in psutil.Process(run.pid).children(recursive=True) if "rlvr_trainer" in child.cmdline()]
    assert learners
    os.kill(learners[0].pid, signal.SIGKILL)
    output, _ = run.communicate(timeout=250)
    assert run.returncode == 0, output
    assert "attempt 2" in output, output
    assert json.loads((folder / "status.json").read_text())["phase"] == "Succeeded"
    assert "<html" in (folder / "report.html").read_text()


def test_a_job_that_cannot_run_is_refused_in_one_line_with_exit_code_2(
    job: Callable[[str, int], Path], processes: list["subprocess.Popen[str]"]
) -> None:
    path = job("nomodel", 3)
    path.write_text(path.read_text().replace("file:///", "file:///nowhere/"))
    run = start(path, processes)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 2, output
    assert "nowhere" in output
