"""The CustomResourceDefinition on a real API server: it fills in the models' defaults, refuses what the models refuse, and holds fast what
is trained once a job exists.

Needs `kubectl` and KUBECONFIG of a cluster that may be written to.
"""

import importlib.util
import json
import secrets
import subprocess
from pathlib import Path

import pytest

from rlvr_api.changes import CHANGEABLE
from rlvr_api.loading import load_job
from rlvr_api.rules import FIXED, FIXED_OPTIONAL, RULES

SPEC_CASES = Path(__file__).parents[1] / "contract" / "test_spec.py"
DRY = "dryRun=All&fieldValidation=Strict"


def load_cases():
    module = importlib.util.module_from_spec(found := importlib.util.spec_from_file_location("spec_cases", SPEC_CASES))
    found.loader.exec_module(module)
    return module


CASES = load_cases()
CHANGED = {
    "seed": {"seed": 7},
    "model": {"model": {"uri": "file:///models/other"}},
    "precision": {"precision": {"engine": "bfloat16"}},
    "storage.uri": {"storage": {"uri": "s3://elsewhere"}},
    "environments": {"environments": [{"name": "sums", "arithmetic": {}}, {"name": "more", "arithmetic": {}}]},
    "sampling": {"sampling": {"temperature": 0.9}},
    "stages": {"stages": [{"name": "climb", "rlvr": {"steps": 5}}]},
    "evaluation": {"evaluation": {"tasksPerEnvironment": 31}},
    "offPolicy": {"offPolicy": {"maxStaleness": 1}},
    "provenance": {"provenance": {"externalTraces": "Forbidden"}},
    "mixing": {"mixing": {}},
    "integrity.audit": {"integrity": {"audit": {}}},
}
"""A change of each part of a spec that says what is trained."""
FREE = {
    ("storage", "endpoint"): {"storage": {"endpoint": "http://other:9000"}},
    ("storage", "region"): {"storage": {"region": "eu-west-1"}},
    ("storage", "credentialsSecret"): {"storage": {"credentialsSecret": {"name": "other"}}},
    ("rollouts",): {"rollouts": {"replicas": 3, "env": {"NCCL_DEBUG": "INFO"}}},
    ("learner",): {"learner": {"nodes": 2, "checkpoint": {"everySteps": 3}}},
    ("verifiers",): {"verifiers": {"replicas": 2, "maxReplicas": 4}},
    ("weightSync",): {"weightSync": {"timeoutSeconds": 60, "objectStore": {}}},
    ("integrity", "allowUncertified"): {"integrity": {"allowUncertified": True}},
    ("integrity", "canaryRate"): {"integrity": {"canaryRate": 0.1}},
    ("integrity", "maxHackRate"): {"integrity": {"maxHackRate": 0.1}},
    ("integrity", "minYouden"): {"integrity": {"minYouden": 0.1}},
    ("integrity", "windowSteps"): {"integrity": {"windowSteps": 7}},
    ("integrity", "onViolation"): {"integrity": {"onViolation": "Pause"}},
    ("failurePolicy",): {"failurePolicy": {"maxLearnerRestarts": 0}},
    ("deadlines",): {"deadlines": {"stallSeconds": 60}},
    ("observability",): {"observability": {"tracing": {"endpoint": "http://otel:4318"}}},
    ("scheduling",): {"scheduling": {"disruptionBudget": True}},
    ("ttl",): {"ttl": {"rolloutsAfterFinishedSeconds": 0}},
    ("suspend",): {"suspend": True},
}
"""A change of each part that says how it is trained."""
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def place(api):
    """Path of the jobs of a namespace, in which one job exists."""
    namespace = f"crd-{secrets.token_hex(4)}"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    path = f"/apis/rlvr.dev/v1alpha1/namespaces/{namespace}/rlvrjobs"
    api.call("POST", path, CASES.VALID)
    yield path
    api.call("DELETE", f"/api/v1/namespaces/{namespace}")


def ask(api, method, path, body, kind="application/json", query=DRY):
    """Status code and message of the API server's answer."""
    answer = api.client.request(method, f"{path}?{query}", content=json.dumps(body), headers={"Content-Type": kind})
    return answer.status_code, answer.json().get("message", ""), answer.json()


def renamed(job):
    """The same under a name that is free, unless the case is about the name."""
    return {**job, "metadata": {**job["metadata"], "name": "new"}} if job["metadata"]["name"] == CASES.VALID["metadata"]["name"] else job


@pytest.mark.parametrize("case", CASES.REFUSED)
def test_refuses_what_the_models_refuse(api, place, case):
    path, value, _ = CASES.REFUSED[case]
    code, message, _ = ask(api, "POST", place, renamed(CASES.changed(path, value)))
    assert code in (400, 422), message


