"""Levels, shares and problems left alone: functions of what was observed, and of nothing else."""

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_api.environments import Arithmetic, EnvironmentSpec, Levels, Mixing
from rlvr_api.stages import Revisit
from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.collector.curriculum import HELD_OUT, HOPELESS, SOLVED, Curriculum, Outcome, levels_in
from rlvr_trainer.collector.diversity import effective_environments, environment_shares, vendi_score
from rlvr_trainer.collector.mixing import bounded_shares, learnability
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan

SUMS = EnvironmentSpec(name="sums", arithmetic=Arithmetic(), levels=Levels(maximum=2, raise_at=0.8, window=2))
PRODUCTS = EnvironmentSpec(name="products", arithmetic=Arithmetic(operations=("*",)), weight=3)


def outcome(environment="sums", rate=0.5, *, level=0, index=0, problem="a" * 16, learn=None):
    return Outcome(index, environment, level, problem, rate, learn)


def group(environment, prompt, scores=(0.0, 1.0), index=0, rates=(None, None)):
    status = {1.0: VerdictStatus.PASS, 0.0: VerdictStatus.FAIL, None: VerdictStatus.INFRA_ERROR}
    rollouts = tuple(
        Rollout(
            (5, 1), (-0.5, -0.1), (VersionSpan(0, 0, 2),), "stop", "4",
            Verdict(id=str(n), status=status[score], score=score, verifier="v", verifier_version="1",
                    false_positive_rate=rates[0], false_negative_rate=rates[1]),
        )
        for n, score in enumerate(scores)
    )  # fmt: skip
    return RolloutGroup(Admission(index, environment, 0, 7), "0" * 16, (3,), prompt, rollouts, "rollout-0", "", 0.1, 0.0)


def test_a_level_rises_on_a_full_window_and_only_on_its_own_groups():
    curriculum = Curriculum([SUMS])
    assert not curriculum.observe(outcome(rate=1.0))
    assert curriculum.observe(outcome(rate=0.7)), "mean 0.85 over the window"
    assert curriculum.levels == levels_in(curriculum.state()) == {"sums": 1}
    assert not curriculum.observe(outcome(rate=1.0)), "late groups of the level before"
    assert not curriculum.observe(outcome(rate=1.0, level=1)), "the window starts anew"
    resumed = Curriculum([SUMS], state=curriculum.state())
    assert resumed.observe(outcome(rate=0.6, level=1))
    assert resumed.levels == {"sums": 2}
    assert not any(resumed.observe(outcome(rate=1.0, level=2)) for _ in range(5)), "the last level is not left"


def test_without_mixing_shares_are_those_of_the_weights():
    curriculum = Curriculum([SUMS, PRODUCTS])
    curriculum.observe(outcome(learn=0.0))
    assert curriculum.shares == {"sums": 0.25, "products": 0.75}


def test_shares_follow_learnability_within_their_bounds():
    curriculum = Curriculum([SUMS, PRODUCTS], mixing=Mixing(window=2, floor=0.1, cap=0.8))
    assert curriculum.shares == pytest.approx({"sums": 0.25, "products": 0.75}), "nobody knows yet"
    curriculum.observe(outcome("products", 1.0, learn=0.0))
    assert curriculum.shares == pytest.approx({"sums": 0.8, "products": 0.2}), "solved: at least the floor, the other at the cap"
    curriculum.observe(outcome("products", 0.5, learn=0.25))
    curriculum.observe(outcome("sums", 0.5, learn=0.25))
    assert curriculum.shares == pytest.approx({"sums": 0.4, "products": 0.6}), "3 x 0.125 to 0.25"
    curriculum.observe(outcome("sums", 0.5, learn=0.05))
    curriculum.observe(outcome("sums", 0.5, learn=0.05))
    assert curriculum.shares == pytest.approx({"sums": 0.2, "products": 0.8}), "the window forgets; 0.05 to 0.375 is beyond the cap"


def test_a_new_level_is_unknown_again():
    curriculum = Curriculum([SUMS, PRODUCTS], mixing=Mixing())
    for _ in range(2):
        curriculum.observe(outcome(rate=1.0, learn=0.0))
    assert curriculum.levels["sums"] == 1
    assert curriculum.shares == pytest.approx({"sums": 0.25, "products": 0.75})


@pytest.mark.parametrize(("rate", "reason", "wait"), [(1.0, SOLVED, 8), (0.0, HOPELESS, 3), (0.5, None, 0)])
def test_decided_problems_are_left_alone_until_the_cursor_has_moved_on(rate, reason, wait):
    curriculum = Curriculum([SUMS], revisit=Revisit(solved_after=8, hopeless_after=3))
    curriculum.observe(outcome(rate=rate, index=4))
    assert curriculum.reason_to_skip("a" * 16, 5) == reason
    assert curriculum.reason_to_skip("b" * 16, 5) is None
    assert curriculum.reason_to_skip("a" * 16, 4 + wait) == reason
    assert curriculum.reason_to_skip("a" * 16, 5 + wait) is None
    resumed = Curriculum([SUMS], revisit=Revisit(solved_after=8, hopeless_after=3), state=json.loads(json.dumps(curriculum.state())))
    assert resumed.reason_to_skip("a" * 16, 5) == reason


