"""Audits and canaries over HTTP: drawn at the rates that the job says, the same at every try, and never a reward."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import JsonValue
from verifier_jobs import verifier_job

from rlvr_verifier.app import build_app
from rlvr_verifier.drain import Drain
from rlvr_verifier.environments import open_environments
from rlvr_verifier.environments.base import Score
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.integrity.auditors import FinalAnswerAuditor
from rlvr_verifier.pool import WorkerPool
from rlvr_verifier.seal import Seal
from rlvr_verifier.service import VerifierService


def serve(key: bytes = b"k" * 32, **integrity: Any) -> TestClient:
    environments: list[dict[str, Any]] = [
        {"name": "sums", "arithmetic": {"extraction": "expression"}, "audit": {"finalAnswer": {}}},
        {"name": "plain", "arithmetic": {}},
    ]
    if integrity.get("audit") is None:
        environments[0].pop("audit")
    job = verifier_job(environments, integrity)
    pool, instruments = WorkerPool(job.model_dump_json(), job.spec), Instruments()
    service = VerifierService(job.spec, open_environments(job, {}), Seal(key), pool, instruments)
    return TestClient(build_app(service, instruments, Drain()))


@pytest.fixture
def client() -> Iterator[TestClient]:
    with serve(audit={"positiveRate": 0.3, "negativeRate": 0.1}, canaryRate=0.2) as client:
        yield client


def task(client: TestClient, environment: str, seed: int) -> dict[str, Any]:
    answer = client.post("/v1/sample", json={"items": [{"environment": environment, "split": "train", "seed": seed, "level": 2}]})
    found: dict[str, Any] = answer.json()["tasks"][0]
    return found


def problem(found: Mapping[str, Any]) -> str:
    return str(found["messages"][0]["content"]).removeprefix("What is ").partition("?")[0]


def ask(client: TestClient, found: Mapping[str, Any], completion: str, count: int, prefix: str, **fields: Any) -> dict[str, Any]:
    items = [
        {"id": f"{prefix}/{n}", "environment": found["environment"], "taskKey": found["taskKey"], "completion": completion, **fields}
        for n in range(count)
    ]
    answer = client.post("/v1/score", json={"items": items})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_the_question_is_paid_and_audits_at_the_rate_of_the_paid_refute_it(client: TestClient) -> None:
    found = task(client, "sums", 5)
    verdicts = ask(client, found, problem(found), 1000, "echo")["verdicts"]
    assert {verdict["status"] for verdict in verdicts} == {"pass"}
    audits = [verdict["audit"] for verdict in verdicts if verdict["audit"] is not None]
    assert 240 <= len(audits) <= 360  # 300 ± 4 standard errors
    assert {(audit["probability"], audit["score"], audit["flaky"], audit["verifier"]) for audit in audits} == {
        (0.3, 0.0, False, "final-answer")
    }


def test_refused_answers_are_audited_at_their_own_rate(client: TestClient) -> None:
    verdicts = ask(client, task(client, "sums", 5), "no idea", 1000, "none")["verdicts"]
    audits = [verdict["audit"] for verdict in verdicts if verdict["audit"] is not None]
    assert 62 <= len(audits) <= 138
    assert {audit["probability"] for audit in audits} == {0.1}


def test_the_same_id_is_drawn_or_not_on_every_replica_and_no_other_key_tells_which(client: TestClient) -> None:
    def drawn(one: TestClient) -> list[bool]:
        return [verdict["audit"] is not None for verdict in ask(one, task(one, "sums", 5), "1", 300, "x")["verdicts"]]

    with (
        serve(audit={"positiveRate": 0.3, "negativeRate": 0.1}) as replica,
        serve(b"z" * 32, audit={"negativeRate": 0.1, "rewards": "paid"}) as stranger,
    ):
        assert drawn(client) == drawn(replica)
        assert drawn(client) != drawn(stranger)


def test_held_out_items_are_audited_for_certain_and_others_without_a_second_verifier_never(client: TestClient) -> None:
    certain = ask(client, task(client, "sums", 5), "1", 20, "held", audited=True)["verdicts"]
    assert all(verdict["audit"]["probability"] == 1.0 for verdict in certain)
    assert all(verdict["audit"] is None for verdict in ask(client, task(client, "plain", 5), "1", 200, "plain", audited=True)["verdicts"])


def test_canaries_find_the_exploit_and_are_no_verdicts(client: TestClient) -> None:
    for environment, broken in (("sums", {"question-echo", "question-echo-in-words"}), ("plain", set())):
        answer = ask(client, task(client, environment, 5), "1", 1000, f"canary-{environment}")
        assert len(answer["verdicts"]) == 1000
        canaries = answer["canaries"]
        assert 140 <= len(canaries) <= 260
        assert {canary["probe"] for canary in canaries if not canary["kept"]} == broken
        assert {canary["tag"] for canary in canaries} == {"right", "wrong", "exploit"}
    metrics = client.get("/metrics").text
    assert 'rlvr_verifier_canaries_total{environment="sums",kept="false",tag="exploit"}' in metrics


def test_nothing_is_audited_or_probed_unless_asked_for() -> None:
    with serve(canaryRate=0.0) as client:
        answer = ask(client, task(client, "plain", 5), "1", 200, "quiet")
        assert (answer["canaries"], {verdict["audit"] for verdict in answer["verdicts"]}) == ([], {None})


def test_an_audit_that_fails_is_an_infra_error_and_is_asked_for_again(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    found = task(client, "sums", 5)

    def broken(self: FinalAnswerAuditor, payload: Mapping[str, JsonValue], completion: str) -> Score:
        raise RuntimeError(f"the answer is {payload['answer']}")

    with monkeypatch.context() as patch:
        patch.setattr(FinalAnswerAuditor, "judge", broken)
        verdicts = ask(client, found, problem(found), 100, "faulty")["verdicts"]
    failed = [verdict for verdict in verdicts if verdict["status"] == "infra_error"]
    assert failed
    assert {(verdict["score"], verdict["reason"]) for verdict in failed} == {(None, "the audit failed with RuntimeError")}
    again = {verdict["id"]: verdict for verdict in ask(client, found, problem(found), 100, "faulty")["verdicts"]}
    assert all(again[verdict["id"]]["audit"]["score"] == 0.0 for verdict in failed)


def test_metrics_count_audits(client: TestClient) -> None:
    found = task(client, "sums", 5)
    audited = sum(verdict["audit"] is not None for verdict in ask(client, found, problem(found), 200, "m")["verdicts"])
    line = 'rlvr_verifier_audits_total{environment="sums",flaky="false",paid="true",right="false"}'
    value = next(text.rpartition(" ")[2] for text in client.get("/metrics").text.splitlines() if text.startswith(line))
    assert float(value) == audited > 0
