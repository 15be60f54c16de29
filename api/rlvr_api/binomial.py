"""Confidence intervals of shares, for whoever counts failures among trials: the certification of environments and the audits of a run.

    successes, trials -> clopper_pearson -> Interval, never too narrow

Counts may be fractional, so that a weighted sample can be given as its effective size (Korn and Graubard 1998). Not covered: samples that
depend on each other.
"""

import math
from dataclasses import dataclass

CONFIDENCE = 0.95
"""Two-sided."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A share with its confidence interval; `estimate` is None without a trial, and the interval is [0, 1] then."""

    estimate: float | None
    lower: float
    upper: float


def clopper_pearson(successes: float, trials: float, confidence: float = CONFIDENCE) -> Interval:
    """The exact interval of a binomial share (Biometrika 26, 1934): quantiles of beta distributions.

    Args:
        successes: in [0, trials].
        trials: at least 0; need not be whole.
        confidence: two-sided, in (0, 1).

    Raises:
        ValueError: outside these ranges.
    """
    _check(successes, trials, confidence)
    if trials == 0:
        return Interval(None, 0.0, 1.0)
    tail = (1 - confidence) / 2
    lower = 0.0 if successes == 0 else beta_quantile(tail, successes, trials - successes + 1)
    upper = 1.0 if successes == trials else beta_quantile(1 - tail, successes + 1, trials - successes)
    return Interval(successes / trials, lower, upper)


def beta_cdf(value: float, a: float, b: float) -> float:
    """P(X ≤ value) for X ~ Beta(a, b): the continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    if value <= 0.0 or value >= 1.0:
        return float(value >= 1.0)
    if value > (a + 1) / (a + b + 2):  # where the other tail converges faster
        return 1.0 - beta_cdf(1.0 - value, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(value) + b * math.log1p(-value)
    return math.exp(log_front) / a * _continued_fraction(value, a, b)


def beta_quantile(probability: float, a: float, b: float) -> float:
    """The value that X ~ Beta(a, b) stays below with `probability`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_cdf(middle, a, b) < probability else (low, middle)
    return (low + high) / 2


def _continued_fraction(value: float, a: float, b: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1.0 / _nonzero(1.0 - (a + b) * value / (a + 1.0), tiny)
    total = d
    for m in range(1, 10_000):
        even = m * (b - m) * value / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * value / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _nonzero(1.0 + term * d, tiny)
            c = _nonzero(1.0 + term / c, tiny)
            total *= c * d
        if abs(c * d - 1.0) < 1e-14:
            return total
    raise ArithmeticError(f"the incomplete beta function did not converge at {value} with a = {a} and b = {b}")


def _nonzero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


def _check(successes: float, trials: float, confidence: float) -> None:
    if not 0 <= successes <= trials < math.inf or not 0 < confidence < 1:
        raise ValueError(
            f"{successes} of {trials} with confidence {confidence}: a share needs 0 ≤ successes ≤ trials, confidence in (0, 1)"
        )
