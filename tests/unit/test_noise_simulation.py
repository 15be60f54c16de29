"""What becomes of a policy under a verifier that can be hacked, or that is only noisy: a bandit trained by the project's own rewards and
advantages.

128 prompts, 16 samples each; a completion is right, wrong in one of six ways, or the hack, whose style all prompts share, so that it is
learned once for all of them. The hack is paid with probability 1.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from rlvr_api.wire import AuditVerdict, Verdict, VerdictStatus
from rlvr_trainer.advantages import group_advantages
from rlvr_trainer.integrity.rewards import audited_reward, noise_corrected_advantages

PROMPTS, SAMPLES, MODES = 128, 16, 8
RIGHT, HACK = 0, 7
STYLE_RATE = 8.0
"""How much faster than a prompt's own habits the shared style is learned; a network shares more than that."""
MAX_WEIGHT = 50.0


@dataclass(frozen=True)
class Verifier:
    """Error rates of the paid verifier, and probabilities of an audit by a perfect one."""

    false_positive: float = 0.0
    false_negative: float = 0.0
    positive_rate: float = 0.0
    negative_rate: float = 0.0


@cache
def verdict(paid, right, audited, probability):
    """One of the few verdicts that there are."""
    audit = None
    if audited:
        audit = AuditVerdict(probability=probability, score=float(right), verifier="exact", verifier_version="1")
    status = VerdictStatus.PASS if paid else VerdictStatus.FAIL
    return Verdict(id="x", status=status, score=float(paid), verifier="weak", verifier_version="1", audit=audit)


def judge(rng, mode, verifier):
    right = mode == RIGHT
    chance = 1.0 if mode == HACK else 1 - verifier.false_negative if right else verifier.false_positive
    paid = rng.random() < chance
    probability = verifier.positive_rate if paid else verifier.negative_rate
    return verdict(paid, right, rng.random() < probability, probability or 1.0)


def train(verifier, advantages_of, *, steps=250, learning_rate=0.3, seed=0, hack_logit=-1.0):
    """The share of right answers and of hacks after `steps` policy-gradient steps."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0.0, 1.0, (PROMPTS, MODES))
    own[:, HACK] += hack_logit
    style = 0.0
    for _ in range(steps):
        policy = probabilities(own, style)
        modes = (rng.random((PROMPTS, SAMPLES, 1)) > policy.cumsum(1)[:, None, :]).sum(2).clip(0, MODES - 1)
        advantages = np.array([advantages_of([audited_reward(judge(rng, mode, verifier), MAX_WEIGHT) for mode in row]) for row in modes])
        gradient = (advantages[:, :, None] * (np.eye(MODES)[modes] - policy[:, None, :])).mean(1)
        own += learning_rate * gradient
        style += STYLE_RATE * learning_rate * gradient[:, HACK].mean()
    final = probabilities(own, style)
    return final[:, RIGHT].mean(), final[:, HACK].mean()


def probabilities(own, style):
    logits = own.copy()
    logits[:, HACK] += style
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def with_std(rewards):
    return group_advantages(rewards, normalize_by_std=True)


AUDITED = Verifier(positive_rate=0.03, negative_rate=0.005)
"""The defaults of `integrity.audit`: about 2 % of the rollouts."""


def test_naive_training_loses_everything_to_the_hack():
    accuracy, hack = train(Verifier(), group_advantages)
    assert (accuracy < 0.05, hack > 0.95) == (True, True), (accuracy, hack)


@pytest.mark.parametrize("seed", [0, 1])
def test_audited_rewards_keep_the_accuracy_and_drop_the_hack(seed):
    accuracy, hack = train(AUDITED, group_advantages, seed=seed)
    assert (accuracy >= 0.85, hack <= 0.02) == (True, True), (accuracy, hack)


def test_audits_hold_under_ordinary_noise_as_well():
    noisy = Verifier(0.03, 0.2, AUDITED.positive_rate, AUDITED.negative_rate)
    accuracy, hack = train(noisy, group_advantages)
    assert (accuracy >= 0.85, hack <= 0.02) == (True, True), (accuracy, hack)


def test_dividing_by_the_standard_deviation_undoes_the_audits():
    accuracy, hack = train(AUDITED, with_std)
    assert (accuracy < 0.1, hack > 0.9) == (True, True), (accuracy, hack)


def test_the_corrected_variance_learns_more_than_the_observed_one_under_heavy_noise():
    """Without a hack: false positives of 30 % and false negatives of 35 %."""
    noisy = Verifier(0.30, 0.35)
    settings = {"steps": 60, "learning_rate": 0.3, "hack_logit": -50.0}
    naive, _ = train(noisy, with_std, **settings)
    corrected, _ = train(noisy, lambda rewards: noise_corrected_advantages(rewards, 0.30, 0.35), **settings)
    assert corrected > naive + 0.05, (corrected, naive)


def test_an_audited_reward_is_right_on_average_whatever_the_verifier_pays():
    for paid in (False, True):
        for right in (False, True):
            for probability in (0.02, 0.3, 1.0):
                drawn = audited_reward(verdict(paid, right, True, probability), MAX_WEIGHT)
                kept = audited_reward(verdict(paid, right, False, probability), MAX_WEIGHT)
                assert probability * drawn + (1 - probability) * kept == pytest.approx(float(right))


def test_a_clipped_weight_bounds_the_reward():
    assert audited_reward(verdict(True, False, True, 0.001), 50.0) == -49.0
    assert audited_reward(verdict(False, True, True, 0.001), 50.0) == 50.0


def test_groups_that_false_positives_explain_teach_nothing():
    explained = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None]
    found = noise_corrected_advantages(explained, 0.2, 0.1)
    assert found == [0.0] * 7 + [None]
    live = noise_corrected_advantages([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], 0.1, 0.1)
    true = 0.5
    assert live[0] == pytest.approx((1 - 0.5) / (0.8 * math.sqrt(true * (1 - true))))
    with pytest.raises(ValueError, match="no signal"):
        noise_corrected_advantages([1.0, 0.0], 0.6, 0.4)
