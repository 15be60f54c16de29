"""Intervals of shares against closed forms, published values and their own definition."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_api.binomial import Interval, beta_cdf, beta_quantile, clopper_pearson


def binomial_tail(successes, trials, share):
    """P(X ≥ successes) for X ~ Binomial(trials, share), term by term."""
    return math.fsum(math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(successes, trials + 1))


@given(st.integers(1, 60), st.data())
def test_the_exact_bounds_leave_half_of_the_error_on_each_side(trials, data):
    successes = data.draw(st.integers(0, trials))
    found = clopper_pearson(successes, trials)
    if successes > 0:
        assert binomial_tail(successes, trials, found.lower) == pytest.approx(0.025, abs=1e-9)
    if successes < trials:
        assert 1 - binomial_tail(successes + 1, trials, found.upper) == pytest.approx(0.025, abs=1e-9)


@pytest.mark.parametrize(("trials", "share"), [(299, 0.01), (598, 0.005), (2995, 0.001)])
def test_no_failure_in_so_many_trials_certifies_the_published_share(trials, share):
    """One-sided 95 %: n ≥ ln .05 / ln(1 − f)."""
    assert clopper_pearson(0, trials, confidence=0.9).upper <= share < clopper_pearson(0, trials - 3, confidence=0.9).upper


@given(st.just(0) | st.floats(0.01, 400), st.just(0) | st.floats(0.01, 400))
def test_an_interval_holds_its_estimate_and_stays_a_share(successes, failures):
    found = clopper_pearson(successes, successes + failures)
    assert 0 <= found.lower <= found.upper <= 1
    if found.estimate is not None:
        assert found.lower <= found.estimate + 1e-9
        assert found.estimate <= found.upper + 1e-9


def test_without_trials_nothing_is_known():
    assert clopper_pearson(0, 0) == Interval(None, 0.0, 1.0)


@pytest.mark.parametrize(("successes", "trials", "confidence"), [(-1, 5, 0.9), (6, 5, 0.9), (1, math.nan, 0.9), (1, 5, 1.0)])
def test_what_is_no_share_is_refused(successes, trials, confidence):
    with pytest.raises(ValueError, match="a share needs"):
        clopper_pearson(successes, trials, confidence)


@given(st.floats(0.5, 500), st.floats(0.5, 500), st.floats(0.001, 0.999))
def test_the_quantile_inverts_the_distribution(a, b, probability):
    assert beta_cdf(beta_quantile(probability, a, b), a, b) == pytest.approx(probability, abs=1e-6)
