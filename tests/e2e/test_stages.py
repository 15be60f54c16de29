"""All stages of a job with real parts, its learner killed in each: the store tells of every index once, and the job ends as it should."""

import json
import random
import time
from pathlib import Path

import pytest
from commands import wait_for
from local_run import LocalRun, kill

from rlvr_trainer.lineage_view import find_lineage
from rlvr_trainer.metrics_log import read_evaluations, read_steps
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.report.source import open_run
from rlvr_trainer.stages.rejection_sampling import ROUND
from rlvr_trainer.storage.checkpoint_reader import latest_manifest
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.records import check_chain, read_records
from rlvr_trainer.storage.rollouts import read_groups

JOB = """
apiVersion: rlvr.dev/v1alpha1
kind: RLVRJob
metadata: {{name: path}}
spec:
  model: {{uri: "file://{folder}/tiny", maxModelLen: 64}}
  environments:
    - {{name: sums, arithmetic: {{instruction: "{{problem}}="}}}}
    - {{name: differences, arithmetic: {{operations: ["-"], instruction: "{{problem}}="}}}}
  mixing: {{floor: 0.2, window: 8}}
  sampling: {{maxTokens: 3}}
  stages:
    - name: cold-start
      sft: {{traces: "file://{folder}/traces.jsonl", epochs: 40, examplesPerStep: 20, optimizer: {{learningRate: 3.0e-3}}}}
    - name: self-sft
      rejectionSampling:
        {{rounds: 2, promptsPerRound: 32, samplesPerPrompt: 8, keepPerPrompt: 2, examplesPerStep: 8, optimizer: {{learningRate: 1.0e-3}}}}
    - name: climb
      rlvr:
        {{steps: 24, promptsPerStep: 8, groupSize: 8, revisit: {{solvedAfter: 16, hopelessAfter: 8}}, optimizer: {{learningRate: 2.0e-4}}}}
      promoteWhen: {{environment: sums, atLeast: 0.02}}
    - name: measure
      evaluate: {{k: [1, 4, 8], tasksPerEnvironment: 30, samplesPerTask: 8}}
  evaluation: {{tasksPerEnvironment: 30, samplesPerTask: 4, everySteps: 12}}
  learner: {{checkpoint: {{everySteps: 3, keepLast: 2}}}}
  failurePolicy: {{maxLearnerRestarts: 8}}
"""
STAGES = [StageKeys(index, name) for index, name in enumerate(("cold-start", "self-sft", "climb", "measure"))]
SFT_STEPS = 80
"""40 traces, 40 epochs, 20 at a time."""


def write_job(folder: Path) -> Path:
    write_tiny_model(folder / "tiny")
    sums = [{"prompt": f"{a} + {b}=", "completion": str(a + b)} for a in range(10) for b in range(0, 10, 3)]
    (folder / "traces.jsonl").write_text("\n".join(map(json.dumps, sums)))
    path = folder / "path.yaml"
    path.write_text(JOB.format(folder=folder))
    return path


def kill_in(run: LocalRun, stage: StageKeys, later_seconds: float) -> int:
    """Kill the learner some time after it has begun a stage, unless that is over by then; returns the stage it was in."""

    def in_stage():
        progress = run.progress()
        begun = progress is not None and (progress["stageIndex"], progress["weightVersion"] or 0) >= (stage.index, 1)
        return progress if begun else None

    wait_for(in_stage, 200, f"stage {stage.name} has not begun", every=0.02)
    time.sleep(later_seconds)
    progress = run.progress()
    assert progress is not None
    kill(progress["pid"])
    return int(progress["stageIndex"])


@pytest.mark.timeout(600)
def test_a_job_of_all_stages_survives_kills_in_each_of_them(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    with LocalRun(write_job(tmp_path)) as run:
        killed = [kill_in(run, stage, 0.0 if stage.name == "measure" else moments.uniform(0, 1.5)) for stage in STAGES]
        code, output = run.finish(200)
    assert code == 0, f"seed {seed}: {output}"
    assert "attempt 5" in output, output
    assert len(set(killed)) >= 3, f"seed {seed}: killed in the stages {killed}"
    assert "<html" in (run.folder / "report.html").read_text()
    with open_run(str(run.folder), tmp_path) as source:
        check_what_the_store_tells(source.store)


def check_what_the_store_tells(store) -> None:
    records = {keys.name: read_records(store, keys) for keys in STAGES}
    for keys in STAGES[:3]:
        check_chain(records[keys.name])  # every index once
        manifest = latest_manifest(store, keys)
        assert manifest is not None
        assert manifest.state.final
        assert manifest.step == len(records[keys.name])
        measured = [step.step for step in read_steps(store) if step.stage == keys.name]
        assert measured == list(range(1, manifest.step + 1))
    assert len(records["cold-start"]) == SFT_STEPS
    assert list(dict.fromkeys(item.record.curriculum[ROUND] for item in records["self-sft"])) == [0, 1]
    assert records["self-sft"][-1].record.cursor == 64
    for item in (*records["self-sft"], *records["climb"]):
        groups = [group for blob in item.record.rollouts for group in read_groups(store, blob)]
        assert tuple(group.admission.index for group in groups) == item.record.groups
    last = {result.stage: result for result in read_evaluations(store)}
    lower = last["climb"].lower_bound("sums")
    assert lower is not None
    assert lower >= 0.02
    lineage = find_lineage(store)[1]
    assert [(stage.name, stage.steps) for stage in lineage.stages] == [(keys.name, len(records[keys.name])) for keys in STAGES[:3]]
    assert lineage.external_stages == ("default/path/cold-start",)
    assert lineage.stages[0].datasets[0].contamination.examples == 6
    assert [cell.environment for cell in last["measure"].cells] == ["differences", "sums"]
    for cell in last["measure"].cells:
        assert set(cell.pass_at) == {1, 4, 8}
        assert cell.pass_at[1].mean == pytest.approx(cell.pass_rate)
        assert cell.pass_at[1].mean <= cell.pass_at[4].mean <= cell.pass_at[8].mean
        assert all(found.lower <= found.mean <= found.upper for found in cell.pass_at.values())
