"""Tasksets of the library `verifiers`: asked and judged through the service, certified by their solutions, refused where they need more."""

import os
import sys

import pytest
from fastapi.testclient import TestClient
from taskset_package import write_package
from verifier_jobs import verifier_job

from rlvr_api.cli import main
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
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    yield tmp_path
    for name in ("backwards", "boxes"):
        sys.modules.pop(name, None)


def job_with(id="someone/backwards@1.0", **settings):
    return verifier_job([{"name": "words", "taskset": {"id": id, "heldOut": 0.3, **settings}}], {"canaryRate": 0.0}, workers=1)


def serve(job) -> TestClient:
    pool, instruments = WorkerPool(job.model_dump_json(), job.spec), Instruments()
    service = VerifierService(job.spec, open_environments(job, {}), Seal(b"k" * 32), pool, instruments)
    return TestClient(build_app(service, instruments, Drain()))


def sample(client, seed, split="train"):
    (task,) = client.post("/v1/sample", json={"items": [{"environment": "words", "split": split, "seed": seed}]}).json()["tasks"]
    return task


def score(client, task, completion, id):
    item = {"id": id, "environment": "words", "taskKey": task["taskKey"], "completion": completion}
    (verdict,) = client.post("/v1/score", json={"items": [item]}).json()["verdicts"]
    return verdict


def test_tasks_are_asked_and_judged_by_the_weighted_sum_of_their_rewards(installed):
    with serve(job_with()) as client:
        assert client.get("/v1/environments").json()["environments"][0]["version"].startswith("1+verifiers-")
        for seed in range(3):
            task = sample(client, seed)
            system, user = task["messages"]
            assert system == {"role": "system", "content": "Be brief."}
            word = user["content"].removeprefix("Write backwards: ")
            right, wrong, near = (score(client, task, text, f"{seed} {text}") for text in (word[::-1], "0", word))
            assert (right["status"], right["score"]) == ("pass", 1.0)
            assert (wrong["status"], wrong["score"], wrong["reason"]) == ("fail", 0.0, "the reward is 0")
            assert (near["status"], near["score"]) == ("pass", pytest.approx(0.01 * min(5, len(set(word)))))


def test_what_counts_as_full_marks_and_as_none_is_the_jobs_to_say(installed):
    with serve(job_with(lowestReward=0.1, highestReward=2.0)) as client:
        task = sample(client, 1)
        word = task["messages"][1]["content"].removeprefix("Write backwards: ")
        assert score(client, task, word, "letters")["status"] == "fail"
        assert score(client, task, word[::-1], "right")["score"] == pytest.approx((1 + 0.05 - 0.1) / 1.9, abs=0.01)


def test_a_task_is_on_one_side_and_always_the_same(installed):
    with serve(job_with()) as client:
        count = client.get("/v1/environments").json()["environments"][0]["heldOutTasks"]["0"]
        held_out = {sample(client, seed, "heldOut")["problemId"] for seed in range(count)}
        train = {sample(client, seed)["problemId"] for seed in range(100)}
        assert 0 < count == len(held_out)
        assert len(train) == 12 - count
        assert not held_out & train


def test_a_reward_that_raises_is_no_verdict_and_tells_nothing(installed):
    with serve(job_with()) as client:
        task = sample(client, 1)
        word = task["messages"][1]["content"].removeprefix("Write backwards: ")
        verdict = score(client, task, "crash", "crash")
        assert (verdict["status"], "TaskError" in verdict["reason"], word[::-1] in verdict["reason"]) == ("infra_error", True, False)


def test_of_a_taskset_without_end_only_so_many_are_taken(installed):
    environment = open_environments(job_with(config={"endless": True}, maxTasks=50), {})["words"]
    assert environment.held_out_tasks(0) + len({environment.sample("train", seed, 0).problem_id for seed in range(50)}) == 50


def test_it_is_certified_where_the_job_says(installed, capsys):
    job = job_with(certificate=f"file://{installed}/words.json", lowestReward=0.5)
    (spec,), environments, reader = job.spec.environments, open_environments(job, {}), DatasetReader(job.spec.storage, {})
    assert str(find_fault(spec, environments["words"], reader)).startswith(f"there is no file://{installed}/words.json; run")
    file = installed / "job.json"
    file.write_text(job.model_dump_json(by_alias=True, exclude_none=True))
    assert main(["environment", "certify", str(file), "--tasks", "6"]) == 0, capsys.readouterr().out
    assert find_fault(spec, environments["words"], reader) is None


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"id": "nowhere"}, "taskset nowhere cannot be loaded: ModuleNotFoundError"),
        ({"config": {"colours": 3}}, "cannot be loaded: ValidationError.*colours"),
        ({"config": {"words": []}}, "dataset someone/backwards@1.0 has no rows"),
        ({"config": {"words": ["", "stone"]}}, "dataset someone/backwards@1.0: task 0: it has no prompt"),
        ({"id": "boxes"}, r"taskset boxes needs setup\(\), a container, a runtime for built, and only tasksets"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(installed, settings, fault):
    with pytest.raises(EnvironmentSetupError, match=f"(?s){fault}"):
        open_environments(job_with(**settings), {})
