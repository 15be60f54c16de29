"""Regular expressions: one pattern, judged on strings of which the prompt shows some, and never for longer than an item may take."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from verifier_jobs import open_rows, verifier_job, write_rows

from rlvr_api.wire import VerdictStatus
from rlvr_verifier.environments.base import EnvironmentSetupError
from rlvr_verifier.environments.regex import TRIVIAL
from rlvr_verifier.exploits import TASKS, read_answers
from rlvr_verifier.integrity.probes import probes_for
from rlvr_verifier.pool import ScorerTimeoutError, WorkerPool

PASS, FAIL, INVALID = VerdictStatus.PASS, VerdictStatus.FAIL, VerdictStatus.INVALID
DATES = TASKS["regex"]


@pytest.fixture(scope="module")
def dates(tmp_path_factory):
    return open_rows(tmp_path_factory.mktemp("rows"), "regex", DATES)


@pytest.mark.parametrize("sample", list(read_answers("regex")), ids=lambda sample: sample.name)
def test_no_wrong_pattern_of_the_corpus_is_paid_and_every_right_one_is(dates, sample):
    found = dates.score(dates.sample("train", 0, 0).payload, sample.completion, False)
    assert (found.status is PASS) is sample.is_right, found.reason


def test_statuses_and_reasons_tell_no_string(dates):
    payload = dates.sample("train", 0, 0).payload
    for broken in ("(", "(?a)(?u)x", "a{99999999999999999999}"):
        assert dates.score(payload, broken, False).status is INVALID
    found = dates.score(payload, r"\d{4}-\d\d-\d\d", False)
    assert (found.status, found.reason) == (FAIL, "the pattern misses 0 of 6 strings, and matches 7 that it must not")


def test_every_probe_keeps_its_verdict(dates):
    payload = dates.sample("train", 0, 0).payload
    probes = probes_for(dates, payload)
    assert len({probe.name for probe in probes}) == len(probes) > 20
    assert [probe.name for probe in probes if (dates.score(payload, probe.completion, False).status is PASS) is not probe.paid] == []


@given(st.text(alphabet=r".*+?()[]{}|\dws^$-0123456789ab:=!<P>i#` " + "\n", max_size=12))
def test_any_text_gets_a_verdict(dates, text):
    dates.score(dates.sample("train", 0, 0).payload, text, False)


@pytest.mark.parametrize("pattern", TRIVIAL)
def test_the_base_rate_of_patterns_that_match_anything_is_0(dates, pattern):
    assert dates.score(dates.sample("train", 0, 0).payload, f"```\n{pattern}\n```", False).score == 0


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"reference": r"\d{4}-\d\d-\d\d"}, "its reference is refused: the pattern misses 0 of 6 strings, and matches"),
        ({"reference": "["}, "its reference is refused: the pattern does not compile"),
        ({"mustNotMatch": ["a\nb"]}, "the pattern '.*' would be paid"),
        ({"mustNotMatch": []}, "mustNotMatch"),
        ({"mustNotMatch": ["1999-12-31", "x"]}, "'1999-12-31' must match and must not"),
        ({"mustMatch": ["1999-12-31"]}, "all strings of mustMatch stand in the prompt"),
        ({"mustNotMatch": ["1999-13-01", ""]}, "all strings of mustNotMatch stand in the prompt"),
    ],
)  # fmt: skip
def test_faults_of_a_dataset_are_listed_by_line(tmp_path, change, fault):
    with pytest.raises(EnvironmentSetupError) as refused:
        open_rows(tmp_path, "regex", {**DATES, "prompt": "Another."}, {**DATES, **change})
    assert "line 2: " in str(refused.value)
    assert fault in str(refused.value)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*c", "(a|aa)+!", r"(.*a){25}", r"(\w+\s?)+\!"])
def test_a_pattern_that_takes_for_ever_is_the_candidates_time_out(tmp_path, pattern):
    row = {"prompt": "Only a.", "mustMatch": ["a" * 60], "mustNotMatch": ["a" * 60 + "?", "b"], "reference": "a+"}
    job = verifier_job([{"name": "a", "regex": {"dataset": write_rows(tmp_path, row), "heldOut": 1e-4}}], workers=1, itemTimeoutSeconds=0.5)

    async def scenario():
        pool = WorkerPool(job.model_dump_json(), job.spec)
        try:
            payload = open_rows(tmp_path, "regex", row).sample("train", 0, 0).payload
            with pytest.raises(ScorerTimeoutError):
                await pool.run("a", payload, pattern, False)
            assert (await pool.run("a", payload, "a+", False)).status is PASS, "the worker was replaced"
        finally:
            pool.close()

    asyncio.run(scenario())
