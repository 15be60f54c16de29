"""Verdicts of the environments: right answers are paid, and what only looks like an answer is not."""

import base64
import json
import string
import time
from pathlib import Path

import pytest

from rlvr_api.environments import Arithmetic, EnvironmentSpec, Levels, Math, ReasoningGym
from rlvr_api.spec import Storage
from rlvr_api.wire import VerdictStatus
from rlvr_verifier.environments.answers import fenced_blocks
from rlvr_verifier.environments.arithmetic import ArithmeticEnvironment
from rlvr_verifier.environments.base import EnvironmentSetupError
from rlvr_verifier.environments.datasets import DatasetReader
from rlvr_verifier.environments.math_problems import MathEnvironment, judge
from rlvr_verifier.environments.reasoning_gym import ReasoningGymEnvironment
from rlvr_verifier.exploits import Sample, read_math
from rlvr_verifier.integrity.hostile import HANGING
from rlvr_verifier.seal import Seal, UnknownKeyError

SUMS = ArithmeticEnvironment(EnvironmentSpec(name="sums", arithmetic=Arithmetic()))


@pytest.mark.parametrize("level", [0, 1, 2, 3, 30])
def test_training_and_held_out_sums_are_disjoint_whatever_their_order(level: int) -> None:
    held_out = {SUMS.sample("heldOut", seed, level).problem_id for seed in range(SUMS.held_out_tasks(level))}
    assert len(held_out) == SUMS.held_out_tasks(level) >= 5
    assert held_out.isdisjoint(SUMS.sample("train", seed, level).problem_id for seed in range(500))
    assert SUMS.sample("train", 7, level) == SUMS.sample("train", 7, level)


def test_a_level_adds_one_digit_and_either_operand_may_be_the_longer() -> None:
    for level in range(5):
        for split in ("train", "heldOut"):
            seeds = range(min(100, SUMS.held_out_tasks(level)))
            problems = [SUMS.sample(split, seed, level).messages[0].content.split(" ")[2:5] for seed in seeds]
            lengths = {(len(left), len(right.rstrip("?"))) for left, _, right in problems}
            shorter, longer = 1 + level // 2, 1 + (level + 1) // 2
            assert lengths == {(shorter, longer), (longer, shorter)}


@pytest.mark.parametrize(
    ("completion", "status"),
    [
        ("7", VerdictStatus.PASS),
        ("3 + 4 = 7", VerdictStatus.PASS),
        ("7 or 8", VerdictStatus.FAIL),
        ("", VerdictStatus.INVALID),
        ("seven", VerdictStatus.INVALID),
        ("٧", VerdictStatus.INVALID),
        ("９", VerdictStatus.INVALID),
        ("9" * 5000, VerdictStatus.INVALID),
        ("\ufffd\x00-7", VerdictStatus.FAIL),
    ],
)
def test_the_last_integer_is_the_answer(completion: str, status: VerdictStatus) -> None:
    assert SUMS.score({"answer": "7", "extraction": "lastInteger"}, completion, False).status is status


def test_exact_takes_nothing_but_the_integer() -> None:
    payload = {"answer": "-7", "extraction": "exact"}
    assert SUMS.score(payload, " -7\n", False).status is VerdictStatus.PASS
    assert SUMS.score(payload, "it is -7", False).status is VerdictStatus.INVALID


@pytest.mark.parametrize("sample", list(read_math()), ids=lambda sample: sample.name[:40])
def test_no_wrong_answer_of_the_corpus_is_paid_and_every_right_one_is(sample: Sample) -> None:
    score = judge(r"Compute \int_0^1 x^2 dx.", sample.gold, sample.completion)
    assert (score.status is VerdictStatus.PASS) is sample.is_right, score.reason


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("7", "7"),
        ("7", "7."),
        ("1/3", r"\frac{1}{3}"),
        ("0.5", "1/2"),
        ("1000", r"1\,000"),
        ("1000", "1,000"),
        ("60", r"60^\circ"),
        ("-2", "-2"),
    ],
)
def test_right_numbers_are_paid_in_every_notation(gold: str, answer: str) -> None:
    assert judge("What is it?", gold, f"So \\boxed{{{answer}}}").status is VerdictStatus.PASS


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1/3", r"\int_0^1 x^2 dx"),
        ("5050", r"\sum_{i=1}^{100} i"),
        ("7006652", r"1234\cdot5678"),
        ("120", r"\binom{10}{3}"),
        ("6", r"\gcd(12,18)"),
        ("3", r"10 \mod 7"),
        ("720", "6!"),
        ("7", "3+4"),
        ("7", "8=7"),
        ("7", r"\ne 7"),
        ("7", r"\ge 7"),
        ("7", r"\approx 7"),
        ("7", r"\neg 7"),
        ("7", r"7\%"),
        ("12", r"12 \text{ (or 13)}"),
        ("7", r"7\text{ is wrong}"),
        ("5", "y=5"),
        ("0.00000012", "0.00000034"),
        ("1/3", "0.3333334"),
        ("7", "٧"),
        ("7", ""),
        ("7", r"9^{9^{9^9}}"),
        ("7", "(" * 3000),
        ("7", "1" * 5000),
        ("7", "0/0"),
        ("7", "nan"),
        ("7", "7 or 8"),
    ],
)
def test_echoes_relations_and_junk_are_not_paid(gold: str, answer: str) -> None:
    assert judge(r"Compute \int_0^1 x^2 dx.", gold, f"\\boxed{{{answer}}}").score == 0.0


def test_two_different_boxes_are_no_answer_and_thinking_does_not_count() -> None:
    assert judge("?", "7", r"\boxed{1} \boxed{7}").status is VerdictStatus.INVALID
    assert judge("?", "7", r"<think>\boxed{1}</think> \boxed{7}").status is VerdictStatus.PASS
    assert judge("?", "7", "7").status is VerdictStatus.INVALID