def test_a_problem_that_is_no_longer_decided_is_asked_again_and_old_ones_are_forgotten():
    curriculum = Curriculum([SUMS], revisit=Revisit(solved_after=8))
    curriculum.observe(outcome(rate=1.0, index=0))
    curriculum.observe(outcome(rate=0.5, index=1))
    assert curriculum.reason_to_skip("a" * 16, 2) is None
    curriculum.observe(outcome(rate=1.0, index=2))
    curriculum.observe(outcome(rate=0.5, index=30, problem="b" * 16))
    assert "_decided" not in curriculum.state()


def test_held_out_problems_are_never_trained_on():
    curriculum = Curriculum([SUMS], held_out={"a" * 16})
    assert curriculum.reason_to_skip("a" * 16, 10**9) == HELD_OUT


STEPS = st.lists(
    st.tuples(st.sampled_from(["sums", "products"]), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from("abcd"), st.floats(-0.1, 0.3)),
    max_size=40,
)


@given(STEPS, st.integers(0, 40))
def test_a_curriculum_that_is_restored_in_the_middle_goes_on_as_if_nothing_had_happened(steps, cut):
    settings = {"mixing": Mixing(window=5, floor=0.1), "revisit": Revisit(solved_after=6, hopeless_after=2)}
    whole, part = (Curriculum([SUMS, PRODUCTS], **settings) for _ in range(2))
    for index, (name, rate, problem, learn) in enumerate(steps):
        if index == cut:
            part = Curriculum([SUMS, PRODUCTS], **settings, state=json.loads(json.dumps(part.state())))
        for curriculum in (whole, part):
            curriculum.observe(outcome(name, rate, level=curriculum.levels[name], index=index, problem=problem * 16, learn=learn))
        assert whole.state() == part.state()
        assert whole.shares == part.shares
        for problem in "abcd":
            assert whole.reason_to_skip(problem * 16, index + 1) == part.reason_to_skip(problem * 16, index + 1)


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.floats(0, 1), min_size=1, max_size=8),
    st.floats(0, 1), st.floats(0, 1),
)  # fmt: skip
def test_shares_are_one_together_within_bounds_and_in_the_order_of_the_weights(weights, low, high):
    floor, cap = low / len(weights), (1 + high * (len(weights) - 1)) / len(weights)
    shares = bounded_shares(weights, floor, cap)
    assert math.fsum(shares.values()) == pytest.approx(1, abs=1e-9)
    assert all(floor - 1e-9 <= share <= cap + 1e-9 for share in shares.values())
    for one in weights:
        for other in weights:
            assert weights[one] < weights[other] + 1e-12 or shares[one] >= shares[other] - 1e-9


@pytest.mark.parametrize(("p", "alpha", "beta"), [(0.3, 0.0, 0.0), (0.5, 0.1, 0.2), (0.0, 0.2, 0.1), (1.0, 0.05, 0.3)])
def test_learnability_has_no_bias(p, alpha, beta):
    """The mean over all outcomes of n samples is p(1 - p) exactly."""
    n, q = 6, p * (1 - beta) + (1 - p) * alpha
    mean = math.fsum(math.comb(n, k) * q**k * (1 - q) ** (n - k) * learnability(k, n, alpha, beta) for k in range(n + 1))
    assert mean == pytest.approx(p * (1 - p), abs=1e-12)


def test_learnability_without_noise_is_the_unbiased_variance():
    for passed in range(5):
        assert learnability(passed, 4) == pytest.approx(statistics.variance([1.0] * passed + [0.0] * (4 - passed)))


def test_a_task_that_noise_alone_decides_teaches_nothing():
    with pytest.raises(ValueError, match="say nothing"):
        learnability(1, 2, 0.5, 0.5)
    assert Outcome.of(group("sums", "1", rates=(0.5, 0.5))).learnability is None
    assert Outcome.of(group("sums", "1", (None, 1.0, None))).learnability is None
    assert Outcome.of(group("sums", "1", (None, 1.0, 0.0))).learnability == pytest.approx(0.5)


def test_environments_that_ask_the_same_count_as_one_and_strangers_as_many():
    same = [group(name, "What is one and one?") for name in ("a", "b", "c")]
    assert effective_environments(same) == pytest.approx(1.0)
    strangers = [group(name, word) for name, word in (("a", "red"), ("b", "green"), ("c", "blue"))]
    assert effective_environments(strangers) == pytest.approx(3.0)
    uneven = [*strangers, *strangers[:1] * 7]
    assert environment_shares(uneven) == {"a": 0.8, "b": 0.1, "c": 0.1}
    entropy = -0.8 * math.log(0.8) - 0.2 * math.log(0.1)
    assert effective_environments(uneven) == pytest.approx(math.exp(entropy))


def test_the_vendi_score_of_two_kinds_by_hand():
    half = 0.5  # eigenvalues (1 ± 0.5) / 2
    wanted = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert vendi_score([0.5, 0.5], [[1.0, half], [half, 1.0]]) == pytest.approx(wanted)
