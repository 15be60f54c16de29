"""Documents by schema: one strict document that is valid, and schemas of which every word counts."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from verifier_jobs import open_rows, verifier_job, write_rows

from rlvr_api.wire import VerdictStatus
from rlvr_verifier.environments.base import EnvironmentSetupError
from rlvr_verifier.environments.strict_json import NotStrictJsonError, at_pointer, parse_json, same
from rlvr_verifier.exploits import TASKS, read_answers
from rlvr_verifier.integrity.probes import probes_for
from rlvr_verifier.pool import ScorerTimeoutError, WorkerPool

PASS, FAIL, INVALID = VerdictStatus.PASS, VerdictStatus.FAIL, VerdictStatus.INVALID
ADA = TASKS["json_schema"]
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**90), 10**90) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=5), below, max_size=4),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def ada(tmp_path_factory):
    return open_rows(tmp_path_factory.mktemp("rows"), "json_schema", ADA)


@pytest.mark.parametrize("sample", list(read_answers("json_schema")), ids=lambda sample: sample.name)
def test_no_wrong_document_of_the_corpus_is_paid_and_every_right_one_is(ada, sample):
    found = ada.score(ada.sample("train", 0, 0).payload, sample.completion, False)
    assert (found.status is PASS) is sample.is_right, found.reason


def test_statuses_tell_what_is_no_document_from_what_is_a_wrong_one(ada):
    payload = ada.sample("train", 0, 0).payload
    assert ada.score(payload, "{", False).status is INVALID
    assert ada.score(payload, '{"name": "Ada"}', False).status is FAIL
    assert "36" not in ada.score(payload, '{"name": "Ada", "age": 3, "tags": ["a", "b"]}', False).reason


def test_every_probe_keeps_its_verdict(ada):
    payload = ada.sample("train", 0, 0).payload
    probes = probes_for(ada, payload)
    assert len({probe.name for probe in probes}) == len(probes) > 20
    assert [probe.name for probe in probes if (ada.score(payload, probe.completion, False).status is PASS) is not probe.paid] == []


@given(DOCUMENTS)
def test_any_document_gets_a_verdict_and_none_but_the_right_ones_pass(ada, document):
    found = ada.score(ada.sample("train", 0, 0).payload, json.dumps(document), False)
    assert found.status in (FAIL, INVALID)


@given(st.text(alphabet='{}[]",:0123456789eE+-.truefalsn \\u\n`', max_size=60))
def test_strict_json_is_a_part_of_what_python_reads(text):
    try:
        found = parse_json(text)
    except NotStrictJsonError:
        return
    assert same(found, json.loads(text))


@given(DOCUMENTS)
def test_strict_json_reads_back_what_was_written(document):
    assert same(parse_json(json.dumps(document)), document)


def test_equal_is_meant_as_json_means_it():
    assert same({"a": [1, 2.5]}, {"a": [1.0, 2.5]})
    assert not same(1, True)
    assert not same([0], [False])
    assert not same({"a": 1}, {"a": 1, "b": 2})
    assert not same(10**17, float(10**17) + 16)
    assert at_pointer({"a/b": [{"~": 7}]}, "/a~1b/0/~0") == 7
    for pointer in ("/x", "/a~1b/1", "/a~1b/-", "/a~1b/0/~0/deeper"):
        with pytest.raises(LookupError):
            at_pointer({"a/b": [{"~": 7}]}, pointer)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"schema": {"type": "object", "propertes": {}}}, "keyword 'propertes' at # would be ignored"),
        ({"schema": {"type": "thing"}}, "no JSON schema"),
        ({"schema": {"allOf": [{"type": "string", "format": "email"}]}}, "format 'email' at #/allOf/0 would be ignored"),
        ({"schema": {"$ref": "http://127.0.0.1:9/schema.json"}}, "is not in the schema"),
        ({"schema": {"$ref": "#/$defs/none"}}, "is not in the schema"),
        ({"schema": {"$ref": "#"}}, "refers to itself"),
        ({"schema": {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}}, "only https://json-schema.org/draft/2020-12"),
        ({"schema": {"type": "string", "pattern": "("}}, "'(' is not a 'regex' at $.pattern"),
        ({"schema": {"type": "object"}, "expected": {}}, "the document {} is valid: narrow the schema"),
        ({"schema": {"description": "anything"}, "expected": {}}, "the document null is valid"),
        ({"example": {"name": "Ada", "age": 36, "tags": ["maths"]}}, "its example is refused: the document is not valid: minItems at"),
        ({"example": None}, "its example is refused"),
        ({"example": {**ADA["example"], "age": 35}}, "its example is refused: a value is not the expected one"),
        ({"expected": {"age": 36}}, "expected.age"),
        ({"extra": 1}, "extra: Extra inputs"),
    ],
)  # fmt: skip
def test_faults_of_a_dataset_are_listed_by_line(tmp_path, change, fault):
    with pytest.raises(EnvironmentSetupError) as refused:
        open_rows(tmp_path, "json_schema", {**ADA, "prompt": "Another."}, {**ADA, **change})
    assert "line 2: " in str(refused.value)
    assert fault in str(refused.value)


def test_a_date_with_its_time_is_checked(tmp_path):
    row = {"prompt": "When?", "schema": {"type": "string", "format": "date-time"}, "example": "1985-04-12T23:20:50.52Z"}
    when = open_rows(tmp_path, "json_schema", row)
    payload = when.sample("train", 0, 0).payload
    assert when.score(payload, '"1996-12-19T16:39:57-08:00"', False).status is PASS
    for wrong in ("1996-12-19", "1996-13-19T16:39:57Z", "1996-12-19T16:39:57", "１996-12-19T16:39:57Z", "soon"):
        assert when.score(payload, json.dumps(wrong), False).status is FAIL


def test_a_text_that_makes_a_pattern_hang_is_the_candidates_time_out(tmp_path):
    row = {"prompt": "Letters.", "schema": {"type": "string", "pattern": "^(a+)+$", "minLength": 2}, "example": "aa"}
    uri = write_rows(tmp_path, row)
    job = verifier_job([{"name": "letters", "jsonSchema": {"dataset": uri, "heldOut": 1e-4}}], workers=1, itemTimeoutSeconds=1.0)

    async def scenario():
        pool = WorkerPool(job.model_dump_json(), job.spec)
        try:
            payload = open_rows(tmp_path, "json_schema", row).sample("train", 0, 0).payload
            with pytest.raises(ScorerTimeoutError):
                await pool.run("letters", payload, json.dumps("a" * 40 + "!"), False)
            assert (await pool.run("letters", payload, '"aaa"', False)).status is PASS, "the worker was replaced"
        finally:
            pool.close()

    asyncio.run(scenario())
