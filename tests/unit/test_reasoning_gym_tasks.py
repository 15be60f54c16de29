"""Tasks of reasoning-gym on the real library: what is paid and what is not, for each that is offered; why the others are not."""

import functools
import json
import os
import subprocess
import sys
import time
from decimal import getcontext

import pytest
from reasoning_gym.factory import DATASETS

from rlvr_api.environments import EnvironmentSpec, ReasoningGym
from rlvr_api.wire import VerdictStatus
from rlvr_verifier.environments.base import EnvironmentSetupError
from rlvr_verifier.environments.reasoning_gym import ANSWER_CHARACTERS, ReasoningGymEnvironment
from rlvr_verifier.environments.reasoning_gym_tasks import LEFT_OUT, RULES, SAFE_TASKS
from rlvr_verifier.integrity.hostile import HANGING, PERSISTENT
from rlvr_verifier.integrity.probe import COMMON
from rlvr_verifier.integrity.source_scan import scan_sources

EVALUATE_IN_LIBRARY = (
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
)
HOSTILE = (
    "__import__('os').system('true')",
    "().__class__.__base__.__subclasses__()",
    "9**9**9",
    "9**9**9**9",
    "Integral(x, x)",
    "exp(exp(exp(exp(x*99))))",
    "(" * 300 + "1" + ")" * 300,
    "-" * 5_000 + "1",
    "[" * 5_000,
    "x" + "**x" * 900,
    "sqrt(" * 59 + "x" + ")" * 59,
    "1/0",
    "1*2*3*4",
    "log(0)",
)
SEEDS = (5, 977)


@pytest.fixture(autouse=True)
def _unchanged_process():
    """A service makes and judges tasks beside others: nothing that the library sets for itself may stay."""
    before = (getcontext().prec, getcontext().rounding, sys.getrecursionlimit())
    yield
    assert (getcontext().prec, getcontext().rounding, sys.getrecursionlimit()) == before


@functools.cache
def open_task(task):
    return ReasoningGymEnvironment(EnvironmentSpec(name="x", reasoning_gym=ReasoningGym(task=task)))


def is_paid(environment, task, completion):
    return environment.score(task.payload, completion, False).status is VerdictStatus.PASS


def test_every_task_of_the_library_is_offered_or_left_out_for_a_reason():
    assert set(DATASETS) == SAFE_TASKS | set(LEFT_OUT)
    assert not SAFE_TASKS & set(LEFT_OUT)


@pytest.mark.parametrize("name", sorted(SAFE_TASKS))
def test_a_task_pays_for_its_answer_and_for_nothing_else(name):
    environment = open_task(name)
    for level in sorted({0, environment.levels[1]}):
        tasks = [environment.sample("train", seed, level) for seed in SEEDS]
        answers = [environment.reference(task.payload) for task in tasks]
        for task, answer, other in zip(tasks, answers, reversed(answers), strict=True):
            assert len(answer) <= ANSWER_CHARACTERS
            assert is_paid(environment, task, f"<think>So.</think><answer>\n {answer}\n</answer>")
            assert other == answer or not is_paid(environment, task, other)
            for wrong in (
                f"{answer} or something else",
                f"{answer} {answer}",
                f"{answer}, and, more",
                "banana",
                "nan",
                "1+nanj",
                *(probe.completion for probe in COMMON[:3]),
            ):
                assert not is_paid(environment, task, wrong), wrong
    assert scan_sources(environment) == ()


@pytest.mark.parametrize("name", sorted(set(EVALUATE_IN_LIBRARY) - set(LEFT_OUT)))
def test_what_the_library_would_evaluate_is_refused_and_quickly(name):
    environment = open_task(name)
    task = environment.sample("train", 5, 0)
    for text in (*HOSTILE, *PERSISTENT, *HANGING.values()):
        began = time.process_time()
        assert not is_paid(environment, task, text), text[:80]
        assert time.process_time() - began < 2, text[:80]
    assert RULES[name].own or RULES[name].form, "the library never sees an answer"


