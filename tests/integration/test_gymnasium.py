"""Gymnasium environments by text: played in workers, judged by their return, certified by their own solution, refused clearly."""

import sys

import gymnasium
import pytest
from fastapi.testclient import TestClient
from gymnasium_package import write_package
from verifier_jobs import verifier_job

from rlvr_api.cli import main
from rlvr_api.wire import Transcript, digest_observations
from rlvr_verifier.app import build_app
from rlvr_verifier.drain import Drain
from rlvr_verifier.environments import open_environments
from rlvr_verifier.environments.base import EnvironmentSetupError
from rlvr_verifier.environments.datasets import DatasetReader
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.integrity.certificates import find_fault
from rlvr_verifier.pool import WorkerPool
from rlvr_verifier.seal import Seal
from rlvr_verifier.service import VerifierService


@pytest.fixture
def installed(tmp_path, monkeypatch):
    site = write_package(tmp_path)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    yield tmp_path
    sys.modules.pop("hunting", None)
    for name in ("NumberHunt-v0", "Code-v0", "Picture-v0"):
        gymnasium.registry.pop(name, None)


def job_with(id="hunting:NumberHunt-v0", **settings):
    return verifier_job([{"name": "hunt", "gymnasium": {"id": id, "maxTurns": 6, **settings}}], {"canaryRate": 0.0}, workers=1)


def serve(job) -> TestClient:
    pool, instruments = WorkerPool(job.model_dump_json(), job.spec), Instruments()
    service = VerifierService(job.spec, open_environments(job, {}), Seal(b"k" * 32), pool, instruments)
    return TestClient(build_app(service, instruments, Drain()))


def sample(client, seed, split="train"):
    (task,) = client.post("/v1/sample", json={"items": [{"environment": "hunt", "split": split, "seed": seed}]}).json()["tasks"]
    return task


def step(client, task, actions, told):
    transcript = {"actions": actions, "observed": digest_observations(told) if told else ""}
    item = {"environment": "hunt", "taskKey": task["taskKey"], "transcript": transcript}
    (result,) = client.post("/v1/step", json={"items": [item]}).json()["results"]
    return result


def score(client, task, actions, told, id="1"):
    completion = Transcript(actions=actions, observed=digest_observations(told)).completion
    item = {"id": id, "environment": "hunt", "taskKey": task["taskKey"], "completion": completion}
    (verdict,) = client.post("/v1/score", json={"items": [item]}).json()["verdicts"]
    return verdict


def hunt(client, task):
    """Halves what is left until the number is found."""
    low, high, actions, told = 1, 15, [], []
    while True:
        guess = (low + high) // 2
        actions.append(str(guess))
        result = step(client, task, actions, told)
        assert result["fault"] == ""
        if result["done"]:
            return actions, told
        told.append(result["observation"])
        low, high = (guess + 1, high) if told[-1] == "higher" else (low, guess - 1)


def test_an_environment_is_played_by_text_and_judged_by_its_return(installed):
    with serve(job_with(instruction="Find it.", heldOutSeeds=7)) as client:
        assert client.get("/v1/environments").json()["environments"][0]["heldOutTasks"] == {"0": 7}
        for seed in range(3):
            task = sample(client, seed)
            assert (task["messages"][0]["content"], task["maxTurns"]) == ("Find it.\nguess from 1 to 15", 6)
            actions, told = hunt(client, task)
            assert (verdict := score(client, task, actions, told, f"{seed}"))["score"] == 1.0, verdict
            wrong = ["0"] * 6
            assert step(client, task, wrong, ["higher"] * 5)["done"]
            assert score(client, task, wrong, ["higher"] * 5, f"wrong {seed}")["reason"] == "the return is 0"
        assert score(client, task, ["not an action"], [], "words")["status"] == "invalid"
        assert score(client, task, ["0", "0"], ["higher"], "left")["reason"] == "the episode was left after 2 turns, before its end"


def test_training_and_held_out_seeds_are_disjoint(installed):
    with serve(job_with(heldOutSeeds=5)) as client:
        held_out = {sample(client, seed, "heldOut")["problemId"] for seed in range(5)}
        assert len(held_out) == 5
        assert not held_out & {sample(client, seed)["problemId"] for seed in (0, 1, 4, 5, 2**31 - 5, 2**31 - 6, 2**40)}
        refused = client.post("/v1/sample", json={"items": [{"environment": "hunt", "split": "heldOut", "seed": 5}]})
        assert refused.status_code == 422


def test_what_fails_or_drifts_is_no_verdict_and_tells_nothing(installed):
    with serve(job_with()) as client:
        task = sample(client, 1)
        for found in (step(client, task, ["a"], []), score(client, task, ["a"], [])):
            assert "RuntimeError" in (words := found.get("fault") or found["reason"])
            assert "number" not in words
        assert score(client, task, ["a"], [], "again")["status"] == "infra_error"
        assert score(client, task, ["0", "0"], ["another answer"], "other")["status"] == "infra_error"
    with serve(job_with(options={"drifts": True})) as client:
        task = sample(client, 1)
        first = step(client, task, ["0"], [])
        assert "not deterministic" in step(client, task, ["0", "0"], [first["observation"]])["fault"]


def test_an_environment_of_the_library_itself(installed):
    job = job_with("FrozenLake-v1", options={"is_slippery": False, "map_name": "4x4"}, maxTurns=10)
    with serve(job) as client:
        task = sample(client, 3)
        path = ["1", "1", "2", "2", "1", "2"]
        told = []
        for count in range(1, 6):
            told.append(step(client, task, path[:count], told)["observation"])
        assert told == ["4", "8", "9", "10", "14"]
        assert step(client, task, path, told) == {"observation": None, "done": True, "fault": ""}
        assert score(client, task, path, told)["score"] == 1.0
        assert score(client, task, ["7"], [], "beyond")["status"] == "invalid"


def test_it_is_certified_where_the_job_says(installed, capsys):
    place = f"file://{installed}/hunt.json"
    job = job_with(certificate=place)
    reader = DatasetReader(job.spec.storage, {})
    environments = open_environments(job, {})
    (spec,), (nowhere,) = job.spec.environments, job_with().spec.environments
    assert str(find_fault(spec, environments["hunt"], reader)).startswith(f"there is no {place}; run `rlvr environment certify")
    assert str(find_fault(nowhere, environments["hunt"], reader)).startswith("gymnasium.certificate names no place; set it and run")
    file = installed / "job.json"
    file.write_text(job.model_dump_json(by_alias=True, exclude_none=True))
    assert main(["environment", "certify", str(file), "--tasks", "6"]) == 0, capsys.readouterr().out
    assert find_fault(spec, environments["hunt"], reader) is None


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"id": "hunting:Nothing-v0"}, "Nothing-v0 cannot be made"),
        ({"id": "nowhere:Maze-v0"}, "cannot be made: ModuleNotFoundError"),
        ({"id": "hunting:Picture-v0"}, "the observation_space of hunting:Picture-v0 is Box"),
        ({"options": {"size": 3}}, "cannot be made: TypeError"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_way_out(installed, settings, fault):
    with pytest.raises(EnvironmentSetupError, match=fault):
        open_environments(job_with(**settings), {})
