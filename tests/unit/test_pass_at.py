import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_trainer.pass_at import estimate_pass_at, pass_at


@given(st.integers(1, 9), st.data())
def test_the_estimate_is_the_share_of_draws_with_a_pass(samples, data):
    passed, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    outcomes = [True] * passed + [False] * (samples - passed)
    draws = [any(draw) for draw in itertools.combinations(outcomes, k)]
    assert pass_at(samples, passed, k) == pytest.approx(sum(draws) / len(draws))


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_it_is_unbiased_where_the_plug_in_estimate_is_not(rate):
    samples, k = 6, 4
    chance = [math.comb(samples, c) * rate**c * (1 - rate) ** (samples - c) for c in range(samples + 1)]
    expected = sum(p * pass_at(samples, c, k) for c, p in enumerate(chance))
    plug_in = sum(p * (1 - (1 - c / samples) ** k) for c, p in enumerate(chance))
    assert expected == pytest.approx(1 - (1 - rate) ** k)
    assert abs(plug_in - expected) > 1e-4


def test_the_interval_is_that_of_the_mean_over_tasks():
    found = estimate_pass_at(1, [(8, 8), (8, 4), (8, 0), (4, 3)])
    values = [1.0, 0.5, 0.0, 0.75]
    margin = 3.182446305284263 * statistics.stdev(values) / 2  # t(0.975, 3)
    assert found.mean == pytest.approx(0.5625)
    assert found.upper == pytest.approx(min(1.0, 0.5625 + margin))
    assert found.lower == pytest.approx(max(0.0, 0.5625 - margin))
    assert found.tasks == 4


def test_tasks_with_too_few_samples_are_left_out_and_one_task_says_nothing():
    one = estimate_pass_at(8, [(8, 2), (7, 7)])
    assert (one.tasks, one.mean, one.lower, one.upper) == (1, 1.0, 0.0, 1.0)
    assert estimate_pass_at(8, [(7, 7)]) is None


def test_more_tries_than_samples_are_refused():
    with pytest.raises(ValueError, match="pass@5 cannot be estimated from 1 of 4"):
        pass_at(4, 1, 5)
