"""How much there is to learn from an environment, and the shares of the prompts that follow. Pure.

groups -> learnability, each -> means by environment -> bounded_shares
"""

import math
from collections.abc import Mapping

UNKNOWN = 0.25
"""Learnability of an environment that nobody has looked at: the largest there is, so that it is."""


def learnability(passed: int, judged: int, false_positive: float = 0.0, false_negative: float = 0.0) -> float:
    """Estimate of p(1 − p) of a task, p being the chance that a completion is right: the expected advantage of its groups is of that size,
    and it is 0 where all or none are right (arXiv 2502.12272, section 3).

    Of n judged completions a share q̂ passed, and the verifier passes right ones with 1 − β and wrong ones with α. With J = 1 − α − β,
    p = (q − α)/J and 1 − p = (1 − β − q)/J; q̂² − q̂(1 − q̂)/(n − 1) is unbiased for q², so

        (q̂(1 + α − β) − q̂² + q̂(1 − q̂)/(n − 1) − α(1 − β)) / J²

    is unbiased for p(1 − p). Single groups can be below 0; their mean is what counts. Without noise it is q̂(1 − q̂)·n/(n − 1).

    Args:
        passed, judged: completions; at least 2 judged.
        false_positive, false_negative: α and β.

    Raises:
        ValueError: fewer than 2 judged, or J not above 0.
    """
    youden = 1.0 - false_positive - false_negative
    if judged < 2 or youden <= 0:
        raise ValueError(f"{judged} judged completions with error rates {false_positive} and {false_negative} say nothing of a task")
    share = passed / judged
    spread = share * (1 - share) / (judged - 1)
    observed = share * (1 + false_positive - false_negative) - share**2 + spread - false_positive * (1 - false_negative)
    return observed / youden**2


def bounded_shares(weights: Mapping[str, float], floor: float, cap: float) -> dict[str, float]:
    """Shares in proportion to the weights as far as bounds allow: min(cap, max(floor, λ·w)), with the λ that makes them 1 together.

    Args:
        weights: by name, at least 0; all 0 counts as all equal, and less than a millionth of the largest as 0.
        floor, cap: of each share; floor · n ≤ 1 ≤ cap · n for n names.
    """
    largest = max(weights.values())
    weights = {name: weight / largest if largest > 0 and weight > 1e-6 * largest else 0.0 for name, weight in weights.items()}
    if not any(weights.values()):
        weights = dict.fromkeys(weights, 1.0)

    def shares(scale: float) -> dict[str, float]:
        return {name: min(cap, max(floor, scale * weight)) for name, weight in weights.items()}

    low, high = 0.0, 2 * cap / min(weight for weight in weights.values() if weight > 0)  # all that has a weight is at the cap
    for _ in range(128):  # halves the interval each time: more than a float can tell apart
        middle = (low + high) / 2
        if math.fsum(shares(middle).values()) < 1.0:
            low = middle
        else:
            high = middle
    found = shares(high)
    missing = 1.0 - math.fsum(found.values())  # above 0 where all that has a weight is at the cap: the others share it
    if missing > 1e-9:
        below = [name for name, weight in weights.items() if weight == 0]
        found |= {name: found[name] + missing / len(below) for name in below}
    return found
