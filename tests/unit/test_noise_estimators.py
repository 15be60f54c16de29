"""Error rates from audits: right on average, with intervals that hold, for verifiers whose true rates are known."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_api.wire import AuditVerdict, Verdict, VerdictStatus
from rlvr_trainer.integrity.estimators import AuditTally, noise_rates

COUNTS = st.integers(0, 400)


@st.composite
def tallies(draw):
    paid, refused = draw(COUNTS), draw(COUNTS)
    audited_paid, audited_refused = draw(st.integers(0, paid)), draw(st.integers(0, refused))
    return AuditTally(
        paid=paid, refused=refused, audited_paid=audited_paid, audited_refused=audited_refused,
        wrong_paid=draw(st.integers(0, audited_paid)), right_refused=draw(st.integers(0, audited_refused)),
    )  # fmt: skip


def simulate(rng, rollouts, accuracy, rho0, rho1, positive_rate, negative_rate):
    """Observations of a verifier with these rates: (paid, right, audited)."""
    for _ in range(rollouts):
        right = rng.random() < accuracy
        paid = rng.random() < (1 - rho1 if right else rho0)
        yield paid, right, rng.random() < (positive_rate if paid else negative_rate)


def tally_of(observations):
    seen = list(observations)
    audited = [(paid, right) for paid, right, drawn in seen if drawn]
    return AuditTally(
        paid=sum(paid for paid, _, _ in seen), refused=sum(not paid for paid, _, _ in seen),
        audited_paid=sum(paid for paid, _ in audited), wrong_paid=sum(paid and not right for paid, right in audited),
        audited_refused=sum(not paid for paid, _ in audited), right_refused=sum(not paid and right for paid, right in audited),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("accuracy", "rho0", "rho1", "rollouts"),
    [(0.5, 0.03, 0.2, 4000), (0.1, 0.3, 0.35, 2000), (0.9, 0.0, 0.02, 2000), (0.02, 0.5, 0.0, 800)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(accuracy, rho0, rho1, rollouts):
    rng, runs = random.Random(5), 60
    held = {"false_positive": 0, "false_negative": 0, "youden": 0, "hack": 0, "accuracy": 0}
    for _ in range(runs):
        seen = list(simulate(rng, rollouts, accuracy, rho0, rho1, 0.1, 0.05))
        rates = noise_rates(tally_of(seen))
        # Of these very rollouts, as the estimators are; the verifier's own rates differ from them by luck.
        wrong_paid = [paid for paid, right, _ in seen if not right]
        right_paid = [paid for paid, right, _ in seen if right]
        positive, negative = sum(wrong_paid) / len(wrong_paid), 1 - sum(right_paid) / len(right_paid)
        truth = {
            "false_positive": positive, "false_negative": negative, "youden": 1 - positive - negative,
            "hack": sum(paid and not right for paid, right, _ in seen) / rollouts,
            "accuracy": sum(right for _, right, _ in seen) / rollouts,
        }  # fmt: skip
        for name, value in truth.items():
            held[name] += getattr(rates, name).lower - 1e-9 <= value <= getattr(rates, name).upper + 1e-9
    assert min(held.values()) >= 0.95 * runs, held


def weighted_rates(observations):
    """ρ0 and ρ1 by inverse-probability weighting: Σ w·[paid, wrong] / Σ w·[wrong] and Σ w·[refused, right] / Σ w·[right], w = 1/π."""
    wrong = sum(1 / pi for _, right, pi in observations if not right)
    right_weight = sum(1 / pi for _, right, pi in observations if right)
    paid_wrong = sum(1 / pi for paid, right, pi in observations if paid and not right)
    refused_right = sum(1 / pi for paid, right, pi in observations if not paid and right)
    return paid_wrong / wrong, refused_right / right_weight


def test_estimates_are_those_of_weighting_by_the_probability():
    rng = random.Random(4)
    seen = list(simulate(rng, 200_000, 0.5, 0.03, 0.2, 0.2, 0.1))
    rates = noise_rates(tally_of(seen))
    weighted = weighted_rates([(paid, right, 0.2 if paid else 0.1) for paid, right, drawn in seen if drawn])
    assert (rates.false_positive.estimate, rates.false_negative.estimate) == pytest.approx(weighted, rel=0.03)
    assert weighted == pytest.approx((0.03, 0.2), abs=0.01)


@given(tallies())
def test_every_interval_holds_its_estimate(tally):
    rates = noise_rates(tally)
    for name in ("wrong_paid", "right_refused", "false_positive", "false_negative", "youden", "hack", "accuracy", "flake", "disagreement"):
        found = getattr(rates, name)
        assert (-1 if name == "youden" else 0) - 1e-9 <= found.lower <= found.upper + 1e-9 <= 1 + 1e-6, name
        if found.estimate is not None:
            assert found.lower - 1e-9 <= found.estimate <= found.upper + 1e-9, name


@given(tallies(), tallies())
def test_tallies_add_up(one, other):
    both = AuditTally.total([one, other])
    assert both.audited == one.audited + other.audited
    assert both == AuditTally.total([other, one])


def test_without_audits_nothing_is_claimed():
    rates = noise_rates(AuditTally(paid=50, refused=50))
    assert rates.false_positive.estimate is rates.youden.estimate is rates.hack.estimate is None
    assert (rates.hack.lower, rates.hack.upper) == (0.0, 0.5)  # all that was paid may be wrong
    assert (rates.youden.lower, rates.youden.upper) == (-1.0, 1.0)


def test_what_was_not_judged_counts_nowhere():
    def verdict(status, score, audit_score=None, flaky=False):
        audit = None
        if audit_score is not None:
            audit = AuditVerdict(probability=0.5, score=audit_score, verifier="exact", verifier_version="1", flaky=flaky)
        return Verdict(id="x", status=status, score=score, verifier="v", verifier_version="1", audit=audit)

    tally = AuditTally.of([
        verdict(VerdictStatus.PASS, 1.0, 0.0), verdict(VerdictStatus.PASS, 1.0, 1.0, flaky=True), verdict(VerdictStatus.PASS, 1.0),
        verdict(VerdictStatus.FAIL, 0.0, 1.0), verdict(VerdictStatus.INVALID, 0.0), verdict(VerdictStatus.INFRA_ERROR, None),
    ])  # fmt: skip
    assert tally == AuditTally(paid=3, refused=2, audited_paid=2, wrong_paid=1, audited_refused=1, right_refused=1, flaky=1)
    assert tally.disagreements == 2
