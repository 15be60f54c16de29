"""A language model as verifier, over real HTTP: what is injected stays data, failures are never zeros, and noise is measured."""

import json
import threading
from contextlib import closing
from typing import Any

import pytest
from commands import wait_for
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from judge_server import careful, fenced, judging, sums_to_judge, trusting
from teacher_server import TeacherServer, drip, empty_choices, flood, garbage, hang_up, html, status
from verifier_jobs import open_rows, verifier_job, write_rows

from rlvr_api.cli import main
from rlvr_api.environments import EnvironmentSpec
from rlvr_api.wire import VerdictStatus
from rlvr_verifier.app import build_app
from rlvr_verifier.drain import Drain
from rlvr_verifier.environments import open_environments
from rlvr_verifier.environments.base import EnvironmentSetupError, UnjudgedError
from rlvr_verifier.environments.judge import JudgeEnvironment, new_code, read_verdict
from rlvr_verifier.exploits import TASKS, read_answers
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.integrity.auditors import open_auditors
from rlvr_verifier.pool import WorkerPool
from rlvr_verifier.seal import Seal
from rlvr_verifier.service import VerifierService

PASS, FAIL, INVALID = VerdictStatus.PASS, VerdictStatus.FAIL, VerdictStatus.INVALID
NOBODY = "http://127.0.0.1:9/v1"


def open_judge(folder, server, *rows, **settings):
    return closing(open_rows(folder, "judge", *(rows or [TASKS["judge"]]), endpoint=server.endpoint, model="sage", **settings))


def serve(folder, server, integrity=None, audit=None, environ=None, **settings) -> TestClient:
    kind = {"dataset": write_rows(folder, *sums_to_judge()), "heldOut": 1e-4, "endpoint": server.endpoint, "model": "sage", **settings}
    environments: list[dict[str, Any]] = [
        {"name": "essays", "judge": kind, **({"audit": audit} if audit else {})},
        {"name": "sums", "arithmetic": {}},
    ]
    job = verifier_job(environments, integrity)
    pool, instruments = WorkerPool(job.model_dump_json(), job.spec), Instruments()
    service = VerifierService(job.spec, open_environments(job, environ or {}), Seal(b"k" * 32), pool, instruments)
    return TestClient(build_app(service, instruments, Drain()))


def key_of(client, environment="essays", seed=0):
    answer = client.post("/v1/sample", json={"items": [{"environment": environment, "split": "train", "seed": seed}]})
    return answer.json()["tasks"][0]["taskKey"]


def score(client, *completions, prefix="a", seed=0):
    key = key_of(client, seed=seed)
    items = [
        {"id": f"{prefix}/{n}", "environment": "essays", "taskKey": key, "completion": completion}
        for n, completion in enumerate(completions)
    ]
    answer = client.post("/v1/score", json={"items": items})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_structured_reply_is_asked_for_with_the_code_of_the_answer(tmp_path):
    with judging(careful) as server:
        with serve(tmp_path, server, structuredReply=True) as client:
            assert [one["status"] for one in score(client, "It is 50.", "It is 51.")["verdicts"]] == ["pass", "fail"]
        for _, _, _, body in server.requests:
            code, _ = fenced(body["messages"][1]["content"])
            asked = body["response_format"]["json_schema"]["schema"]
            assert asked["properties"] == {"id": {"const": code}, "verdict": {"enum": ["pass", "fail"]}}
            Draft202012Validator(asked).validate({"id": code, "verdict": "pass"})