@pytest.mark.parametrize(
    ("name", "entry", "right", "wrong"),
    [
        (
            "puzzle24",
            {"numbers": [4, 3, 1, 4]},
            ["4*(4 + 3 - 1)", "(4+3-1) * 4"],
            ["1*2*3*4", "4*6", "4*(4+3-1)*1", "4*(4+3-1)+0", "24", "4*(4+3--1)"],
        ),
        ("countdown", {"numbers": [3, 3, 8, 8], "target": 24}, ["8/(3-8/3)"], ["8*3", "8/(3-8/3) + 0", "24", "8*3*(8-3)/(8-3)"]),
        (
            "kakurasu",
            {"row_sums": [1, 2], "col_sums": [1, 2], "n_rows": 2, "n_cols": 2},
            ["1 0\n0 1", "[[1, 0], [0, 1]]"],
            ["1 0\n0 1 0", "0 1\n1 0"],
        ),
        (
            "survo",
            {"puzzle": [[0, 0, 3], [0, 0, 7], [4, 6, 10]], "candidate_numbers": [1, 2, 3, 4]},
            ["1 2 3\n3 4 7\n4 6 10"],
            ["2 1 3\n3 4 7\n4 6 10", "1 2 3\n3 4 7\n4 6 11", "0 3 3\n4 3 7\n4 6 10"],
        ),
        (
            "graph_color",
            {"puzzle": {"vertices": [0, 1], "edges": [(0, 1)], "color_options": [1, 2]}},
            ['{"0": 1, "1": 2}', '{"1": 1, "0": 2}'],
            ['{"0": 1, "1": 1}', '{"0": 1}', '{"0": 1, "1": 3}', '{"0": 1, "1": true}', '{"0": 1, "1": 2, "2": 1}', "[]"],
        ),
        (
            "simple_integration",
            {"integrand": "2*x + cos(x)", "variable": "x"},
            ["x**2 + sin(x) + C", "sin(x) + x*x", "x**2 - 4 + sin(x)", "log(Abs(exp(x**2 + sin(x)))) + C"],
            ["x**2", "Integral(2*x + cos(x), x)", "x**2 + sin(x) + C*x", "2*x + cos(x)", "y**2 + sin(y)", "x^2 + sin(x)"],
        ),
    ],
)
def test_our_own_scorers_find_every_right_answer(name, entry, right, wrong):
    judge = RULES[name].own
    assert judge is not None
    assert all(judge(answer, {"metadata": entry}) for answer in right)
    assert not any(judge(answer, {"metadata": entry}) for answer in wrong)


@pytest.mark.parametrize(
    ("name", "gold", "right", "wrong"),
    [
        ("coin_flip", "0.171875", ["0.1719", "11/64", "0.171875"], ["0", "0.17", "1/0", "17%"]),
        (
            "polynomial_equations",
            "-0.3773, 0.4005",
            ["0.4005, -0.3773", "-0.37731,0.4005"],
            ["0.4005", "0.4005, 0.4005", "-0.3773, 0.4005, 1", "nan, nan"],
        ),
        ("polynomial_equations", "", ['""'], ["0", "none"]),
        ("advanced_geometry", "(4.051, -5.487)", ["(4.051, -5.487)", "4.0512, -5.487"], ["(4.06, -5.487)", "4.051", "(-5.487, 4.051)"]),
        ("advanced_geometry", "45.00°", ["45°", "45.001", "45.00°"], ["45.1°", "-45"]),
        ("power_function", "-0.0013674811612376526", ["-1.37e-3", "-0.00137"], ["1.37e-3", "-1.36e-3", "-1e-3", "nan"]),
        (
            "pool_matrix",
            "4.56 4.11\n6.0 6.33",
            ["4.56 4.11\n6 6.33", "[[4.56, 4.11], [6.0, 6.33]]"],
            ["4.56 4.11", "4.56 4.11 6.0 6.33", "4.6 4.11\n6 6.33"],
        ),
    ],
)
def test_numbers_are_right_to_the_places_that_are_asked_for(name, gold, right, wrong):
    judge = RULES[name].own
    assert judge is not None
    assert all(judge(answer, {"answer": gold}) for answer in right)
    assert not any(judge(answer, {"answer": gold}) for answer in wrong)


