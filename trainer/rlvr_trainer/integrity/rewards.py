"""Rewards under a noisy verifier: what audits turn a paid score into, and advantages that know the noise.

    verdict, audit drawn with probability π -> audited_reward -> mean baseline, no standard deviation

Augmented inverse-probability weighting (Robins, Rotnitzky and Zhao 1994; as audits in arXiv 2403.03208): with the paid score f, the second
verifier's score y and a ~ Bernoulli(π) drawn after the completion was sampled,

    r = f + a/π · (y − f),      E[r | completion] = y for any f, whatever the policy does to earn it,      Var = (1/π − 1)·(y − f)²

so a policy that learns to please f alone earns what y says. Dividing by a group's standard deviation undoes that: a group with an audit has
one huge reward, is scaled back to 1, and the unaudited groups win. Clipping 1/π bounds the variance and leaves 1 − clip·π of the bias.
"""

import math
from collections.abc import Sequence

from rlvr_api.integrity import Audit
from rlvr_api.wire import Verdict, VerdictStatus

SMALLEST_CORRECTED_STD = 0.1
"""Groups whose corrected standard deviation is smaller are explained by false positives, or false negatives, alone."""


def audited_reward(verdict: Verdict, max_weight: float) -> float | None:
    """r of the module's docstring with 1/π at most `max_weight`; the paid score without an audit, None where nothing was judged."""
    if verdict.score is None:
        return None
    if verdict.audit is None:
        return verdict.score
    weight = min(1.0 / verdict.audit.probability, max_weight)
    return verdict.score + weight * (verdict.audit.score - verdict.score)


def noise_corrected_advantages(rewards: Sequence[float | None], false_positive: float, false_negative: float) -> list[float | None]:
    """Standardised by the variance of the true reward instead of the observed one:

    p̂ = clip((p̃ − ρ0) / J, 0, 1),  A_i = (r_i − p̃) / (J · √(p̂(1 − p̂))),  0 throughout where √(p̂(1 − p̂)) < 0.1

    A group whose passes are explained by false positives alone teaches nothing, where GRPO's own standard deviation would blow it up.

    Args:
        rewards: 0 or 1 for each completion of a group; None is masked.
        false_positive, false_negative: ρ0 and ρ1 of the verifier.

    Raises:
        ValueError: J = 1 − ρ0 − ρ1 is not above 0.
    """
    youden = 1 - false_positive - false_negative
    if youden <= 0:
        raise ValueError(
            f"false positive rate {false_positive} and false negative rate {false_negative} leave no signal: J is {youden:.3g}"
        )
    valid = [reward for reward in rewards if reward is not None]
    if not valid:
        return [None for _ in rewards]
    observed = math.fsum(valid) / len(valid)
    true = min(1.0, max(0.0, (observed - false_positive) / youden))
    std = math.sqrt(true * (1 - true))
    if std < SMALLEST_CORRECTED_STD:
        return [None if reward is None else 0.0 for reward in rewards]
    return [None if reward is None else (reward - observed) / (youden * std) for reward in rewards]


def learning_reward(verdict: Verdict, audit: Audit | None) -> float | None:
    """What is learned from a verdict: the paid score, or the one that `integrity.audit` corrects; None where nothing was judged."""
    if audit is None or audit.rewards == "paid":
        return verdict.score
    return audited_reward(verdict, audit.max_weight)


def known_noise(verdict: Verdict) -> tuple[float, float] | None:
    """False positive and false negative rate of the verifier, where the job says them."""
    if verdict.false_positive_rate is None or verdict.false_negative_rate is None:
        return None
    return verdict.false_positive_rate, verdict.false_negative_rate


def is_learnable(verdict: Verdict, audit: Audit | None) -> bool:
    """Whether a stage that imitates what passed may imitate it: it passed, and no audit that counts has refuted it."""
    counts = audit is not None and audit.rewards == "corrected" and verdict.audit is not None
    return verdict.status is VerdictStatus.PASS and not (counts and verdict.audit is not None and verdict.audit.score == 0)
