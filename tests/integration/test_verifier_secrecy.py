"""A gold answer never leaves the service: not in answers, errors, keys, logs, metrics or spans, whatever is sent and whatever fails."""

import base64
import logging
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import taskset_package
from fastapi.testclient import TestClient
from gymnasium_package import write_package
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from judge_server import judging
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from plugin_package import write_plugin
from pydantic import JsonValue
from pydantic.alias_generators import to_camel
from verifier_jobs import verifier_job, write_problems, write_rows

from rlvr_verifier.app import build_app
from rlvr_verifier.drain import Drain
from rlvr_verifier.environments import ENVIRONMENTS, open_environments
from rlvr_verifier.environments.base import Environment, Place, SampledTask, Score
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.pool import WorkerPool
from rlvr_verifier.seal import Seal
from rlvr_verifier.service import VerifierService


class LeakyEnvironment:
    """Quotes the gold answer in the exceptions it raises."""

    kind, version, deterministic, place, levels = "leaky", "1", True, Place.SERVICE, (0, 0)
    name = "leaky"

    def __init__(self, real: Environment) -> None:
        self.real = real
        self.fail_to_sample = False

    def held_out_tasks(self, level: int) -> int:
        return 0

    def sample(self, split: str, seed: int, level: int) -> SampledTask:
        task = self.real.sample("train", seed, 15)
        if self.fail_to_sample:
            raise RuntimeError(f"cannot show the answer {task.payload['answer']}")
        return task

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        raise ValueError(f"{completion} is not {payload['answer']}")


@dataclass(frozen=True)
class Bench:
    client: TestClient
    spans: InMemorySpanExporter
    leaky: LeakyEnvironment
    golds: Mapping[str, str]
    keys: Mapping[str, str]


