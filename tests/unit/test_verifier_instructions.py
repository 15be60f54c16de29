"""Texts under constraints: all hold or nothing is paid, disguises do not help, and texts that say nothing are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from verifier_jobs import open_rows

from rlvr_api.wire import VerdictStatus
from rlvr_verifier.environments.base import EnvironmentSetupError
from rlvr_verifier.environments.constraints import Constraint, fold, words
from rlvr_verifier.exploits import TASKS, read_answers
from rlvr_verifier.integrity.probes import probes_for

PASS, FAIL, INVALID = VerdictStatus.PASS, VerdictStatus.FAIL, VerdictStatus.INVALID
LIGHTHOUSE = TASKS["instructions"]
PARSER: TypeAdapter[Constraint] = TypeAdapter(Constraint)


@pytest.fixture(scope="module")
def lighthouse(tmp_path_factory):
    return open_rows(tmp_path_factory.mktemp("rows"), "instructions", LIGHTHOUSE)


@pytest.mark.parametrize("sample", list(read_answers("instructions")), ids=lambda sample: sample.name)
def test_no_wrong_text_of_the_corpus_is_paid_and_every_right_one_is(lighthouse, sample):
    found = lighthouse.score(lighthouse.sample("train", 0, 0).payload, sample.completion, False)
    assert (found.status is PASS) is sample.is_right, found.reason


def test_every_probe_keeps_its_verdict(lighthouse):
    payload = lighthouse.sample("train", 0, 0).payload
    probes = probes_for(lighthouse, payload)
    assert len({probe.name for probe in probes}) == len(probes) > 15
    assert [probe.name for probe in probes if (lighthouse.score(payload, probe.completion, False).status is PASS) is not probe.paid] == []


@given(st.text(max_size=400))
def test_any_text_gets_a_verdict_and_chance_writes_no_right_one(lighthouse, text):
    assert lighthouse.score(lighthouse.sample("train", 0, 0).payload, text, False).status in (FAIL, INVALID)


@pytest.mark.parametrize(
    ("constraint", "holding", "breaking"),
    [
        ({"kind": "wordCount", "minimum": 2, "maximum": 3}, ["a b", "a - b c"], ["a", "a b c d", "a - - -"]),
        ({"kind": "characterCount", "maximum": 3}, ["abc", "é"], ["abcd"]),
        ({"kind": "paragraphCount", "minimum": 2, "maximum": 2}, ["a\n\nb", "a\n \n\n---\n\nb"], ["a\nb", "a\n\nb\n\nc"]),
        ({"kind": "lineCount", "minimum": 2}, ["a\nb", "a\n\nb"], ["a", "a\n---\n"]),
        ({"kind": "bulletCount", "minimum": 2, "maximum": 2}, ["- a\n* b", "  • a\n- b"], ["-a\n-b", "- a", "- a\n- b\n- c", "- \n- "]),
        ({"kind": "numberedCount", "minimum": 2}, ["1. a\n2) b"], ["1 a\n2 b", "1.a\n2.b", "١. a\n٢. b"]),
        ({"kind": "headingCount", "minimum": 1}, ["# a", "x\n### b"], ["#a", " # a", "####### a"]),
        ({"kind": "includes", "phrase": "blue whale"}, ["a blue whale!"], ["a blue  whale", "blue whales", "Blue whale", "blue_whale"]),
        ({"kind": "includes", "phrase": "C++", "minimum": 2}, ["C++ and C++."], ["C++", "c++ c++"]),
        ({"kind": "includes", "phrase": "a", "maximum": 1}, ["a b"], ["a b a", "a b A", "a bat"]),
        ({"kind": "excludes", "phrases": [","]}, ["a; b"], ["a, b", "a， b"]),
        ({"kind": "excludes", "phrases": ["However"]}, ["But"], ["however", "HOWEVER", "ho\u2060wever", "Howeverish"]),
        ({"kind": "excludes", "phrases": ["café"]}, ["cafe"], ["cafe\u0301",
          "cafe\u200d\u0301", "ca\u034ffé", "CAF\u00c9\ufe0f", "c\u3164afé"]),
        ({"kind": "startsWith", "phrase": "Dear"}, ["Dear all"], ["dear all", "Oh Dear"]),
        ({"kind": "endsWith", "phrase": "Yours."}, ["I am Yours."], ["Yours.)", "Yours"]),
        ({"kind": "lowercase"}, ["abc 1!", "straße"], ["aBc", "123", "ǅ"]),
        ({"kind": "uppercase"}, ["ABC 1!"], ["ABc", "123"]),
        ({"kind": "json"}, ['{"a": 1}', "[]"], ['"a"', "1", '{"a": 1, "a": 2}', '```\n{"a": 1}\n```']),
    ],
)  # fmt: skip
def test_constraints_hold_strictly(constraint, holding, breaking):
    parsed = PARSER.validate_python(constraint)
    assert [text for text in holding if not parsed.holds(text)] == []
    assert [text for text in breaking if parsed.holds(text)] == []


@given(st.text(max_size=100), st.text(alphabet="abc\u200b\u00adABCａ ,", max_size=8))
def test_what_is_excluded_cannot_be_added_in_disguise(text, tail):
    rule = PARSER.validate_python({"kind": "excludes", "phrases": ["ab"]})
    assert rule.holds(text) is ("ab" not in fold(text))
    if "ab" in fold(tail):
        assert not rule.holds(text + tail)


@given(st.lists(st.text(alphabet="abcxyz0123", min_size=1, max_size=8), max_size=30))
def test_words_are_what_spaces_separate(parts):
    assert words(" \n".join(parts)) == parts


@pytest.mark.parametrize(
    "constraint",
    [
        {"kind": "wordCount"},
        {"kind": "wordCount", "minimum": 3, "maximum": 2},
        {"kind": "includes", "phrase": "a", "minimum": 3, "maximum": 2},
        {"kind": "includes", "phrase": " "},
        {"kind": "excludes", "phrases": []},
        {"kind": "sentenceCount", "minimum": 1},
        {"kind": "lowercase", "minimum": 1},
    ],
)
def test_a_constraint_that_says_nothing_or_is_unknown_is_refused(constraint):
    with pytest.raises(ValidationError):
        PARSER.validate_python(constraint)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"example": "the keeper"}, "its example is refused: the text breaks 5 of 7 constraints: wordCount, bulletCount"),
        ({"constraints": [{"kind": "excludes", "phrases": [","]}], "example": None}, "the text 'words' ('I do not know.') would be paid"),
        ({"constraints": [{"kind": "wordCount", "minimum": 15}], "example": None}, "the text 'prompt-echo'"),
        ({"constraints": [{"kind": "verse"}]}, "constraints.0"),
    ],
)  # fmt: skip
def test_faults_of_a_dataset_are_listed_by_line(tmp_path, change, fault):
    with pytest.raises(EnvironmentSetupError) as refused:
        open_rows(tmp_path, "instructions", {**LIGHTHOUSE, "prompt": "Another."}, {**LIGHTHOUSE, "refuseDegenerate": False, **change})
    assert "line 2: " in str(refused.value)
    assert fault in str(refused.value)


def test_a_task_may_ask_for_repetition(tmp_path):
    row = {
        "prompt": "Say no three times.",
        "constraints": [{"kind": "includes", "phrase": "no", "minimum": 3, "maximum": 3}],
        "example": "no no no",
    }
    assert open_rows(tmp_path, "instructions", {**row, "refuseDegenerate": False}).version.startswith("2+unicode-")
    with pytest.raises(EnvironmentSetupError, match="one word 3 times in a row"):
        open_rows(tmp_path, "instructions", row)
