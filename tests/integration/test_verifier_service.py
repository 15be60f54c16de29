"""The verifier service over HTTP: sealed keys, idempotent verdicts, clear errors, and workers that may be killed."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fastapi.testclient import TestClient
from verifier_jobs import sums_and_math

from rlvr_api.spec import RLVRJob
from rlvr_api.wire import VerdictStatus
from rlvr_verifier.app import build_app
from rlvr_verifier.drain import Drain
from rlvr_verifier.environments import ENVIRONMENTS, SANDBOXED, open_environments
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.pool import ScorerTimeoutError, WorkerPool
from rlvr_verifier.seal import Seal
from rlvr_verifier.service import VerifierService


def make_job(folder: Path, timeout_seconds: float = 20.0) -> RLVRJob:
    return sums_and_math(folder, [(f"Double {n}.", str(2 * n)) for n in range(40)], itemTimeoutSeconds=timeout_seconds)


def make_pool(job: RLVRJob) -> WorkerPool:
    return WorkerPool(job.model_dump_json(), job.spec)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    job = make_job(tmp_path)
    pool, instruments = make_pool(job), Instruments()
    service = VerifierService(job.spec, open_environments(job, {}), Seal(b"k" * 32), pool, instruments)
    with TestClient(build_app(service, instruments, Drain())) as client:
        yield client


def sample(client: TestClient, environment: str) -> dict[str, str]:
    answer = client.post("/v1/sample", json={"items": [{"environment": environment, "split": "train", "seed": 3}]})
    assert answer.status_code == 200, answer.text
    task: dict[str, str] = answer.json()["tasks"][0]
    return task


def score(client: TestClient, task: dict[str, str], *completions: str, prefix: str = "x") -> list[dict[str, str]]:
    items = [
        {"id": f"{prefix}{number}", "environment": task["environment"], "taskKey": task["taskKey"], "completion": text}
        for number, text in enumerate(completions)
    ]
    answer = client.post("/v1/score", json={"items": items})
    assert answer.status_code == 200, answer.text
    verdicts: list[dict[str, str]] = answer.json()["verdicts"]
    return verdicts


def test_a_task_is_scored_and_its_answer_is_in_no_answer_of_the_service(client: TestClient) -> None:
    task = sample(client, "sums")
    left, right = (int(word) for word in task["messages"][0]["content"].replace("?", " ").split() if word.isdigit())  # type: ignore[index]
    verdicts = score(client, task, str(left + right), str(left + right + 1), "no idea", "7" * 70_000)
    assert [verdict["status"] for verdict in verdicts] == ["pass", "fail", "invalid", "invalid"]
    assert str(left + right) not in verdicts[1]["reason"].replace(str(left + right + 1), "")


def test_math_is_judged_in_a_worker_process(client: TestClient) -> None:
    verdicts = score(client, sample(client, "math"), r"\boxed{10^{9}}", r"\boxed{\ge 2}", "nothing")
    assert [verdict["status"] for verdict in verdicts] == ["fail", "invalid", "invalid"]


def test_the_same_id_is_the_same_completion(client: TestClient) -> None:
    task = sample(client, "sums")
    assert score(client, task, "1") == score(client, task, "1")
    item = {"id": "x0", "environment": "sums", "taskKey": task["taskKey"], "completion": "2"}
    assert client.post("/v1/score", json={"items": [item]}).status_code == 422


def test_what_cannot_be_judged_is_refused_with_the_next_step(client: TestClient) -> None:
    forged = {"id": "a", "environment": "sums", "taskKey": "Zm9yZ2Vk", "completion": "1"}
    answer = client.post("/v1/score", json={"items": [forged]})
    assert (answer.status_code, "sample the task again" in answer.json()["error"]) == (409, True)
    unknown = client.post("/v1/sample", json={"items": [{"environment": "nope", "split": "train", "seed": 1}]})
    assert (unknown.status_code, "it has sums, math" in unknown.json()["error"]) == (404, True)
    assert client.post("/v1/sample", json={"items": [{"environment": "sums", "split": "train", "seed": 1, "level": 99}]}).status_code == 422
    assert client.post("/v1/score", json={"items": []}).json()["error"].startswith("body.items")
    assert client.post("/v1/score", content=b"{" * 100, headers={"content-type": "application/json"}).status_code == 422


def test_the_service_says_what_it_has_and_counts_verdicts(client: TestClient) -> None:
    found = {info["name"]: info for info in client.get("/v1/environments").json()["environments"]}
    assert set(found) == {"sums", "math"}
    assert found["sums"]["heldOutTasks"]["0"] >= 5
    score(client, sample(client, "sums"), "x")
    assert 'rlvr_verifier_verdicts_total{environment="sums",status="invalid"} 1.0' in client.get("/metrics").text
    assert client.get("/readyz").status_code == 200


def test_a_worker_that_is_killed_loses_nothing_and_a_slow_item_times_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        pool = make_pool(make_job(tmp_path))
        payload = {"problem": "?", "answer": "x+1"}
        try:
            assert (await pool.run("math", payload, r"\boxed{1+x}", False)).status is VerdictStatus.PASS
            for worker in pool._live:
                worker.process.kill()
                worker.process.join()
            assert (await pool.run("math", payload, r"\boxed{1+x}", False)).status is VerdictStatus.PASS, "tried again on a fresh worker"
        finally:
            pool.close()
        hasty = make_pool(make_job(tmp_path, timeout_seconds=1e-6))
        try:
            with pytest.raises(ScorerTimeoutError):
                await hasty.run("math", payload, r"\boxed{\sqrt{x^{99}+y}}", False)
            assert hasty._live == set(), "the process that was too slow is gone"
        finally:
            hasty.close()
        patient = make_pool(make_job(tmp_path, timeout_seconds=2.0))
        try:
            await patient.run("math", payload, "warm", False)
            (worker,) = patient._live
            process = psutil.Process(worker.process.pid)
            process.suspend()
            asyncio.get_running_loop().call_later(2.1, process.resume)
            score = await patient.run("math", payload, r"\boxed{1+x}", False)
            assert score.status is VerdictStatus.PASS, "a machine that is busy costs nobody the verdict"
        finally:
            patient.close()

    asyncio.run(scenario())


def test_every_kind_of_environment_has_its_class() -> None:
    from rlvr_api.environments import ENVIRONMENT_KINDS

    assert {*ENVIRONMENTS, *SANDBOXED} == set(ENVIRONMENT_KINDS)