LISTED: dict[str, tuple[dict[str, Any], str, str]] = {
    "json_schema": (
        {"prompt": "Write the code.", "schema": {"type": "string", "minLength": 3}, "expected": {"": "zq-73859"}, "example": "zq-73859"},
        "zq-73859",
        '"zq-73859"',
    ),
    "regex": (
        {"prompt": "Match it.", "mustMatch": ["zq-73859"], "mustNotMatch": ["zq", ""], "reference": "z[q]-73859"},
        "zq-73859",
        "z[q]-73859",
    ),
    "instructions": (
        {
            "prompt": "Greet them.",
            "constraints": [{"kind": "startsWith", "phrase": "Dear"}, {"kind": "wordCount", "minimum": 4}],
            "example": "Dear friends of zq-73859",
        },
        "zq-73859",
        "Dear friends of zq-73859",
    ),
    "sql": (
        {
            "prompt": "How many?",
            "schema": "CREATE TABLE t (x INTEGER);",
            "rows": "INSERT INTO t VALUES (1), (2), (3), (4), (5);",
            "reference": "SELECT count(*) AS zq73859 FROM t",
        },
        "zq73859",
        "SELECT count(x) FROM t",
    ),
    "judge": ({"prompt": "Write the code.", "rubric": "It is zq-73859.", "reference": "zq-73859"}, "zq-73859", "It is zq-73859"),
}
"""Kinds of datasets: a row, a part of it that nobody may see, and a right answer."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with judging(lambda _, answer: "zq-73859" in answer) as server, pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(write_plugin(tmp_path_factory.mktemp("site")))
        patch.syspath_prepend(write_package(tmp_path_factory.mktemp("stepped"), "codes"))
        patch.syspath_prepend(taskset_package.write_package(tmp_path_factory.mktemp("tasksets")))
        patch.setattr(sys, "path", [*sys.path, str(taskset_package.LIBRARY)])
        yield from serve(tmp_path_factory, {"judge": {"endpoint": server.endpoint, "model": "sage"}})


def serve(tmp_path_factory: pytest.TempPathFactory, settings: Mapping[str, dict[str, Any]]) -> Iterator[Bench]:
    dataset = write_problems(tmp_path_factory.mktemp("data"), [("Factor it.", "(x-73859)(x+91127)")])
    environments_of_job = [
        {"name": "sums", "arithmetic": {"operations": ["*"]}, "levels": {"start": 15, "maximum": 15}},
        {"name": "math", "math": {"dataset": dataset, "heldOut": 0.01}},
        {"name": "puzzle", "reasoningGym": {"task": "chain_sum"}, "levels": {"start": 9, "maximum": 9}},
        {"name": "plugin", "plugin": {"name": "reversal"}},
        {"name": "desk", "calculator": {"operations": ["*"]}, "levels": {"start": 15, "maximum": 15}},
        {"name": "code", "gymnasium": {"id": "codes:Code-v0"}},
        {"name": "words", "taskset": {"id": "backwards", "lowestReward": 0.5}},
        *(
            {
                "name": name_of(kind),
                to_camel(kind): {
                    "dataset": write_rows(tmp_path_factory.mktemp(kind), row),
                    "heldOut": 1e-4,
                    **settings.get(kind, {}),
                },
            }
            for kind, (row, _, _) in LISTED.items()
        ),
    ]
    job = verifier_job(environments_of_job, workers=1)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    environments: dict[str, Environment] = dict(open_environments(job, {}))
    leaky = environments["leaky"] = LeakyEnvironment(environments["sums"])
    pool, instruments = WorkerPool(job.model_dump_json(), job.spec), Instruments()
    service = VerifierService(job.spec.model_copy(), environments, Seal(b"k" * 32), pool, instruments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "get_tracer", provider.get_tracer)
        app = build_app(service, instruments, Drain())
    with TestClient(app, raise_server_exceptions=False) as client:
        keys, golds = {}, {name_of(kind): gold for kind, (_, gold, _) in LISTED.items()}
        for name, level in {
            "sums": 15,
            "math": 0,
            "puzzle": 9,
            "leaky": 0,
            "plugin": 0,
            "desk": 15,
            "code": 0,
            "words": 0,
            **dict.fromkeys(golds, 0),
        }.items():
            request = {"environment": name, "split": "train", "seed": 5, "level": level}
            keys[name] = client.post("/v1/sample", json={"items": [request]}).json()["tasks"][0]["taskKey"]
            payload = Seal(b"k" * 32).open(keys[name], name, environments[name].version)
            if name not in golds:
                golds[name] = str(payload["answer"]) if "answer" in payload else TOLD[name](payload)
        yield Bench(client, exporter, leaky, golds, keys)


def name_of(kind: str) -> str:
    return kind.replace("_", "-")


def code_of(payload: Mapping[str, JsonValue]) -> str:
    import gymnasium

    made = gymnasium.make("Code-v0", disable_env_checker=True)
    made.reset(seed=payload["seed"])
    return str(made.unwrapped.code)


def puzzle_answer(payload: Mapping[str, JsonValue]) -> str:
    import reasoning_gym
    from reasoning_gym.factory import create_curriculum

    curriculum = create_curriculum("chain_sum")
    for attribute in curriculum.attributes.values():
        curriculum.set_attr_level(attribute.name, min(9, len(attribute.levels) - 1))
    fields = ("min_terms", "max_terms", "min_digits", "max_digits")
    config = {field: getattr(curriculum.generate_configuration(), field) for field in fields}
    return str(reasoning_gym.create_dataset("chain_sum", size=1, seed=payload["seed"], **config)[0]["answer"])


TOLD = {"code": code_of, "puzzle": puzzle_answer, "words": lambda payload: str(payload["word"])[::-1]}
"""Kinds whose answer is no part of what is sealed."""


def test_every_kind_of_environment_is_here(bench: Bench) -> None:
    assert len(bench.golds) == len(ENVIRONMENTS) + 1
    assert all(len(gold) >= 5 for gold in bench.golds.values()), "long enough not to be found by chance"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    environment=st.sampled_from(["sums", "math", "puzzle", "leaky", "plugin", "desk", "code", "words", *map(name_of, LISTED)]),
    completion=st.text(max_size=200)
    | st.sampled_from(["too long", "123", "12345678", r"\boxed{x^2}", r"\boxed{\ge 3}", "<answer>12</answer>", "-1", "crash"]),
    truncated=st.booleans(),
)
def test_nothing_that_leaves_the_service_holds_the_answer(
    bench: Bench, caplog: pytest.LogCaptureFixture, environment: str, completion: str, truncated: bool
) -> None:
    gold = bench.golds[environment]
    assume(gold not in completion)
    sent = "7" * 70_000 if completion == "too long" else completion
    item = {"id": str(uuid.uuid4()), "environment": environment, "taskKey": bench.keys[environment], "completion": sent}
    with caplog.at_level(logging.DEBUG):
        answer = bench.client.post("/v1/score", json={"items": [{**item, "truncated": truncated}]})
        if environment in ("desk", "code") and len(sent) <= 65_536:
            step = {"environment": environment, "taskKey": item["taskKey"], "transcript": {"actions": [sent]}}
            assert_absent(bench, caplog, gold, bench.client.post("/v1/step", json={"items": [step]}).text)
    assert answer.json()["verdicts"][0]["status"] in ("fail", "invalid", "infra_error")
    assert_absent(bench, caplog, gold, answer.text)


def test_a_right_answer_is_in_no_log_metric_or_span(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    for environment, gold in bench.golds.items():
        listed = {name_of(kind): right for kind, (_, _, right) in LISTED.items()}
        completion = f"\\boxed{{{gold}}}" if environment == "math" else listed.get(environment, gold)
        item = {"id": f"right-{environment}", "environment": environment, "taskKey": bench.keys[environment], "completion": completion}
        with caplog.at_level(logging.DEBUG):
            verdict = bench.client.post("/v1/score", json={"items": [item]}).json()["verdicts"][0]
        assert verdict["status"] == ("infra_error" if environment == "leaky" else "pass")
        assert_absent(bench, caplog, gold, "")


def test_errors_and_keys_hold_no_answer(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.leaky.fail_to_sample = True
    texts = []
    with caplog.at_level(logging.DEBUG):
        broken = bench.client.post("/v1/sample", json={"items": [{"environment": "leaky", "split": "train", "seed": 5}]})
        texts.append(broken.text)
        assert (broken.status_code, "RuntimeError" in broken.json()["error"]) == (500, True)
        for name, key in bench.keys.items():
            wrongs = ({"environment": name, "taskKey": key[:-8]}, {"environment": "sums", "taskKey": bench.keys["math"]}, {})
            bodies = ({"items": [{"id": "e", "completion": "1", **wrong}]} for wrong in wrongs)
            texts += [bench.client.post("/v1/score", json=body).text for body in bodies]
        texts.append(bench.client.get("/v1/environments").text)
    bench.leaky.fail_to_sample = False
    for gold in bench.golds.values():
        assert_absent(bench, caplog, gold, "\n".join(texts))
        for key in bench.keys.values():
            assert gold.encode() not in base64.urlsafe_b64decode(key)
            assert gold not in key


def assert_absent(bench: Bench, caplog: pytest.LogCaptureFixture, gold: str, text: str) -> None:
    spans = "\n".join(span.to_json() for span in bench.spans.get_finished_spans()[-5:])
    logs = "\n".join(f"{logging.Formatter().format(record)} {record.__dict__}" for record in caplog.records)
    assert bench.spans.get_finished_spans()
    for place, content in {"answer": text, "logs": logs, "metrics": bench.client.get("/metrics").text, "spans": spans}.items():
        assert gold not in content, f"the gold answer is in the {place}"
