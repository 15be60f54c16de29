"""What a local run finds wrong before it starts anything."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from rlvr_api.loading import load_job
from rlvr_operator.local import preflight

JOB = {
    "apiVersion": "rlvr.dev/v1alpha1",
    "kind": "RLVRJob",
    "metadata": {"name": "job"},
    "spec": {
        "model": {"uri": "file://models/base", "maxModelLen": 64},
        "environments": [{"name": "sums", "arithmetic": {}}, {"name": "math", "math": {"dataset": "file://data.jsonl"}}],
        "sampling": {"maxTokens": 8},
        "stages": [{"name": "climb", "rlvr": {"steps": 4}}],
    },
}


@pytest.fixture
def place(tmp_path):
    model = tmp_path / "models" / "base"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"max_position_embeddings": 128}')
    (model / "model.safetensors").touch()
    (tmp_path / "data.jsonl").touch()
    return tmp_path


def problems(place, **spec):
    job = json.loads(json.dumps(JOB))
    job["spec"] |= spec
    return [str(problem) for problem in preflight.find_problems(preflight.resolve_paths(load_job(json.dumps(job).encode()), place), place)]


def test_a_job_that_can_run_has_none(place):
    assert problems(place) == []


def test_relative_paths_are_taken_from_the_job_s_folder(place):
    job = preflight.resolve_paths(load_job(json.dumps(JOB).encode()), place)
    assert job.spec.model.uri == f"file://{place}/models/base"
    assert job.spec.environments[1].math.dataset == f"file://{place}/data.jsonl"
    assert preflight.resolve_paths(job, Path("/elsewhere")) == job


@pytest.mark.parametrize("kind", ["math", "pythonFunctions", "stdio"])
def test_datasets_of_every_kind_are_looked_for(place, kind):
    environments = [{"name": "data", kind: {"dataset": "file://gone.jsonl"}}]
    (problem,) = problems(place, environments=environments)
    assert problem.startswith(f"spec.environments[0].{kind}.dataset: there is no file {place}/gone.jsonl; it is JSONL of ")


def test_all_problems_come_at_once(place):
    shutil.rmtree(place / "models")
    (place / "data.jsonl").unlink()
    found = problems(place, rollouts={"gpusPerReplica": 64})
    assert [line.partition(":")[0] for line in found] == [
        "spec.model.uri",
        "spec.environments[1].math.dataset",
        "spec.rollouts.gpusPerReplica",
    ]
    assert f"there is no folder {place}/models/base" in found[0]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("model.safetensors", None, "has no *.safetensors"),
        ("config.json", None, "has no config.json"),
        ("config.json", "[]", "is not a model's configuration"),
        ("config.json", "{", "is not a model's configuration"),
        ("config.json", '{"max_position_embeddings": 32}', "spec.model.maxModelLen: is 64, and the model has 32 positions"),
    ],
)
def test_refuses_a_folder_that_is_no_model(place, name, content, part):
    file = place / "models" / "base" / name
    file.unlink() if content is None else file.write_text(content)
    (found,) = problems(place)
    assert part in found


def test_a_model_with_scaled_positions_may_be_longer(place):
    (place / "models" / "base" / "config.json").write_text('{"max_position_embeddings": 32, "rope_scaling": {"factor": 4.0}}')
    assert problems(place) == []


def test_refuses_a_disk_that_is_nearly_full(place, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage(10, 10, 999_999_999))
    (found,) = problems(place)
    assert "has 1000 MB free, and a run needs at least 1000 MB" in found


def test_refuses_a_model_in_a_store_that_is_the_run_s_own(place):
    (found,) = problems(place, model={"uri": "s3://models/base"})
    assert "the run's own S3 server is empty" in found


def test_says_which_package_is_missing(place, monkeypatch):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None if name == "vllm" else object())
    (found,) = problems(place)
    assert found == "the Python package vllm is not installed: pip install 'rlvr-operator[rollout]', or run `make demo` once"


def test_says_that_a_store_cannot_be_reached(place, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    (found,) = problems(place, storage={"endpoint": "http://127.0.0.1:9", "uri": "s3://runs"})
    assert found.startswith("spec.storage.endpoint: bucket 'runs' at http://127.0.0.1:9 cannot be reached")


def test_says_where_a_judges_key_comes_from_here(place):
    (place / "rows.jsonl").write_text("{}")
    judge = {"dataset": "file://rows.jsonl", "endpoint": "https://j/v1", "model": "m", "credentialsSecret": {"name": "t"}}
    (found,) = problems(place, environments=[{"name": "essays", "judge": judge}])
    assert found.startswith("spec.environments[0].judge.credentialsSecret: is for clusters: remove it, and set JUDGE_API_KEY in the")


def test_says_where_a_teachers_key_comes_from_here(place):
    teacher = {"endpoint": "https://t/v1", "model": "m", "credentialsSecret": {"name": "t"}}
    (found,) = problems(place, stages=[{"name": "a", "distill": {"teacher": teacher}}])
    assert "set TEACHER_API_KEY in the environment instead" in found
