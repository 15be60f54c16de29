"""The verifier service as a resources server of NeMo Gym: requests are answered with rewards, and with none where nothing was judged."""

import json

import pytest
from fastapi.testclient import TestClient
from verifier_jobs import verifier_job

from rlvr_verifier.app import build_app
from rlvr_verifier.drain import Drain
from rlvr_verifier.environments import open_environments
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.pool import WorkerPool
from rlvr_verifier.seal import Seal
from rlvr_verifier.service import VerifierService


@pytest.fixture
def service():
    job = verifier_job([{"name": "sums", "arithmetic": {}}], {"canaryRate": 0.0})
    pool, instruments = WorkerPool(job.model_dump_json(), job.spec), Instruments()
    return VerifierService(job.spec, open_environments(job, {}), Seal(b"k" * 32), pool, instruments), instruments


@pytest.fixture
def client(service):
    with TestClient(build_app(*service, Drain())) as client:
        yield client


def row(client):
    request = {"environment": "sums", "split": "train", "seed": 5, "level": 2}
    (task,) = client.post("/v1/sample", json={"items": [request]}).json()["tasks"]
    left, right = task["messages"][0]["content"].removeprefix("What is ").partition("?")[0].split(" + ")
    fields = {"environment": "sums", "task_key": task["taskKey"], "agent_ref": {"name": "simple"}}
    return {"responses_create_params": {"input": task["messages"]}, **fields}, int(left) + int(right)


def response(*texts, **fields):
    messages = [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]} for text in texts
    ]
    return {"id": "resp_1", "output": [{"type": "reasoning", "summary": []}, *messages], "model": "policy", **fields}


def test_the_request_comes_back_with_a_reward(client):
    asked, answer = row(client)
    assert client.post("/seed_session", json={}).status_code == 200
    for text, reward, status in ((f"It is {answer}.", 1.0, "pass"), (f"It is {answer + 1}.", 0.0, "fail"), ("Hm.", 0.0, "invalid")):
        found = client.post("/verify", json={**asked, "response": response(text)}).json()
        assert (found["reward"], found["verdict"]["status"]) == (reward, status)
        assert {key: found[key] for key in asked} == asked
        assert found["response"]["model"] == "policy"
    assert 'rlvr_verifier_verdicts_total{environment="sums",status="pass"} 1.0' in client.get("/metrics").text


def test_the_last_message_is_the_answer_and_reasoning_is_none(client):
    asked, answer = row(client)
    for given, reward in (
        (response(str(answer + 1), str(answer)), 1.0),
        (response(str(answer), str(answer + 1)), 0.0),
        (response(), 0.0),
        ({"output": []}, 0.0),
        ({"output": [{"type": "function_call", "name": "f", "arguments": str(answer)}]}, 0.0),
    ):
        assert client.post("/verify", json={**asked, "response": given}).json()["reward"] == reward


def test_what_was_not_judged_has_no_reward(client, service, monkeypatch):
    asked, answer = row(client)

    def fail(*_):
        raise RuntimeError(f"{answer} broke it")

    monkeypatch.setattr(service[0]._environments["sums"], "score", fail)
    found = client.post("/verify", json={**asked, "response": response(str(answer))})
    assert (found.status_code, found.headers["retry-after"]) == (503, "1")
    assert "reward" not in found.json()
    assert str(answer) not in found.text.replace(str(asked["task_key"]), "")


def test_a_row_that_was_judged_before_gets_a_new_reward(client):
    asked, answer = row(client)
    body = {**asked, "response": response(str(answer)), "extra": nested(250)}
    first = client.post("/verify", json={**body, "reward": 0.5, "verdict": {"status": "fail"}}).json()
    assert (first["reward"], first["verdict"]["status"], first["extra"]) == (1.0, "pass", nested(250))
    assert client.post("/verify", json={**first, "response": response("no")}).json()["reward"] == 0.0


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"task_key": "forged"}, 409),
        ({"environment": "none"}, 404),
        ({"response": {}}, 422),
        ({"response": {"output": [{"text": 1}]}}, 422),
        ({"responses_create_params": 1}, 422),
        ({"extra": "\ud800"}, 422),
        ({"extra": nested(300)}, 422),
        ({"response": {"output": [{"type": "message", "content": [{"type": "output_text", "text": "x" * 1_500_000}] * 2}]}}, 422),
    ],
)
def test_what_is_no_request_is_refused(client, change, code):
    asked, _ = row(client)
    body = json.dumps({**asked, "response": response("1"), **change})
    found = client.post("/verify", content=body, headers={"content-type": "application/json"})
    assert found.status_code == code
    assert found.json()["error"]
