"""Each example with a real model, as a person runs it, but for few and small steps; the tiny ones run whole elsewhere, one on a cluster."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rlvr_trainer.pretrained import write_smollm2
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.records import read_records

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS, PROMPTS, GROUP_SIZE = 2, 4, 4
PROMPTS_PER_ROUND = 32
"""Of rejection sampling: at the rates of a model that begins near 0, some pass."""
EVALUATION = {"tasksPerEnvironment": 2, "samplesPerTask": 8}
NAMES = ("01-arithmetic", "04-from-base", "05-audited", "06-functions", "08-from-zero", "09-cold-start", "10-best-of-n")
ELSEWHERE = {"02-tiny", "03-cluster", "07-turns"}

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The model of the examples."""
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    write_smollm2(folder)
    return folder


def shorten(stage):
    """A stage that does each thing that it is for, a few times."""
    match stage:
        case {"rlvr": settings}:
            settings.update(steps=STEPS, promptsPerStep=PROMPTS, groupSize=GROUP_SIZE)
        case {"sft": settings}:
            settings["epochs"] = 1
        case {"rejectionSampling": settings}:
            settings.update(rounds=1, promptsPerRound=PROMPTS_PER_ROUND)
        case {"evaluate": settings}:
            settings.update(EVALUATION)


def absolute(text, model):
    """The example's text with the places of its files, which it names from its own folder."""
    return text.replace("file://../models/smollm2-135m-instruct", f"file://{model}").replace("file://data/", f"file://{EXAMPLES}/data/")


def test_none_is_left_out():
    assert {file.stem for file in EXAMPLES.glob("*.yaml")} == {*NAMES, *ELSEWHERE}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_to_its_end(name, smollm2, run_of):
    job = YAML(typ="safe").load(absolute((EXAMPLES / f"{name}.yaml").read_text(), smollm2))
    stages = job["spec"]["stages"]
    for stage in stages:
        shorten(stage)
    job["spec"]["evaluation"] = EVALUATION
    run = run_of(job)
    run.start()
    run.finish()
    with run.store() as store:
        trained = {stage["name"]: len(read_records(store, StageKeys(index, stage["name"]))) for index, stage in enumerate(stages)}
    assert all(trained[stage["name"]] == STEPS for stage in stages if "rlvr" in stage), trained
    assert all(trained[stage["name"]] > 0 for stage in stages if "evaluate" not in stage), trained
    assert (run.folder / "report.html").stat().st_size > 10_000