@pytest.mark.parametrize(
    ("name", "gold", "right", "wrong"),
    [
        ("fraction_simplification", r"$\frac{18}{73}$", ["18/73", r"\dfrac{18}{73}", "$18 / 73$"], ["36/146", "18/73/1", "18"]),
        ("game_of_life", "[[0,1],[1,0]]", ["[[0, 1],\n [1, 0]]"], ["[[0,1],[1,0],[0,0]]", "[[0,1],[0,0]]"]),
        ("game_of_life_halting", "False", ["False", "false"], ["True", "no", "0"]),
        ("spiral_matrix", "1 2 3", ["[1, 2, 3]", "1, 2, 3"], ["1 2", "1 2 3 4", "123"]),
        ("binary_matrix", "0 1\n1 0", ["[[0, 1], [1, 0]]", "0  1\n\n1 0"], ["0 1 1 0", "0 1\n1 1"]),
        ("word_sorting", "a, B, c", ["a,B,c", "['a', 'B', 'c']"], ["a, B, c, d", "a, b, c", "a, B"]),
        ("number_sorting", "['-9', '1.5']", ['["-9", "1.50"]', "-9, 1.5"], ["['-9', '1.6']", "['1.5', '-9']"]),
        (
            "knights_knaves",
            "Ann is a hero, and Bo is a villain.",
            ["Bo is a villain, Ann is a hero"],
            ["Ann is a hero", "Ann is a hero, and Bo is a hero.", "Ann is a hero, Ann is a villain, and Bo is a villain"],
        ),
        ("futoshiki", "1 < 2\n∧   ∨\n2   1", ["1 2\n2 1", "1 < 2\n2 1"], ["2 1\n1 2", "1 2 or\n2 1"]),
        ("prime_factorization", "3 × 7 × 7", ["7*7*3", "3 x 7 x 7"], ["3 × 49", "147", "3 × 7 × 7 × 1"]),
        ("group_anagrams", '[["ab", "ba"], ["c"]]', ['[["c"], ["ba", "ab"]]'], ['[["c"], ["ab"]]', "ab ba c"]),
        ("palindrome_partitioning", '[["w", "w"], ["ww"]]', ['[["ww"],["w","w"]]'], ['[["ww"],["w","w"],["ww"]]', '[["ww"]]']),
        ("bitwise_arithmetic", "-0x1f", ["-0x1F"], ["0x1f", "-1f", "-31 "]),
        ("self_reference", "12", ["12", "+12"], ["012", "12.0", "１２"]),
    ],
)
def test_notations_of_one_answer_are_the_same_answer(name, gold, right, wrong):
    form = RULES[name].form
    assert form is not None
    assert form(gold) is not None
    assert all(form(answer) == form(gold) for answer in right)
    assert not any(form(answer) == form(gold) for answer in wrong)


@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_a_task_that_is_left_out_says_why(name):
    with pytest.raises(EnvironmentSetupError, match=f"{name}' is left out: ") as refusal:
        open_task(name)
    assert LEFT_OUT[name] in str(refusal.value)


def test_a_task_whose_sets_are_kept_is_the_same_in_a_new_environment():
    for name in sorted(name for name, rule in RULES.items() if rule.kept):
        first, again = open_task(name).sample("train", 7, 0), open_task.__wrapped__(name).sample("train", 7, 0)
        assert (first.messages, first.payload) == (again.messages, again.payload)


PRINT_TASKS = """
import hashlib, json
from rlvr_api.environments import EnvironmentSpec, ReasoningGym
from rlvr_verifier.environments.reasoning_gym import ReasoningGymEnvironment
from rlvr_verifier.environments.reasoning_gym_tasks import SAFE_TASKS
found = {}
for name in sorted(SAFE_TASKS):
    environment = ReasoningGymEnvironment(EnvironmentSpec(name="x", reasoning_gym=ReasoningGym(task=name)))
    texts = [environment.sample("train", seed, 0).messages[0].content for seed in range(4)]
    found[name] = hashlib.sha256("".join(texts).encode()).hexdigest()
print(json.dumps(found))
"""


def test_tasks_do_not_depend_on_the_hash_seed():
    found = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run([sys.executable, "-c", PRINT_TASKS], env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(run.stdout.splitlines()[-1]))
    assert found[0] == found[1]
