"""A teacher that answers, refuses, floods, drips and lies, over real HTTP; what passed becomes a dataset, once, whatever dies."""

import itertools
import json
import time
from collections import Counter
from types import SimpleNamespace

import httpx
import lone_run
import pytest
from lone_run import KEYS, KilledError, execute, make_job
from teacher_server import TeacherServer, drip, empty_choices, flood, garbage, hang_up, html, status

from rlvr_api.spec import RLVRJob
from rlvr_trainer.chat import ChatFormat
from rlvr_trainer.collector.verifiers import VerifierClient
from rlvr_trainer.contamination import Reference
from rlvr_trainer.context import BadInputError
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.stages.distill import TeacherUselessError
from rlvr_trainer.storage.checkpoint_reader import load_latest
from rlvr_trainer.storage.distilled import read_answers, read_dataset
from rlvr_trainer.storage.records import read_records
from rlvr_trainer.teacher import TeacherUnreachableError
from rlvr_verifier.app import build_app
from rlvr_verifier.drain import Drain
from rlvr_verifier.environments import open_environments
from rlvr_verifier.environments.arithmetic import ArithmeticEnvironment
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.pool import WorkerPool
from rlvr_verifier.seal import Seal
from rlvr_verifier.service import VerifierService

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill") / "tiny"
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def numbers():
    return itertools.count()


@pytest.fixture
def place(s3, numbers, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    return SimpleNamespace(uri=s3.folder(f"distill-{next(numbers)}"), endpoint=s3.endpoint)


@pytest.fixture
def teacher():
    with TeacherServer() as server:
        yield server


@pytest.fixture
def run_stage(place, model, teacher):
    """One attempt of a job of one `distill` stage; returns its run."""

    def run_stage(attempt=1, fuse=None, stage=None, stall=20.0, settings=None, references=(), then=lambda run: None):
        spec = {
            "teacher": {"endpoint": teacher.endpoint, "model": "sage", "requestsInFlight": 3, **(settings or {})},
            "prompts": PROMPTS,
            "examplesPerStep": 4,
            **(stage or {}),
        }
        environments = [{"name": "sums", "arithmetic": {"instruction": "{problem}="}}]
        job = make_job(place, model, {"distill": spec}, deadlines={"stallSeconds": stall}, environments=environments)
        runner = SimpleNamespace(chat=ChatFormat(model, None, 56), verifiers=VerifierClient("http://v", verifier_service(job), 20.0))
        run = lone_run.make_run(job, place, model, attempt, runner, fuse, references=references)
        then(run)
        execute(run)
        return run

    return run_stage


def verifier_service(job: RLVRJob) -> httpx.AsyncClient:
    """The real one, without a socket between."""
    pool, instruments = WorkerPool(job.model_dump_json(), job.spec), Instruments()
    app = build_app(VerifierService(job.spec, open_environments(job, {}), Seal(b"k" * 32), pool, instruments), instruments, Drain())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app))


def traces_of(run):
    manifest = read_dataset(run.store, KEYS)
    return [json.loads(line) for line in bytes(run.store.read(manifest.traces)).splitlines()]


def test_what_passed_is_learned_and_stays_as_a_dataset_that_says_where_it_comes_from(run_stage, teacher, monkeypatch):
    monkeypatch.setenv("TEACHER_API_KEY", "sesame")
    wrong = iter([True, False, False])
    teacher.answer = lambda text, number: "99" if next(wrong, False) else str(eval(text.rstrip("=")))
    run = run_stage(stage={"samplesPerPrompt": 2, "epochs": 2})
    lines = traces_of(run)
    assert [line["index"] for line in lines] == sorted(line["index"] for line in lines)
    assert len({line["index"] for line in lines}) == PROMPTS
    for line in lines:
        question, answer = (message["content"] for message in line["messages"])
        assert eval(question.rstrip("=")) == int(answer)
        assert (line["environment"], line["verifier"], line["score"]) == ("sums", f"arithmetic {ArithmeticEnvironment.version}", 1.0)
    manifest = read_dataset(run.store, KEYS)
    assert manifest.statuses == {"fail": 1, "pass": PROMPTS}
    assert (manifest.requests, manifest.tokens, manifest.prompts, manifest.examples) == (PROMPTS + 1, 10 * (PROMPTS + 1), PROMPTS, PROMPTS)
    assert manifest.teacher == f"sage at {teacher.endpoint}"
    (stage,) = load_latest(run.store, KEYS).manifest.lineage.stages
    assert (stage.kind, stage.external_traces, stage.steps) == ("distill", True, 6)
    (dataset,) = stage.datasets
    assert (dataset.uri, dataset.sha256) == (run.store.uri(manifest.traces.key), manifest.traces.sha256)
    assert dataset.made_by == manifest.teacher
    assert {request[1] for request in teacher.requests} == {"/v1/chat/completions"}
    assert {request[2]["authorization"] for request in teacher.requests} == {"Bearer sesame"}
    assert teacher.requests[0][3]["max_tokens"] == 4096


def test_passing_faults_cost_time_and_nothing_else(run_stage, teacher):
    faults = [status(429, retry_after="0.4"), status(500), html, garbage, hang_up, status(503, retry_after="0")]
    teacher.faults.extend(one for fault in faults for one in (fault, None))
    run = run_stage(settings={"requestsInFlight": 1})
    assert len(traces_of(run)) == PROMPTS
    assert len(teacher.requests) == PROMPTS + len(faults)
    assert teacher.requests[1][0] - teacher.requests[0][0] >= 0.4


