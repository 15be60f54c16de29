"""A job's file in every broken form that a person or an attacker may hand in."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr_api.loading import MAX_BYTES, InvalidJobError, load_job

JOB = {
    "apiVersion": "rlvr.dev/v1alpha1",
    "kind": "RLVRJob",
    "metadata": {"name": "job"},
    "spec": {
        "model": {"uri": "file:///models/base"},
        "environments": [{"name": "sums", "arithmetic": {}}],
        "stages": [{"name": "climb", "rlvr": {"steps": 4}}],
    },
}
BOMB = b"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 10)}]\n".encode() for n in range(9)
)


def problems(text: bytes) -> str:
    with pytest.raises(InvalidJobError) as refused:
        load_job(text)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"", "0 YAML documents"),
        (b"a: 1\n---\nb: 1\n", "2 YAML documents"),
        (b"- 1\n", "a mapping that begins with"),
        (b"a: 1\na: 2\n", 'duplicate key "a"'),
        (b"a: {b: 1,\n  b: 2}\n", "(line 2, column 3)"),
        (b"a: [\n", "is not YAML"),
        (b"a: *nowhere\n", "undefined alias"),
        (b"a: \xff\n", "is not UTF-8 at byte 3"),
        (b"a: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
        (b"a: !!binary aGk=\n", "YAML type bytes"),
        (b"1: 2\n", "has the key 1"),
        (b"a: &a [*a]\n", "is nested more than"),
        (b"[" * 100_000, "is nested more than"),
        (BOMB, "without aliases"),
        (b'a: "\\ud800"\n', "surrogate"),
        (b"a" * (MAX_BYTES + 1), f"at most {MAX_BYTES}"),
    ],
)
def test_refuses_what_is_no_single_plain_document(text, part):
    message = problems(text)
    assert part in message
    assert "\n" not in message


def test_lists_every_problem_with_path_value_and_way_out():
    job = copy.deepcopy(JOB)
    job["spec"]["stages"][0]["rlvr"] |= {"groupSize": 1, "optimiser": {}}
    job["spec"]["rollouts"] = {"replicas": "2"}
    job["spec"]["precision"] = {"engine": "int4"}
    del job["spec"]["model"]["uri"]
    assert problems(json.dumps(job).encode()).splitlines() == [
        "spec.model.uri: is missing; write text of 0 to 1024 characters of the form ^(file://|s3://).+",
        'spec.precision.engine: is "int4"; write "float32" or "bfloat16"',
        "spec.stages[0].rlvr.groupSize: is 1; write a whole number of at least 2 and at most 1024, for example 16",
        "spec.stages[0].rlvr.optimiser: there is no field 'optimiser'; did you mean 'optimizer'?",
        'spec.rollouts.replicas: is "2"; write a whole number of at least 0 and at most 4096, for example 1',
    ]


def test_reports_a_bad_item_once():
    job = copy.deepcopy(JOB)
    job["spec"]["environments"][0]["weight"] = 0
    assert problems(json.dumps(job).encode()) == (
        "spec.environments[0].weight: is 0; write a number above 0.0 and at most 1000.0, for example 1.0"
    )


def test_names_the_fields_when_none_is_near():
    job = copy.deepcopy(JOB)
    job["spec"]["precision"] = {"zzz": 1}
    assert problems(json.dumps(job).encode()).endswith("there is no field 'zzz'; fields here are engine, learnerCompute")


def test_reads_back_what_the_api_server_gives():
    job = copy.deepcopy(JOB)
    job["metadata"] |= {"uid": "1", "labels": {"team": "x"}, "managedFields": [{}], "resourceVersion": "7"}
    job["status"] = {"phase": "Running"}
    assert load_job(json.dumps(job).encode()) == load_job(json.dumps(JOB).encode())


def test_control_characters_of_a_hostile_file_do_not_reach_the_terminal():
    message = problems(b'"\\e[31mfield": "\\e]0;title\\a"\napiVersion: "\\e[2J"\n')
    assert message.isprintable() or all(line.isprintable() for line in message.splitlines())


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_a_job_or_problems(text):
    with pytest.raises(InvalidJobError) as refused:
        load_job(text)
    assert refused.value.problems


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["model", "environments", "stages", "rollouts", "offPolicy", "observability", "seed"]), JSON)
def test_any_value_in_any_place_gives_a_job_or_problems(field, value):
    job = copy.deepcopy(JOB)
    job["spec"][field] = value
    try:
        load_job(json.dumps(job).encode())
    except InvalidJobError as error:
        assert all(problem.text.isprintable() for problem in error.problems)  # noqa: PT017 - both outcomes are right