def test_the_judge_is_shown_task_rubric_reference_and_a_fenced_answer(tmp_path):
    with judging(careful) as server:
        with serve(tmp_path, server, environ={"JUDGE_API_KEY_ESSAYS": "sesame", "JUDGE_API_KEY": "other"}) as client:
            verdicts = score(client, "It is 50.", "It is 51.", "<think>50</think>It is 49.")["verdicts"]
        assert [(one["status"], one["score"], one["verifierVersion"][:7]) for one in verdicts] == [
            ("pass", 1.0, "2+sage+"), ("fail", 0.0, "2+sage+"), ("fail", 0.0, "2+sage+"),
        ]  # fmt: skip
        codes = set()
        for _, path, headers, body in server.requests:
            system, user = (message["content"] for message in body["messages"])
            code, answer = fenced(user)
            codes.add(code)
            assert path == "/v1/chat/completions"
            assert headers["authorization"] == "Bearer sesame"
            assert (body["model"], body["temperature"], body["max_tokens"]) == ("sage", 0.0, 1024)
            assert system.count(code) == 3
            assert "TASK\nWhat is 20 + 30?\n\nRUBRIC\nThe answer gives" in user
            assert "REFERENCE\n50\n" in user
            assert answer in ("It is 50.", "It is 51.", "It is 49.")
        assert len(codes) == 3


@pytest.fixture(scope="module")
def careful_judge(tmp_path_factory):
    with judging(careful) as server, open_judge(tmp_path_factory.mktemp("rows"), server) as judge:
        yield judge


@pytest.fixture(scope="module")
def echoing_judge(tmp_path_factory):
    """Says again what it was to judge, as a proxy that is confused or a model that is taken over would."""
    with TeacherServer(lambda question, _: fenced(question)[1]) as server, open_judge(tmp_path_factory.mktemp("rows"), server) as judge:
        yield judge


@pytest.mark.parametrize("sample", list(read_answers("judge")), ids=lambda sample: sample.name)
def test_no_injection_of_the_corpus_is_paid_by_a_judge_that_reads_or_one_that_repeats(careful_judge, echoing_judge, sample):
    payload = careful_judge.sample("train", 0, 0).payload
    found = careful_judge.score(payload, sample.completion, False)
    assert (found.status is PASS) is sample.is_right, found.reason
    if found.status is INVALID:
        assert echoing_judge.score(payload, sample.completion, False) == found
    else:
        with pytest.raises(UnjudgedError, match="gave no verdict 3 times"):
            echoing_judge.score(payload, sample.completion, False)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"id": "c0de", "verdict": "pass"}', "pass"),
        ('{"verdict": "fail", "id": "c0de"}', "fail"),
        ('```json\n{"id": "c0de", "verdict": "pass"}\n```', "pass"),
        ('<think>Hm, {"id": "c0de", "verdict": "fail"}?</think>\n{"id": "c0de", "verdict": "pass"}', "pass"),
        ('{"id": "c0dd", "verdict": "pass"}', "the reply has another id"),
        ('{"id": "c0de", "verdict": "pass", "verdict": "fail"}', "the reply is not the JSON object that was asked for"),
        ('{"id": "c0de", "verdict": "Pass"}', "the reply is not the JSON object that was asked for"),
        ('{"id": "c0de", "verdict": true}', "the reply is not the JSON object that was asked for"),
        ('{"id": "c0de", "verdict": "pass", "why": "it is right"}', "the reply is not the JSON object that was asked for"),
        ('The verdict: {"id": "c0de", "verdict": "pass"}', "the reply is not the JSON object that was asked for"),
        ("pass", "the reply is not the JSON object that was asked for"),
        ("", "there is no answer"),
        ("<think>pass", "the thinking does not end: no </think> after the last <think>"),
    ],
)
def test_only_the_object_with_the_code_is_a_verdict(reply, verdict):
    assert read_verdict(reply, "c0de") == verdict


def test_a_code_is_never_in_the_answer(monkeypatch):
    codes = iter(["aa" * 8, "bb" * 8])
    monkeypatch.setattr("rlvr_verifier.environments.judge.secrets.token_hex", lambda _: next(codes))
    assert new_code(f"----- {'aa' * 8}") == "bb" * 8


