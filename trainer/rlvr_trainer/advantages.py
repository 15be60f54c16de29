"""Advantages: how much better a completion did than others.

    outcomes of a batch, reward None where it was not judged -> (length shaping) -> centre -> (scale) -> advantages, None where masked

A failure of the infrastructure is no reward: it leaves the baseline as if it had never been sampled, so the others' advantages are
those of the group without it. Everything is float64 on plain numbers, since float32 noise makes dead groups look alive.

Noise of a verifier: with false positive rate p and false negative rate q the observed mean is p + (1 − p − q)·r, so the unbiased estimate
of a centred reward is the observed one over (1 − p − q). That rescales a whole environment and flips no sign, and dividing by a standard
deviation cancels it; this module therefore applies none. `integrity.rewards` has the correction of the standard deviation itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

SMALLEST_STD = 1e-6
"""Rewards that vary less are all equal: the rest is rounding."""
STD_EPSILON = 1e-6
"""Added to the standard deviation that divides."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What advantages are made of: one completion."""

    reward: float | None
    """None was not judged."""
    tokens: int
    """Length."""
    penalty: float = 0.0
    """Taken off the reward."""
    noise: tuple[float, float] | None = None
    """False positive and false negative rate of the verifier, where they are known."""

    @property
    def shaped(self) -> float | None:
        """Reward less penalty; None where it was not judged."""
        return None if self.reward is None else self.reward - self.penalty


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
    valid = _valid(rewards)
    std = sample_std(valid)
    if std <= SMALLEST_STD:
        return [None if reward is None else 0.0 for reward in rewards]
    mean = math.fsum(valid) / len(valid)
    scale = 1.0 / (std + STD_EPSILON) if normalize_by_std else 1.0
    return [None if reward is None else (reward - mean) * scale for reward in rewards]


def leave_one_out_advantages(rewards: Sequence[float | None]) -> list[float | None]:
    """r_i − the mean of the other rewards (arXiv 2402.14740), which is n/(n − 1)·(r_i − mean). Else as `group_advantages`."""
    judged = len(_valid(rewards))
    scale = judged / (judged - 1) if judged > 1 else 1.0
    return [None if advantage is None else advantage * scale for advantage in group_advantages(rewards)]


def batch_advantages(groups: Sequence[Sequence[float | None]], *, group_baseline: bool) -> list[list[float | None]]:
    """(a − mean(a)) / (std(a) + 1e-6) over the whole batch (arXiv 2501.03262, section 3), where a is r minus its group's mean, or r.

    Args:
        groups: the rewards of each group of a batch; None is masked.
        group_baseline: subtract the group's mean first; a group of equal rewards then has advantage 0 throughout.

    Returns:
        As `group_advantages`, by group; all 0.0 when nothing in the batch differs.
    """
    centred = [group_advantages(group) if group_baseline else list(group) for group in groups]
    valid = [value for group in centred for value in _valid(group)]
    std = sample_std(valid)
    if std <= SMALLEST_STD:
        return [[None if value is None else 0.0 for value in group] for group in centred]
    # Groups' means are 0 with a baseline; subtracting the rounding of their mean would make dead groups live.
    mean = 0.0 if group_baseline else math.fsum(valid) / len(valid)
    return [[None if value is None else (value - mean) / (std + STD_EPSILON) for value in group] for group in centred]


def overlong_penalty(tokens: int, max_tokens: int, buffer_tokens: int, factor: float) -> float:
    """What DAPO takes off a long completion's reward (arXiv 2503.14476, eq. 13): 0 up to L_max − buffer, then rising to `factor`."""
    excess = tokens - (max_tokens - buffer_tokens)
    return factor * min(max(excess, 0), buffer_tokens) / buffer_tokens


def is_live(advantages: Sequence[float | None]) -> bool:
    """Whether a group carries a gradient: some advantage is neither masked nor zero."""
    return any(advantage for advantage in advantages)


def sample_std(values: Sequence[float]) -> float:
    """Unbiased standard deviation, √(Σ(v − v̄)² / (n − 1)); 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _valid(rewards: Sequence[float | None]) -> list[float]:
    valid = [reward for reward in rewards if reward is not None]
    for reward in valid:
        if not math.isfinite(reward):
            raise ValueError(f"a reward is {reward}, and only finite numbers can be compared: the verifier must score in [0, 1]")
    return valid
