"""A verifier that pays for the question repeated, on the whole machinery: canaries find it, the job pauses after a checkpoint, and goes on
from there once it is told to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlvr_trainer.pretrained import write_tiny_model

JOB = """
apiVersion: rlvr.dev/v1alpha1
kind: RLVRJob
metadata: {{name: exploited}}
spec:
  model: {{uri: "file://{model}", maxModelLen: 64}}
  environments: [{{name: sums, arithmetic: {{instruction: "{{problem}}=", extraction: expression}}, audit: {{finalAnswer: {{}}}}}}]
  sampling: {{maxTokens: 3}}
  stages: [{{name: climb, rlvr: {{steps: 4, promptsPerStep: 8, groupSize: 4, optimizer: {{learningRate: 1.0e-3}}}}}}]
  evaluation: {{tasksPerEnvironment: 4, samplesPerTask: 2}}
  integrity: {{audit: {{positiveRate: 1.0, negativeRate: 0.5}}, canaryRate: 1.0, allowUncertified: true, onViolation: {on_violation}}}
"""


def run(file: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "rlvr_api", "run", str(file), "--runs-dir", str(file.parent / "runs"), "--plain"]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_job_whose_verifier_is_exploitable_pauses_and_goes_on_when_told_to(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny")
    file = tmp_path / "job.yaml"
    file.write_text(JOB.format(model=tmp_path / "tiny", on_violation="Pause"))
    paused = run(file)
    assert paused.returncode == 1, paused.stdout + paused.stderr
    for words in (
        "environment sums pays for exploits: question-echo",
        "paused (RewardNotTrustworthy)",
        "set integrity.onViolation to Warn",
    ):
        assert words in paused.stderr
    status = json.loads((tmp_path / "runs" / "exploited" / "status.json").read_text())
    trust = next(condition for condition in status["conditions"] if condition["type"] == "RewardTrustworthy")
    assert (status["phase"], trust["status"], trust["reason"]) == ("Suspended", "False", "CanaryPaid")
    assert status["checkpoint"]["step"] == status["progress"]["step"] == 1
    file.write_text(JOB.format(model=tmp_path / "tiny", on_violation="Warn"))
    finished = run(file)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    status = json.loads((tmp_path / "runs" / "exploited" / "status.json").read_text())
    assert (status["phase"], status["progress"]["step"], status["executionAttempt"]) == ("Succeeded", 4, 2)
    assert status["progress"]["rewardTrust"]["audited"] > 0
    assert "Can the reward be believed?" in (tmp_path / "runs" / "exploited" / "report.html").read_text()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_job_whose_verifier_is_exploitable_is_rolled_back_and_goes_on_from_there(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny")
    file = tmp_path / "job.yaml"
    file.write_text(JOB.format(model=tmp_path / "tiny", on_violation="Rollback"))
    paused = run(file)
    assert paused.returncode == 1, paused.stdout + paused.stderr
    for words in ("rolled back from step 1 to step 0 by integrity.onViolation", "question-echo", "paused (RewardNotTrustworthy)"):
        assert words in paused.stderr
    status = json.loads((tmp_path / "runs" / "exploited" / "status.json").read_text())
    assert (status["phase"], status["progress"]["rollback"]) == ("Suspended", {"number": 1, "fromStep": 1, "toStep": 0})
    assert "Stage climb was rolled back from step 1 to step 0" in (tmp_path / "runs" / "exploited" / "report.html").read_text()
    file.write_text(JOB.format(model=tmp_path / "tiny", on_violation="Warn"))
    finished = run(file)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    command = [sys.executable, "-m", "rlvr_api", "rollouts", "exploited", "--runs-dir", str(tmp_path / "runs"), "--step", "1", "--json"]
    now, before = (
        [json.loads(line) for line in subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout.splitlines()]
        for more in ([], ["--branch", "0"])
    )
    assert {one["group"] for one in now}.isdisjoint(one["group"] for one in before), "no prompt is given out twice"