def test_symbolic_answers_are_compared_by_math_verify() -> None:
    assert judge("Differentiate.", "2x+1", r"\boxed{1+2x}").status is VerdictStatus.PASS
    assert judge("Differentiate.", "2x+1", r"\boxed{2x-1}").status is VerdictStatus.FAIL


def open_dataset(path: Path, lines: list[str]) -> MathEnvironment:
    path.write_text("\n".join(lines))
    spec = EnvironmentSpec(name="math", math=Math(dataset=f"file://{path}", held_out=0.3))
    return MathEnvironment(spec, DatasetReader(Storage(), {}))


def test_a_dataset_is_split_by_problem_and_faults_are_listed_by_line(tmp_path: Path) -> None:
    rows = [json.dumps({"problem": f"What is {n} plus one?", "answer": str(n + 1)}) for n in range(60)]
    environment = open_dataset(tmp_path / "good.jsonl", rows)
    held_out = {environment.sample("heldOut", seed, 0).problem_id for seed in range(environment.held_out_tasks(0))}
    assert 5 < len(held_out) < 35
    assert held_out.isdisjoint(environment.sample("train", seed, 0).problem_id for seed in range(60))
    with pytest.raises(EnvironmentSetupError, match=r"line 2 is not JSON.*line 3 has no text answer"):
        open_dataset(tmp_path / "bad.jsonl", [rows[0], "{", '{"problem": "x"}'])
    with pytest.raises(EnvironmentSetupError, match="line 2 repeats the problem of line 1"):
        open_dataset(tmp_path / "twice.jsonl", [rows[0], rows[0]])
    with pytest.raises(EnvironmentSetupError, match="cannot be read"):
        MathEnvironment(EnvironmentSpec(name="m", math=Math(dataset="file:///nowhere.jsonl")), DatasetReader(Storage(), {}))


def test_reasoning_gym_names_near_tasks_for_one_that_there_is_not() -> None:
    with pytest.raises(EnvironmentSetupError, match=r"no task 'count_down'; try countdown"):
        ReasoningGymEnvironment(EnvironmentSpec(name="x", reasoning_gym=ReasoningGym(task="count_down")))
    environment = ReasoningGymEnvironment(EnvironmentSpec(name="x", reasoning_gym=ReasoningGym(task="chain_sum")))
    task = environment.sample("train", 5, 0)
    assert environment.score(task.payload, "banana", False).score == 0.0
    assert environment.score(task.payload, "", False).status is VerdictStatus.INVALID


@pytest.mark.parametrize(("task", "last"), [("chain_sum", 10), ("caesar_cipher", 1), ("number_sorting", 7)])
def test_reasoning_gym_levels_are_those_of_its_curriculum(task: str, last: int) -> None:
    environment = ReasoningGymEnvironment(EnvironmentSpec(name="x", reasoning_gym=ReasoningGym(task=task)))
    assert environment.levels == (0, last)
    for level in range(last + 1):
        sampled = environment.sample("train", 11, level)
        assert environment.score(sampled.payload, environment.reference(sampled.payload), False).status is VerdictStatus.PASS
    lengths = [len(environment.sample("train", 11, level).messages[0].content) for level in (0, last)]
    assert task == "caesar_cipher" or lengths[0] < lengths[1], "harder tasks are longer"


def test_reasoning_gym_lays_the_config_over_every_level_and_knows_its_last() -> None:
    spec = EnvironmentSpec(name="x", reasoning_gym=ReasoningGym(task="chain_sum", config={"min_terms": 2, "max_terms": 2}))
    environment = ReasoningGymEnvironment(spec)
    assert all(environment.sample("train", 1, level).messages[0].content.count(" + ") <= 1 for level in range(11))
    with pytest.raises(EnvironmentSetupError, match=r"levels.maximum 2 is above 1, the last of caesar_cipher"):
        ReasoningGymEnvironment(EnvironmentSpec(name="x", levels=Levels(maximum=2), reasoning_gym=ReasoningGym(task="caesar_cipher")))
    with pytest.raises(EnvironmentSetupError, match="refuses config"):
        ReasoningGymEnvironment(EnvironmentSpec(name="x", reasoning_gym=ReasoningGym(task="gcd", config={"nope": 1})))


@pytest.mark.parametrize("name", [name for name in HANGING if "fence" in name])
def test_what_is_almost_a_fence_is_read_once(name: str) -> None:
    begun = time.process_time()
    assert fenced_blocks(HANGING[name]) == []
    assert time.process_time() - begun < 2.0, "a millisecond; ten seconds where each prefix is tried"


def respell(key: str) -> str:
    """The same bytes: the last letter before the padding has bits that nothing reads."""
    letters = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    bare = key.rstrip("=")
    other = f"{bare[:-1]}{letters[letters.index(bare[-1]) ^ 1]}{'=' * (len(key) - len(bare))}"
    assert base64.urlsafe_b64decode(other) == base64.urlsafe_b64decode(key)
    return other


def test_a_key_opens_only_where_it_was_sealed_and_hides_the_answer() -> None:
    seal = Seal(b"k" * 32)
    key = seal.close({"answer": "123456"}, "sums", "1")
    assert "123456" not in key
    assert seal.open(key, "sums", "1") == {"answer": "123456"}
    for opened in (
        lambda: seal.open(key, "other", "1"),
        lambda: Seal(b"x" * 32).open(key, "sums", "1"),
        lambda: seal.open("junk", "sums", "1"),
        lambda: seal.open(respell(seal.close({"answer": "12345"}, "sums", "1")), "sums", "1"),
    ):
        with pytest.raises(UnknownKeyError, match="sample the task again"):
            opened()