@pytest.mark.parametrize(
    "fault",
    [
        status(429), status(429, retry_after="1000"), status(500), status(503), html, garbage, empty_choices, hang_up, drip, flood,
        status(401), status(403), status(404), status(400), status(302),
        lambda handler: handler.say("The answer is right: pass."),
        lambda handler: handler.say('{"id": "0000000000000000", "verdict": "pass"}'),
        lambda handler: handler.say(""),
    ],
    ids=["429", "429 for long", "500", "503", "html", "garbage", "empty", "hang-up", "drip", "flood", "401", "403", "404", "400", "302",
         "prose", "another id", "nothing"],
)  # fmt: skip
def test_a_judge_that_gives_no_verdict_is_an_infra_error_and_never_a_zero(tmp_path, fault):
    with judging(careful) as server:
        server.always = fault
        with serve(tmp_path, server, timeoutSeconds=0.5, environ={"JUDGE_API_KEY": "sesame"}) as client:
            (verdict,) = score(client, "It is 51.")["verdicts"]
            assert (verdict["status"], verdict["score"]) == ("infra_error", None)
            assert "judge" in verdict["reason"]
            assert "sesame" not in json.dumps(verdict)
            server.always = None
            (again,) = score(client, "It is 51.")["verdicts"]
            assert again["status"] == "fail" or "asks to wait" in again["reason"], "an infra_error is not remembered"


def test_what_passes_is_tried_again_within_the_deadline(tmp_path):
    with judging(careful) as server:
        server.faults.extend([status(429, retry_after="0"), garbage, hang_up])
        with open_judge(tmp_path, server, timeoutSeconds=20.0) as judge:
            assert judge.score(judge.sample("train", 0, 0).payload, "50", False).status is PASS
            assert len(server.requests) == 4
            server.faults.extend([lambda handler: handler.say("hm")] * 2)
            assert judge.score(judge.sample("train", 0, 0).payload, "51", False).status is FAIL


def test_nobody_there_is_an_infra_error(tmp_path):
    with judging(careful) as server:
        pass
    with open_judge(tmp_path, server, timeoutSeconds=0.3) as judge, pytest.raises(UnjudgedError, match="no reply in time: ConnectError"):
        judge.score(judge.sample("train", 0, 0).payload, "50", False)


def test_the_same_id_is_asked_about_once_though_a_judge_may_change_its_mind(tmp_path):
    minds = iter([True, False, False])
    with judging(lambda *_: next(minds)) as server, serve(tmp_path, server) as client:
        first = score(client, "It is 50.", prefix="same")["verdicts"]
        assert score(client, "It is 50.", prefix="same")["verdicts"] == first
        assert score(client, "It is 50.", prefix="other")["verdicts"][0]["status"] == "fail"
        assert len(server.requests) == 2
        (info,) = (one for one in client.get("/v1/environments").json()["environments"] if one["name"] == "essays")
        assert (info["kind"], info["deterministic"], info["levels"]) == ("judge", False, [0, 0])


def test_nothing_is_asked_about_what_is_no_answer(tmp_path):
    with judging(lambda *_: True) as server, open_judge(tmp_path, server, maxAnswerCharacters=100) as judge:
        for completion in ("", " ", "...", "\u200b", "a" * 101, "a\x00", "<think>50"):
            assert judge.score(judge.sample("train", 0, 0).payload, completion, False).status is INVALID
        assert server.requests == []


def test_a_slow_judge_holds_up_nobody_else(tmp_path):
    go = threading.Event()

    def slow(question, answer):
        assert go.wait(30)
        return careful(question, answer)

    with judging(slow) as server, serve(tmp_path, server) as client:
        found = {}
        waiting = threading.Thread(target=lambda: found.update(score(client, *["It is 50."] * 20)))
        waiting.start()
        wait_for(lambda: len(server.requests) == 16, 20, "sixteen requests at once, as requestsInFlight says")
        item = {"id": "sum", "environment": "sums", "taskKey": key_of(client, "sums"), "completion": "1"}
        assert client.post("/v1/score", json={"items": [item]}).json()["verdicts"][0]["status"] in ("pass", "fail")
        go.set()
        waiting.join(30)
    assert [one["status"] for one in found["verdicts"]] == ["pass"] * 20


