"""Group-relative advantages: how much better a completion did than the others of its prompt.

    rewards of a group, None where it was not judged -> drop None -> centre -> (scale) -> advantages, None where masked

A failure of the infrastructure is no reward: it leaves the baseline as if it had never been sampled, so the others' advantages are
those of the group without it. Everything is float64 on plain numbers, since float32 noise makes dead groups look alive.

Noise of a verifier: with false positive rate p and false negative rate q the observed mean is p + (1 − p − q)·r, so the unbiased estimate
of a centred reward is the observed one over (1 − p − q). That rescales a whole environment and flips no sign, and `normalize_by_std`
cancels it; this module therefore applies none.
"""

import math
from collections.abc import Sequence

SMALLEST_STD = 1e-6
"""Rewards that vary less are all equal: the rest is rounding."""
STD_EPSILON = 1e-6
"""Added to the standard deviation that divides."""


def group_advantages(rewards: Sequence[float | None], *, normalize_by_std: bool = False) -> list[float | None]:
    """r − mean, optionally over (std + 1e-6) with the unbiased std (arXiv 2402.03300, section 4.1.2; without it, arXiv 2503.20783).

    Args:
        rewards: of one group; None is masked.
        normalize_by_std: divide by the standard deviation of the group.

    Returns:
        One advantage a reward: None where masked, and 0.0 everywhere else when the group carries no signal, because fewer than two
        rewards are left or because they are all equal.

    Raises:
        ValueError: a reward is not finite.
    """
    valid = [reward for reward in rewards if reward is not None]
    for reward in valid:
        if not math.isfinite(reward):
            raise ValueError(f"a reward is {reward}, and only finite numbers can be compared: the verifier must score in [0, 1]")
    std = sample_std(valid)
    if std <= SMALLEST_STD:
        return [None if reward is None else 0.0 for reward in rewards]
    mean = math.fsum(valid) / len(valid)
    scale = 1.0 / (std + STD_EPSILON) if normalize_by_std else 1.0
    return [None if reward is None else (reward - mean) * scale for reward in rewards]


def is_live(advantages: Sequence[float | None]) -> bool:
    """Whether a group carries a gradient: some advantage is neither masked nor zero."""
    return any(advantage for advantage in advantages)


def sample_std(values: Sequence[float]) -> float:
    """Unbiased standard deviation, √(Σ(v − v̄)² / (n − 1)); 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
