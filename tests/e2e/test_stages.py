"""All stages of a job with real parts, its learner killed in each: the store tells of every index once, and the job ends as it should."""

import json
import random
import time

import pytest
from ruamel.yaml import YAML

from rlvr_trainer.lineage_view import find_lineage
from rlvr_trainer.metrics_log import read_evaluations, read_steps
from rlvr_trainer.stages.rejection_sampling import ROUND
from rlvr_trainer.storage.checkpoint_reader import latest_manifest
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.records import check_chain, read_records
from rlvr_trainer.storage.rollouts import read_groups

PATH = """
environments:
  - {name: sums, arithmetic: {instruction: "{problem}="}}
  - {name: differences, arithmetic: {operations: ["-"], instruction: "{problem}="}}
mixing: {floor: 0.2, window: 8}
stages:
  - {name: cold-start, sft: {epochs: 40, examplesPerStep: 20, optimizer: {learningRate: 3.0e-3}}}
  - name: self-sft
    rejectionSampling:
      {rounds: 2, promptsPerRound: 32, samplesPerPrompt: 8, keepPerPrompt: 2, examplesPerStep: 8, optimizer: {learningRate: 1.0e-3}}
  - name: climb
    rlvr:
      {steps: 24, promptsPerStep: 8, groupSize: 8, revisit: {solvedAfter: 16, hopelessAfter: 8}, optimizer: {learningRate: 2.0e-4}}
    promoteWhen: {environment: sums, atLeast: 0.02}
  - {name: measure, evaluate: {k: [1, 4, 8], tasksPerEnvironment: 30, samplesPerTask: 8}}
evaluation: {tasksPerEnvironment: 30, samplesPerTask: 4, everySteps: 12}
failurePolicy: {maxLearnerRestarts: 8}
"""
STAGES = [StageKeys(index, name) for index, name in enumerate(("cold-start", "self-sft", "climb", "measure"))]
SFT_STEPS = 80
"""40 traces, 40 epochs, 20 at a time."""


@pytest.fixture
def run(make_run, tmp_path):
    """The job, not started."""
    traces = tmp_path / "traces.jsonl"
    sums = [{"prompt": f"{a} + {b}=", "completion": str(a + b)} for a in range(10) for b in range(0, 10, 3)]
    traces.write_text("\n".join(map(json.dumps, sums)))

    def change(spec):
        spec |= YAML(typ="safe").load(PATH)
        spec["stages"][0]["sft"]["traces"] = f"file://{traces}"

    return make_run("path", steps=1, change=change)


def kill_in(run, stage: StageKeys, later_seconds: float) -> int:
    """Kill the learner some time after it has begun a stage, which may be over by then; returns the stage it was in."""

    def has_begun():
        progress = run.progress()
        return (progress.get("stageIndex", -1), progress.get("weightVersion") or 0) >= (stage.index, 1)

    run.wait(has_begun, f"beginning of stage {stage.name}")
    time.sleep(later_seconds)
    where = int(run.progress()["stageIndex"])
    run.kill("learner")
    return where


@pytest.mark.timeout(900)  # for a busy machine
@pytest.mark.long
def test_a_job_of_all_stages_survives_kills_in_each_of_them(run) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    run.start()
    killed = [kill_in(run, stage, 0.0 if stage.name == "measure" else moments.uniform(0, 1.5)) for stage in STAGES]
    run.finish()
    assert run.status()["executionAttempt"] == 5
    assert len(set(killed)) >= 3, f"seed {seed}: killed in the stages {killed}"
    assert "<html" in (run.folder / "report.html").read_text()
    with run.store() as store:
        check_what_the_store_tells(store)


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