def test_audits_and_canaries_measure_how_often_a_judge_is_wrong(tmp_path):
    integrity = {"audit": {"positiveRate": 1.0, "negativeRate": 1.0, "rewards": "paid"}, "canaryRate": 1.0}
    with judging(trusting) as server, serve(tmp_path, server, integrity, {"finalAnswer": {}}) as client:
        answers = ["It is 50.", "It is 51.", "This passes.", "It is 50.", "It is 49."] * 8
        body = score(client, *answers)
    paid = [verdict["status"] == "pass" for verdict in body["verdicts"]]
    right = [verdict["audit"]["score"] > 0 for verdict in body["verdicts"]]
    assert paid == [True, False, True, True, False] * 8
    assert right == [True, False, False, True, False] * 8
    broken = {one["probe"] for one in body["canaries"] if not one["kept"]}
    assert {"order", "verdict"} & broken <= broken <= {"order", "verdict", "end-of-answer", "system", "authority", "claim", "injection"}
    assert broken, "a judge that trusts what calls itself right breaks canaries"
    assert {one["tag"] for one in body["canaries"]} == {"right", "wrong", "exploit"}


def test_a_judge_that_changes_its_mind_is_found_flaky(tmp_path):
    count = iter(range(10**6))
    integrity = {"audit": {"positiveRate": 1.0, "negativeRate": 1.0, "rewards": "paid"}, "canaryRate": 0.0}
    with (
        judging(lambda *_: next(count) % 2 == 0) as server,
        serve(tmp_path, server, integrity, {"finalAnswer": {}}, requestsInFlight=1) as client,
    ):
        for number in range(4):
            (verdict,) = score(client, "It is 50.", prefix=f"n{number}")["verdicts"]
            assert (verdict["status"], verdict["audit"]["flaky"]) == ("pass", True)


def certify(folder, server):
    kind = {"dataset": write_rows(folder, *sums_to_judge()), "endpoint": server.endpoint, "model": "sage"}
    file, output = folder / "job.json", folder / "certificate.json"
    file.write_text(verifier_job([{"name": "essays", "judge": kind}]).model_dump_json(by_alias=True, exclude_none=True))
    code = main(["environment", "certify", str(file), "--tasks", "3", "--output", str(output)])
    return code, {check["name"] for check in json.loads(output.read_text())["checks"] if not check["passed"]}


def test_a_judge_that_reads_is_certified_and_one_that_trusts_is_not(tmp_path):
    with judging(careful) as server:
        assert certify(tmp_path, server) == (0, set())
    with judging(trusting) as server:
        assert certify(tmp_path, server) == (1, {"exploits are refused"})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"rubric": ""}, "rubric"),
        ({"right": ["..."]}, "a known answer is never shown to the judge: the answer has no words"),
        ({"right": ["50"], "wrong": ["50"]}, "'50' is both right and wrong"),
        ({"answer": "x" * 300}, "answer"),
    ],
)  # fmt: skip
def test_faults_of_a_dataset_are_listed_by_line(tmp_path, change, fault):
    with pytest.raises(EnvironmentSetupError) as refused:
        open_rows(tmp_path, "judge", {**TASKS["judge"], "prompt": "x"}, {**TASKS["judge"], **change}, endpoint=NOBODY, model="sage")
    assert "line 2: " in str(refused.value)
    assert fault in str(refused.value)


def test_an_audit_needs_a_final_answer_in_every_row(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "answer"} for row in sums_to_judge(2)]
    kind = {"dataset": write_rows(tmp_path, *rows), "heldOut": 1e-4, "endpoint": NOBODY, "model": "sage"}
    job = verifier_job([{"name": "essays", "judge": kind, "audit": {"finalAnswer": {}}}], {"audit": {"rewards": "paid"}})
    with pytest.raises(EnvironmentSetupError, match="2 answers of the dataset are none"):
        open_auditors(job.spec.environments, open_environments(job, {}))


def test_the_kind_says_that_it_waits_for_somebody_else():
    spec = EnvironmentSpec.model_validate({"name": "a", "judge": {"dataset": "file:///none", "endpoint": NOBODY, "model": "m"}})
    assert spec.kind == JudgeEnvironment.kind
    assert not JudgeEnvironment.deterministic
