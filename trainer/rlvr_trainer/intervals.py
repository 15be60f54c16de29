"""Student's t distribution, for intervals over a few dozen held-out tasks where 1.96 would be too narrow.

Not covered: fractional degrees of freedom.
"""

import math
from statistics import NormalDist

EXACT_DEGREES = 1000
"""Up to here the finite series is summed; beyond it the expansion round the normal quantile is exact to 1e-10."""


def t_quantile(probability: float, degrees: int) -> float:
    """The value that a t-distributed variable stays below with `probability`.

    Args:
        probability: in (0, 1).
        degrees: degrees of freedom, at least 1.

    Raises:
        ValueError: outside these ranges.
    """
    if not 0 < probability < 1 or degrees < 1:
        raise ValueError(f"t_quantile needs a probability in (0, 1) and at least one degree of freedom, not {probability} and {degrees}")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    if degrees > EXACT_DEGREES:
        return _expanded_quantile(NormalDist().inv_cdf(probability), degrees)
    low, high = 0.0, 1.0
    while t_cdf(high, degrees) < probability:
        low, high = high, high * 2
    while high - low > 1e-12 * max(1.0, high):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def t_cdf(value: float, degrees: int) -> float:
    """P(T ≤ value) for `degrees` degrees of freedom: the finite series of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    angle = math.atan2(abs(value), math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    # term_k = Π (even or odd ratios) · cos^…, from cos θ (odd) or 1 (even), each multiplied by cos² θ.
    term, total = (cosine if odd else 1.0), 0.0
    for step in range(degrees // 2):
        total += term
        term *= cosine * cosine * ((2 * step + 2) / (2 * step + 3) if odd else (2 * step + 1) / (2 * step + 2))
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + math.copysign(within / 2, value)


def _expanded_quantile(normal: float, degrees: int) -> float:
    """Abramowitz & Stegun 26.7.5, to the third order in 1/degrees."""
    x = normal
    first = (x**3 + x) / 4
    second = (5 * x**5 + 16 * x**3 + 3 * x) / 96
    third = (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384
    return x + first / degrees + second / degrees**2 + third / degrees**3
