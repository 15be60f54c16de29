import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_trainer.advantages import group_advantages, is_live

REWARDS = st.lists(st.none() | st.floats(0, 1), max_size=16)


def test_advantages_are_rewards_above_the_mean():
    assert group_advantages([1.0, 0.0, 0.0, 1.0]) == [0.5, -0.5, -0.5, 0.5]
    assert group_advantages([1.0, 0.0, 0.0, 0.0]) == [0.75, -0.25, -0.25, -0.25]


def test_std_is_the_unbiased_one_and_epsilon_is_added_to_it():
    std = math.sqrt(4 * 0.25 / 3)
    assert group_advantages([1.0, 0.0, 0.0, 1.0], normalize_by_std=True) == pytest.approx(
        [0.5 / (std + 1e-6), -0.5 / (std + 1e-6), -0.5 / (std + 1e-6), 0.5 / (std + 1e-6)], rel=1e-14
    )


def test_masked_rewards_leave_the_baseline_and_do_not_lower_it():
    assert group_advantages([1.0, None, 0.0, None]) == [0.5, None, -0.5, None]  # as zeros they would give 0.75 and −0.25


@pytest.mark.parametrize(
    "rewards",
    [[1.0, 1.0, 1.0], [0.0, 0.0], [1.0], [1.0, None, None], [0.1 + 0.2, 0.3, 0.3], [None, None], []],
    ids=["all right", "all wrong", "one sample", "one judged", "equal but for rounding", "none judged", "none"],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_a_group_without_signal_is_not_live(rewards, normalize):
    found = group_advantages(rewards, normalize_by_std=normalize)
    assert found == [None if reward is None else 0.0 for reward in rewards]
    assert not is_live(found)


def test_a_spread_above_the_threshold_is_live_even_when_tiny():
    assert is_live(group_advantages([0.5, 0.5 + 4e-6]))
    assert not is_live(group_advantages([0.5, 0.5 + 1e-6]))  # std 0.7e-6


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_rewards_that_are_not_finite_are_refused(reward):
    with pytest.raises(ValueError, match=f"a reward is {reward}"):
        group_advantages([0.0, reward])


@given(REWARDS, st.lists(st.integers(0, 16), max_size=6), st.booleans())
def test_adding_masked_samples_never_changes_the_others(rewards, places, normalize):
    padded = list(rewards)
    for place in places:
        padded.insert(min(place, len(padded)), None)
    without = [one for one in group_advantages(rewards, normalize_by_std=normalize) if one is not None]
    assert [one for one in group_advantages(padded, normalize_by_std=normalize) if one is not None] == without
    assert [one is None for one in group_advantages(padded)] == [reward is None for reward in padded]


@given(REWARDS, st.booleans())
def test_advantages_of_a_group_sum_to_zero_and_keep_the_order_of_rewards(rewards, normalize):
    found = [(r, a) for r, a in zip(rewards, group_advantages(rewards, normalize_by_std=normalize), strict=True) if a is not None]
    largest = max((abs(a) for _, a in found), default=0.0)
    assert abs(math.fsum(a for _, a in found)) <= 1e-9 * max(1.0, largest)
    advantages = [a for _, a in sorted(found)]
    assert advantages == sorted(advantages)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0.1, 1), st.floats(0, 1))
def test_affine_noise_of_a_verifier_scales_advantages_and_std_normalisation_cancels_it(rewards, slope, offset):
    noisy = [offset + slope * reward for reward in rewards]
    plain, seen = group_advantages(rewards), group_advantages(noisy)
    if is_live(plain) and is_live(seen):
        assert seen == pytest.approx([slope * one for one in plain], abs=1e-9)
