"""Error rates of a verifier from random audits, with intervals that hold for few audits, too.

    counts of paid and refused rollouts, and of the audited ones among them -> AuditTally -> noise_rates -> NoiseRates

A rollout is paid (verdict `pass`) or refused. Audits are drawn at random within each of these two strata, so what they find is the share of
wrong answers among the paid, a = P(wrong | paid), and of right answers among the refused, b = P(right | refused). With the share p of paid
rollouts, which is counted and not estimated,

    false positive rate   ρ0 = P(paid | wrong)    = a·p / (a·p + (1 − b)·(1 − p))
    false negative rate   ρ1 = P(refused | right) = b·(1 − p) / (b·(1 − p) + (1 − a)·p)
    Youden index          J  = 1 − ρ0 − ρ1
    hack rate                = a·p, the share of all rollouts that were paid for a wrong answer
    accuracy                 = (1 − a)·p + b·(1 − p)

These are the Hájek estimators of inverse-probability weighting, post-stratified. All five are monotone in a and b, so bounds of a and b,
each exact (Clopper-Pearson) at (1 + confidence)/2, give bounds of the five that hold together (Bonferroni).

Not covered: errors of the second verifier itself, and audits whose probability changes within a stratum.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from rlvr_api.binomial import CONFIDENCE, Interval, clopper_pearson
from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.storage.documents import Count, StoredDocument


class AuditTally(StoredDocument):
    """Counts of judged rollouts, and of what audits found among them. Tallies of disjoint rollouts add up."""

    paid: Count = 0
    """Rollouts with verdict `pass`."""
    refused: Count = 0
    """Other rollouts that were judged."""
    audited_paid: Count = 0
    """Paid ones that were audited."""
    wrong_paid: Count = 0
    """Audited paid ones that the second verifier refuses."""
    audited_refused: Count = 0
    """Refused ones that were audited."""
    right_refused: Count = 0
    """Audited refused ones that the second verifier passes."""
    flaky: Count = 0
    """Audited ones on which the first verifier, asked again, contradicted itself."""

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> Self:
        """Of verdicts; an `infra_error` is no verdict and counts nowhere."""
        judged = [verdict for verdict in verdicts if verdict.status is not VerdictStatus.INFRA_ERROR]
        paid = [verdict for verdict in judged if verdict.status is VerdictStatus.PASS]
        audits = [(verdict.status is VerdictStatus.PASS, verdict.audit) for verdict in judged if verdict.audit is not None]
        found = [(is_paid, audit.score > 0) for is_paid, audit in audits]
        return cls(
            paid=len(paid),
            refused=len(judged) - len(paid),
            audited_paid=sum(is_paid for is_paid, _ in found),
            wrong_paid=sum(is_paid and not is_right for is_paid, is_right in found),
            audited_refused=sum(not is_paid for is_paid, _ in found),
            right_refused=sum(not is_paid and is_right for is_paid, is_right in found),
            flaky=sum(audit.flaky for _, audit in audits),
        )

    @classmethod
    def total(cls, tallies: Iterable["AuditTally"]) -> Self:
        """The sum of tallies of disjoint rollouts."""
        every = list(tallies)
        return cls(**{name: sum(getattr(tally, name) for tally in every) for name in cls.model_fields})

    @property
    def audited(self) -> int:
        """Rollouts that were audited."""
        return self.audited_paid + self.audited_refused

    @property
    def disagreements(self) -> int:
        """Audits in which the two verifiers differ."""
        return self.wrong_paid + self.right_refused


@dataclass(frozen=True, slots=True)
class NoiseRates:
    """What a tally says of a verifier. An interval without audits is that of ignorance."""

    wrong_paid: Interval
    """a, of the stratum of paid rollouts."""
    right_refused: Interval
    """b, of the stratum of refused ones."""
    false_positive: Interval
    """ρ0."""
    false_negative: Interval
    """ρ1."""
    youden: Interval
    """J, in [−1, 1]."""
    hack: Interval
    """Share of all rollouts that were paid for a wrong answer."""
    accuracy: Interval
    """Share of right answers."""
    flake: Interval
    """Share of audited rollouts whose first verdict was not repeated."""
    disagreement: Interval
    """Share of audits in which the two verifiers differ; depends on how often each stratum is audited."""


def noise_rates(tally: AuditTally, confidence: float = CONFIDENCE) -> NoiseRates:
    """Rates with intervals, as the module's docstring defines them. Estimates are None while a stratum that they need has no audit."""
    each = (1 + confidence) / 2
    a = clopper_pearson(tally.wrong_paid, tally.audited_paid, each)
    b = clopper_pearson(tally.right_refused, tally.audited_refused, each)
    rollouts = tally.paid + tally.refused
    share = tally.paid / rollouts if rollouts else 0.0
    # A stratum without rollouts needs no audit: its rate has no weight.
    point_a = 0.0 if a.estimate is None and tally.paid == 0 else a.estimate
    point_b = 0.0 if b.estimate is None and tally.refused == 0 else b.estimate
    known = point_a is not None and point_b is not None and rollouts > 0
    points = _rates(share, point_a or 0.0, point_b or 0.0) if known else (None,) * 5
    low, high = _rates(share, a.lower, b.lower), _rates(share, a.upper, b.upper)
    hack_estimate = None if point_a is None or not rollouts else point_a * share
    return NoiseRates(
        wrong_paid=a,
        right_refused=b,
        false_positive=Interval(points[0], low[0] or 0.0, 1.0 if high[0] is None else high[0]),
        false_negative=Interval(points[1], low[1] or 0.0, 1.0 if high[1] is None else high[1]),
        youden=Interval(points[2], _or(high[2], -1.0), _or(low[2], 1.0)),
        hack=Interval(hack_estimate, a.lower * share, a.upper * share if rollouts else 1.0),
        accuracy=Interval(
            points[4], (1 - a.upper) * share + b.lower * (1 - share), (1 - a.lower) * share + b.upper * (1 - share) if rollouts else 1.0
        ),
        flake=clopper_pearson(tally.flaky, tally.audited, confidence),
        disagreement=clopper_pearson(tally.disagreements, tally.audited, confidence),
    )


def _rates(p: float, a: float, b: float) -> tuple[float | None, float | None, float | None, float, float]:
    """ρ0, ρ1, J, hack rate and accuracy; None where there is no wrong answer, or no right one, to speak of."""
    wrong, right = a * p + (1 - b) * (1 - p), b * (1 - p) + (1 - a) * p
    rho0 = a * p / wrong if wrong > 0 else None
    rho1 = b * (1 - p) / right if right > 0 else None
    youden = None if rho0 is None or rho1 is None else 1 - rho0 - rho1
    return rho0, rho1, youden, a * p, right


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
