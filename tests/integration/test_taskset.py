"""Tasksets of the library `verifiers`: asked and judged by the real service, certified by their solutions, refused where they need more.

The library asks for older clients of language models than vLLM's, so it is in a folder of its own, as it would be in an image of its own.
"""

import os
import subprocess
import sys

import pytest
from taskset_package import LIBRARY, write_package
from verifier_jobs import verifier_job
from verifier_process import serving, start_service, write_job

from rlvr_api.process import ExitCode

pytestmark = pytest.mark.skipif(
    not LIBRARY.is_dir(), reason=f"needs the library: pip install --no-deps --target {LIBRARY} --requirement requirements/tasksets.lock"
)


@pytest.fixture
def site(tmp_path):
    return os.pathsep.join((os.fspath(write_package(tmp_path)), os.fspath(LIBRARY)))


def job_with(id="someone/backwards@1.0", integrity=None, **settings):
    environment = {"name": "words", "taskset": {"id": id, "heldOut": 0.3, **settings}}
    return verifier_job([environment], {"canaryRate": 0.0, **(integrity or {})}, workers=1)


def sample(client, seed, split="train"):
    (task,) = client.post("/v1/sample", json={"items": [{"environment": "words", "split": split, "seed": seed}]}).json()["tasks"]
    return task


def word_of(task):
    return task["messages"][1]["content"].removeprefix("Write backwards: ")


def score(client, task, completion, id):
    item = {"id": id, "environment": "words", "taskKey": task["taskKey"], "completion": completion}
    (verdict,) = client.post("/v1/score", json={"items": [item]}).json()["verdicts"]
    return verdict


def test_tasks_are_asked_and_judged_by_the_weighted_sum_of_their_rewards(site, tmp_path):
    with serving(job_with(), tmp_path, site) as client:
        (environment,) = client.get("/v1/environments").json()["environments"]
        assert environment["version"].startswith("1+verifiers-")
        for seed in range(3):
            task, word = sample(client, seed), word_of(sample(client, seed))
            assert task["messages"][0] == {"role": "system", "content": "Be brief."}
            right, wrong, near = (score(client, task, text, f"{seed} {text}") for text in (word[::-1], "0", word))
            assert (right["status"], right["score"]) == ("pass", 1.0)
            assert (wrong["status"], wrong["score"], wrong["reason"]) == ("fail", 0.0, "the reward is 0")
            assert (near["status"], near["score"]) == ("pass", pytest.approx(0.01 * min(5, len(set(word)))))
        count = environment["heldOutTasks"]["0"]
        held_out = {sample(client, seed, "heldOut")["problemId"] for seed in range(count)}
        train = {sample(client, seed)["problemId"] for seed in range(100)}
        assert 0 < count == len(held_out)
        assert len(train) == 12 - count
        assert not held_out & train
        crashed = score(client, task, "crash", "crash")
        assert (crashed["status"], "TaskError" in crashed["reason"]) == ("infra_error", True)
        assert word[::-1] not in crashed["reason"], "the words of an exception may hold the answer"


def test_what_full_marks_are_is_the_jobs_to_say_and_of_endless_tasks_so_many_are_taken(site, tmp_path):
    job = job_with(lowestReward=0.1, highestReward=2.0, config={"endless": True}, maxTasks=50)
    with serving(job, tmp_path, site) as client:
        task = sample(client, 1)
        word = word_of(task).split()[0]
        assert score(client, task, word, "letters")["status"] == "fail"
        assert score(client, task, word[::-1], "right")["score"] == pytest.approx((1 + 0.05 - 0.1) / 1.9, abs=0.01)
        held_out = client.get("/v1/environments").json()["environments"][0]["heldOutTasks"]["0"]
        assert held_out + len({sample(client, seed)["problemId"] for seed in range(50)}) == 50


def test_it_is_certified_where_the_job_says(site, tmp_path):
    place = f"file://{tmp_path}/words.json"
    job = job_with(integrity={"allowUncertified": False}, certificate=place, lowestReward=0.5)
    file = write_job(job, tmp_path)
    refused, _ = start_service(file, site)
    assert f"there is no {place}; run `rlvr environment certify" in refused.communicate()[1]
    command = [sys.executable, "-m", "rlvr_api", "environment", "certify", os.fspath(file), "--tasks", "6"]
    path = os.pathsep.join(part for part in (site, os.environ.get("PYTHONPATH")) if part)
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with serving(job, tmp_path, site) as client:
        assert sample(client, 0)["messages"]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"id": "nowhere"}, "taskset nowhere cannot be loaded: ModuleNotFoundError"),
        ({"config": {"colours": 3}}, "taskset someone/backwards@1.0 cannot be loaded: ValidationError"),
        ({"config": {"words": []}}, "dataset someone/backwards@1.0 has no rows"),
        ({"config": {"words": ["", "stone"]}}, "dataset someone/backwards@1.0: task 0: it has no prompt"),
        ({"id": "boxes"}, "taskset boxes needs setup(), a container, a runtime for built, and only tasksets"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(site, tmp_path, settings, fault):
    process, _ = start_service(write_job(job_with(**settings), tmp_path), site)
    words = process.communicate()[1]
    assert (process.returncode, fault in words) == (ExitCode.BAD_INPUT, True), words


def test_without_the_library_its_name_is_said(tmp_path):
    process, _ = start_service(write_job(job_with(), tmp_path), os.fspath(write_package(tmp_path)))
    assert "needs the library verifiers beside the verifier service: install the extra `verifiers`" in process.communicate()[1]