@pytest.mark.parametrize("path", CASES.OUT_OF_BOUNDS)
def test_names_the_field_that_is_out_of_bounds(api, place, path):
    code, message, _ = ask(api, "POST", place, renamed(CASES.changed(path, CASES.OUT_OF_BOUNDS[path])))
    assert code == 422, message
    assert CASES.as_written(path) in message


@pytest.mark.parametrize("case", CASES.ACCEPTED)
def test_fills_in_the_defaults_of_the_models(api, place, case):
    job = CASES.changed(*CASES.ACCEPTED[case])
    code, message, stored = ask(api, "POST", place, renamed(job))
    assert code == 201, message
    local = json.loads(load_job(json.dumps(job).encode()).spec.model_dump_json(by_alias=True, exclude_none=True))
    assert stored["spec"] == local


def test_every_part_of_a_spec_is_either_fixed_or_free():
    assert CHANGED.keys() == {*FIXED, *FIXED_OPTIONAL}
    assert FREE.keys() == set(CHANGEABLE)


@pytest.mark.parametrize("part", CHANGED)
def test_what_is_trained_is_fixed(api, place, part):
    code, message, _ = ask(api, "PATCH", f"{place}/job", {"spec": CHANGED[part]}, MERGE)
    assert code == 422, message
    assert f"{part} says what is trained and is fixed once the job exists: create another job" in message


@pytest.mark.parametrize("part", FREE, ids=".".join)
def test_how_it_is_trained_may_change(api, place, part):
    code, message, _ = ask(api, "PATCH", f"{place}/job", {"spec": FREE[part]}, MERGE)
    assert code == 200, message


def test_every_rule_has_a_case_that_breaks_it(api, place):
    """Each rule's own words are in some refusal; that each can be kept, the accepted cases show."""
    said = [ask(api, "POST", place, renamed(CASES.changed(path, value)))[1] for path, value, _ in CASES.REFUSED.values()]
    said += [ask(api, "PATCH", f"{place}/job", {"spec": change}, MERGE)[1] for change in CHANGED.values()]
    unbroken = {rule.message for rules in RULES.values() for rule in rules if not any(rule.message in message for message in said)}
    assert unbroken == set()


@pytest.mark.parametrize("name", ["1st", "-job", "job-", "job.one", "Job", "j" * 41])
def test_refuses_names_that_leave_children_without_one(api, place, name):
    assert ask(api, "POST", place, CASES.changed("metadata.name", name))[0] == 422


@pytest.mark.parametrize("name", ["j", "j1-0", "a" * 40])
def test_accepts_names_that_do_not(api, place, name):
    assert ask(api, "POST", place, CASES.changed("metadata.name", name))[0] == 201


def test_the_scale_subresource_changes_the_engines_alone(api, place):
    code, message, scaled = ask(api, "PATCH", f"{place}/job/scale", {"spec": {"replicas": 5}}, MERGE)
    assert code == 200, message
    assert scaled["spec"]["replicas"] == 5
    assert ask(api, "PATCH", f"{place}/job/scale", {"spec": {"replicas": 0}}, MERGE)[0] == 200
    assert ask(api, "PATCH", f"{place}/job/scale", {"spec": {"replicas": 4097}}, MERGE)[0] == 422


def test_a_spec_and_a_status_do_not_write_each_other(api, place):
    spec = ask(api, "PATCH", f"{place}/job/status", {"spec": {"suspend": True}, "status": {"restarts": 1}}, MERGE)[2]
    assert not spec["spec"]["suspend"]
    assert spec["status"]["restarts"] == 1
    assert "status" not in ask(api, "PATCH", f"{place}/job", {"status": {"restarts": 1}}, MERGE)[2]
    assert ask(api, "PATCH", f"{place}/job/status", {"status": {"phase": "Happy"}}, MERGE)[0] == 422


def test_kubectl_refuses_unknown_fields_by_name(api, place):
    job = CASES.changed("spec.rollouts", {"replica": 2})
    command = ("kubectl", "apply", "--namespace", place.split("/")[-2], "-f", "-")
    ended = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert 'unknown field "spec.rollouts.replica"' in ended.stderr


def test_an_enormous_job_is_refused(api, place):
    """By size alone: nothing in it is wrong."""
    code, message, _ = ask(api, "POST", place, renamed(CASES.changed("spec.rollouts", {"engineArgs": {"x": "y" * 2_000_000}})), query="")
    assert code in (400, 413, 422, 500), message
    assert "too large" in message or "exceed" in message
    code, message, _ = ask(api, "POST", place, renamed(CASES.changed("metadata.annotations", {"x": "y" * 1_000_000})))
    assert code == 422
    assert "Too long: may not be more than 262144 bytes" in message