def test_a_slow_answer_and_one_that_drips_are_asked_for_again(run_stage, teacher):
    teacher.faults.extend([drip, lambda handler: time.sleep(2)])
    run = run_stage(settings={"timeoutSeconds": 0.5, "requestsInFlight": 1}, stage={"prompts": 3})
    assert len(traces_of(run)) == 3
    assert len(teacher.requests) == 5


def test_answers_of_no_use_are_counted_and_not_learned(run_stage, teacher):
    teacher.faults.extend([
        lambda handler: handler.say("7", finish="length"), lambda handler: handler.say("7<e>7"), lambda handler: handler.say(""),
        status(400, b"content filter"), flood, html, empty_choices, html,
    ])  # fmt: skip
    run = run_stage(settings={"requestsInFlight": 1})
    manifest = read_dataset(run.store, KEYS)
    assert manifest.statuses == {"pass": PROMPTS - 6, "truncated": 1, "unrenderable": 2, "unusable": 3}


@pytest.mark.parametrize(
    ("code", "advice"), [(401, "set TEACHER_API_KEY"), (403, "may use the model"), (404, "check teacher.endpoint and teacher.model")]
)
def test_what_only_a_person_can_mend_ends_the_job_and_never_shows_the_key(run_stage, teacher, monkeypatch, code, advice):
    monkeypatch.setenv("TEACHER_API_KEY", "sesame")
    teacher.always = status(code, b"your key sesame is wrong")
    with pytest.raises(BadInputError, match=advice) as caught:
        run_stage()
    assert "sesame" not in str(caught.value)
    assert len(teacher.requests) <= 3


def test_an_endpoint_that_is_no_teacher_is_given_up_with_what_it_said(run_stage, teacher):
    teacher.always = status(422, b"unknown route")
    with pytest.raises(TeacherUselessError, match=r"16 answers of the teacher in a row .* unknown route"):
        run_stage(stage={"prompts": 40})


@pytest.mark.parametrize("fault", [status(429, retry_after="3600"), status(502), hang_up])
def test_an_outage_ends_the_attempt_in_time(run_stage, teacher, fault):
    teacher.always = fault
    started = time.monotonic()
    with pytest.raises(TeacherUnreachableError, match="stallSeconds"):
        run_stage(stall=1.5)
    assert time.monotonic() - started < 15


def test_a_budget_ends_the_asking_and_what_was_kept_is_learned(run_stage, teacher):
    run = run_stage(settings={"budgetTokens": 45, "requestsInFlight": 1})
    assert len(teacher.requests) == 5  # ten tokens each: the fifth passes the budget
    assert len(traces_of(run)) == 5


def test_a_budget_needs_a_teacher_that_counts(run_stage, teacher):
    teacher.always = lambda handler: handler.say("7", tokens=None)
    with pytest.raises(BadInputError, match=r"usage.total_tokens"):
        run_stage(settings={"budgetTokens": 45})


def test_a_rate_limit_is_kept(run_stage, teacher):
    run_stage(settings={"requestsPerMinute": 600}, stage={"prompts": 6})
    times = [request[0] for request in teacher.requests]
    assert times[-1] - times[0] >= 5 * 0.1 - 0.05


def test_a_teacher_that_never_passes_is_said_to(run_stage, teacher):
    teacher.answer = lambda text, number: "no idea"
    with pytest.raises(BadInputError, match="keeps none of 12 answers of sage"):
        run_stage()


def test_held_out_tasks_among_the_answers_are_found(run_stage, teacher):
    references = [Reference(f"{a} + {b}", f"{a} + {b}=") for a in range(10) for b in range(10)]
    run = run_stage(references=references)
    (dataset,) = load_latest(run.store, KEYS).manifest.lineage.stages[0].datasets
    assert dataset.contamination.examples == PROMPTS


def test_an_attempt_that_dies_while_asking_is_gone_on_with(run_stage, teacher, model):
    """Every task that has answers is asked about once, and the run ends as if nothing had happened."""

    class DiedError(Exception):
        pass

    def die_after_five(run):
        update, run.board.update = run.board.update, lambda **values: update(**values) or stop(values)

        def stop(values):
            if values.get("message", "").startswith("asked the teacher about 5 "):
                raise DiedError

    with pytest.raises(DiedError):
        run_stage(then=die_after_five, settings={"requestsInFlight": 2})
    asked_once = len(teacher.requests)
    assert asked_once <= 7
    with pytest.raises(KilledError):
        run_stage(attempt=2, fuse=1)
    run = run_stage(attempt=3)
    answers = read_answers(run.store, KEYS)
    assert sorted(answers) == list(range(PROMPTS))
    questions = Counter(request[3]["messages"][-1]["content"] for request in teacher.requests)
    wanted = Counter(one.messages[-1].content for one in answers.values())
    assert sum((questions - wanted).values()) <= 2  # what was under way
    assert [index for committed in read_records(run.store, KEYS) for index in committed.record.groups] == list(range(PROMPTS))
    before = len(teacher.requests)
    run_stage(attempt=4)
    assert len(teacher.requests) == before
