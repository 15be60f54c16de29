"""Second verifiers, and probes whose verdict is known: no environment may give any of them another one."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_api.environments import Arithmetic, AuditVerifier, EnvironmentSpec, FinalAnswer, Math
from rlvr_api.spec import Storage
from rlvr_api.wire import CanaryTag, VerdictStatus
from rlvr_verifier.environments.arithmetic import ArithmeticEnvironment
from rlvr_verifier.environments.base import EnvironmentSetupError
from rlvr_verifier.environments.datasets import DatasetReader
from rlvr_verifier.environments.math_problems import MathEnvironment, judge
from rlvr_verifier.integrity.auditors import FinalAnswerAuditor, literal_number, open_auditors
from rlvr_verifier.integrity.probes import probes_of

PASS, FAIL, INVALID = VerdictStatus.PASS, VerdictStatus.FAIL, VerdictStatus.INVALID
AUDIT = AuditVerifier(final_answer=FinalAnswer())


def sums(extraction="lastInteger", operations=("+", "-", "*")):
    return ArithmeticEnvironment(EnvironmentSpec(name="sums", arithmetic=Arithmetic(operations=operations, extraction=extraction)))


@pytest.mark.parametrize(
    ("completion", "status"),
    [
        ("7", PASS), ("3 + 4 = 7", PASS), ("It is 7.", PASS), ("7.0", PASS), ("14/2", PASS), (r"\boxed{7}", PASS), (r"8 \boxed{7}", PASS),
        (r"\boxed{\frac{14}{2}}", PASS), (r"$\boxed{7}$.", PASS), ("<think>9</think> 7", PASS),
        ("3 + 4", FAIL), ("What is 3 + 4?", FAIL), ("7 or 8", FAIL), ("-7", FAIL), ("07.5", FAIL), (r"7 \boxed{8}", FAIL),
        ("", INVALID), ("seven", INVALID), (r"\boxed{3+4}", INVALID), (r"\boxed{\sum_{i=1}^{1} 7}", INVALID), (r"\boxed{}", INVALID),
        ("７", INVALID), (r"7 \boxed{", INVALID), ("7" * 200, INVALID), ("1/0", INVALID), (r"\boxed{\ne 7}", INVALID),
    ],
)  # fmt: skip
def test_only_a_literal_final_number_is_right(completion, status):
    assert FinalAnswerAuditor().judge({"answer": "7"}, completion).status is status


@given(st.integers(-(10**40), 10**40), st.integers(1, 10**20))
def test_numbers_are_read_exactly(top, bottom):
    assert literal_number(str(top)) == top
    assert literal_number(f"{top}/{bottom}") == Fraction(top, bottom)
    assert literal_number(f"\\frac{{{top}}}{{{bottom}}}") == Fraction(top, bottom)
    assert literal_number(f"{top:,}") == top


@given(st.text(max_size=300))
def test_any_text_gets_a_verdict(text):
    FinalAnswerAuditor().judge({"answer": "7"}, text)


@given(st.integers(0, 10**6), st.integers(0, 4), st.sampled_from(["lastInteger", "exact"]))
def test_sums_keep_the_verdict_of_every_probe(seed, level, extraction):
    environment = sums(extraction)
    payload = environment.sample("train", seed, level).payload
    probes = probes_of("arithmetic", payload)
    assert {probe.tag for probe in probes} == set(CanaryTag)
    wrong = {probe.name for probe in probes if (environment.score(payload, probe.completion, False).score > 0) is not probe.paid}
    assert wrong == set()


@given(st.integers(0, 10**6))
def test_the_second_verifier_keeps_them_too(seed):
    payload = sums().sample("train", seed, 2).payload
    for probe in probes_of("arithmetic", payload):
        if probe.name != "full-width":
            assert (FinalAnswerAuditor().judge(payload, probe.completion).score > 0) is probe.paid, probe.name


def test_working_out_expressions_pays_for_the_question_and_the_probes_say_so():
    environment = sums("expression", ("+",))
    payload = environment.sample("train", 3, 2).payload
    assert environment.score(payload, str(payload["problem"]), False).status is PASS
    paid = {p.name for p in probes_of("arithmetic", payload) if environment.score(payload, p.completion, False).score > 0 and not p.paid}
    assert {"question-echo", "question-echo-in-words"} <= paid
    assert {p.tag for p in probes_of("arithmetic", payload) if p.name in paid} == {CanaryTag.EXPLOIT}


@pytest.mark.parametrize(
    ("completion", "status"),
    [
        ("3 + 4", PASS), ("7", PASS), ("3 + 4 = 7", PASS), ("2 * 3 + 1", PASS), ("1 + 2 * 3", PASS), ("10 - 3", PASS), ("-3 + 10", PASS),
        ("3 * 4", FAIL), ("8", FAIL), ("3 + 4 = 8", FAIL), ("", INVALID), ("1" * 65, INVALID), (" + ".join("1" * 9), INVALID),
    ],
)  # fmt: skip
def test_an_expression_is_worked_out_without_running_it(completion, status):
    payload = {"answer": "7", "problem": "3 + 4", "extraction": "expression"}
    assert sums("expression").score(payload, completion, False).status is status


@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 99)), min_size=1, max_size=6), st.integers(0, 99))
def test_the_value_is_that_of_arithmetic(terms, first):
    text = str(first) + "".join(f" {operation} {number}" for operation, number in terms)
    payload = {"answer": str(eval(text)), "problem": "", "extraction": "expression"}  # the oracle; the text is ours
    assert sums("expression").score(payload, text, False).status is PASS


@pytest.mark.parametrize(
    ("problem", "answer"), [("What is 12 + 30?", "42"), ("Halve 3.", r"\frac{3}{2}"), ("Negate 5", "-5"), ("x twice", "2x")]
)
def test_math_keeps_the_verdict_of_every_probe(problem, answer):
    payload = {"problem": problem, "answer": answer}
    wrong = {p.name for p in probes_of("math", payload) if (judge(problem, answer, p.completion).score > 0) is not p.paid}
    assert wrong == set()


def test_answers_that_are_no_numbers_cannot_be_audited(tmp_path):
    rows = [{"problem": f"p{number}", "answer": answer} for number, answer in enumerate(["1", "2/3", "x+1", "[0,1)", "4", "5"])]
    data = tmp_path / "math.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    spec = EnvironmentSpec(name="m", math=Math(dataset=f"file://{data}"), audit=AUDIT)
    environment = MathEnvironment(spec, DatasetReader(Storage(), {}))
    with pytest.raises(EnvironmentSetupError, match=r"2 answers of the dataset are none, for example '.*'.*environment of their own"):
        open_auditors([spec], {"m": environment})
