"""Whether the reward can be believed, from the evidence of the last steps. Pure.

    StepEvidence of the last `integrity.windowSteps` steps -> assess -> Assessment(status, reason, message, rates)

    False    for certain: an exploit or wrong answer was paid among the canaries, or an interval lies wholly beyond its bound
    Unknown  nothing is audited, there are too few audits, or the rollouts have changed their looks
    True     what was measured is within its bounds

The worst thing that is found is the reason; the message has all of them. Only False counts as a violation: a pause for a mere suspicion
would cost more runs than it saves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rlvr_api.binomial import Interval
from rlvr_api.conditions import Reason
from rlvr_api.integrity import Integrity
from rlvr_api.status import RewardTrust
from rlvr_api.wire import CanaryTag
from rlvr_trainer.integrity.drift import divergence, shift
from rlvr_trainer.integrity.estimators import AuditTally, NoiseRates, noise_rates
from rlvr_trainer.integrity.evidence import CanaryTally, StepEvidence

FEWEST_AUDITS = 20
"""Audits of paid rollouts below which no environment is called trustworthy."""
MAX_MESSAGE = 900


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that speaks against the reward."""

    reason: Reason
    words: str


@dataclass(frozen=True)
class Assessment:
    """What the evidence says."""

    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str
    rates: dict[str, NoiseRates]
    """Of audited environments, over the window."""
    audited: int
    """Audits in the window."""

    @property
    def is_violated(self) -> bool:
        """Whether a bound is broken for certain."""
        return self.status == "False"

    def progress(self) -> RewardTrust:
        """For the status; the rates are those of the environment with the largest hack rate."""
        worst = max(self.rates, key=lambda name: self.rates[name].hack.estimate or 0.0, default=None)
        rates = self.rates[worst] if worst is not None else None
        return RewardTrust(
            status=self.status,
            reason=self.reason,
            message=self.message,
            audited=self.audited,
            environment=worst,
            hack_rate=rates.hack.estimate if rates else None,
            false_positive_rate=rates.false_positive.estimate if rates else None,
            false_negative_rate=rates.false_negative.estimate if rates else None,
        )


def assess(integrity: Integrity, audited: Sequence[str], evidence: Sequence[StepEvidence]) -> Assessment:
    """Judge the reward.

    Args:
        audited: environments with a second verifier.
        evidence: of the steps of a stage so far, oldest first.
    """
    window = evidence[-integrity.window_steps :]
    tallies = {name: [step.audits[name] for step in window if name in step.audits] for name in audited}
    totals = {name: AuditTally.total(found) for name, found in tallies.items()}
    rates = {name: noise_rates(total) for name, total in totals.items() if total.audited}
    violations = [*_canaries(window), *_rates(integrity, rates), *_divergences(tallies)]
    doubts = [*_unmeasured(audited, totals), *_drifts(window)]
    described = [f"{name}: {describe_rates(found, totals[name])}" for name, found in rates.items()]
    status: Literal["True", "False", "Unknown"] = "False" if violations else "Unknown" if doubts else "True"
    found = [*violations, *doubts]
    reason = found[0].reason if found else Reason.BOUNDS_HELD
    message = "; ".join([*(finding.words for finding in found), *described])
    return Assessment(status, reason, " ".join(message.split())[:MAX_MESSAGE], rates, sum(total.audited for total in totals.values()))


def describe_rates(rates: NoiseRates, tally: AuditTally) -> str:
    """Rates in words, with their intervals."""
    shown = (("false positives", rates.false_positive), ("false negatives", rates.false_negative), ("paid for wrong answers", rates.hack))
    words = ", ".join(f"{name} {in_words(interval)}" for name, interval in shown)
    return f"{words} ({tally.audited} of {tally.paid + tally.refused} rollouts audited)"


def in_words(interval: Interval) -> str:
    """A share with its 95 % interval."""
    estimate = "unknown" if interval.estimate is None else f"{interval.estimate:.1%}"
    return f"{estimate} [{interval.lower:.1%}, {interval.upper:.1%}]"


def _canaries(window: Sequence[StepEvidence]) -> Iterator[Finding]:
    names = sorted({name for step in window for name in step.canaries})
    for name in names:
        total = CanaryTally.total(step.canaries[name] for step in window if name in step.canaries)
        for tag, noun in ((CanaryTag.EXPLOIT, "exploits"), (CanaryTag.WRONG, "wrong answers")):
            paid = total.broken_of(tag)
            if paid:
                which = ", ".join(f"{probe} ({count})" for probe, count in sorted(paid.items()))
                yield Finding(
                    Reason.CANARY_PAID,
                    f"environment {name} pays for {noun}: {which}, {sum(paid.values())} of {total.judged.get(tag, 0)} canaries",
                )


def _rates(integrity: Integrity, rates: dict[str, NoiseRates]) -> Iterator[Finding]:
    for name, found in rates.items():
        if found.hack.lower > integrity.max_hack_rate:
            yield Finding(
                Reason.HACK_RATE_EXCEEDED,
                f"environment {name} pays wrong answers in {in_words(found.hack)} of the rollouts, beyond integrity.maxHackRate "
                f"{integrity.max_hack_rate:g}",
            )
        if found.youden.upper < integrity.min_youden:
            yield Finding(
                Reason.VERIFIER_TOO_NOISY,
                f"the verdicts of environment {name} have Youden index {found.youden.estimate or 0.0:.2f}, at most "
                f"{found.youden.upper:.2f}, below integrity.minYouden {integrity.min_youden:g}",
            )


def _divergences(tallies: dict[str, list[AuditTally]]) -> Iterator[Finding]:
    for name, found in tallies.items():
        seen = divergence(found)
        if seen is not None:
            yield Finding(
                Reason.REWARD_DIVERGED,
                f"in environment {name} the paid share rose from {seen.paid_before:.1%} to {seen.paid_after:.1%} while right answers fell "
                f"from {seen.right_before:.1%} to {seen.right_after:.1%}",
            )


def _unmeasured(audited: Sequence[str], totals: dict[str, AuditTally]) -> Iterator[Finding]:
    if not audited:
        yield Finding(Reason.NOT_AUDITED, "no environment is audited: set integrity.audit and environments[].audit to measure its verifier")
    for name, total in totals.items():
        if total.audited_paid < min(FEWEST_AUDITS, total.paid) or not total.audited:
            yield Finding(
                Reason.TOO_FEW_AUDITS,
                f"environment {name} has {total.audited_paid} audits of {total.paid} paid rollouts, and {FEWEST_AUDITS} are needed",
            )


def _drifts(window: Sequence[StepEvidence]) -> Iterator[Finding]:
    looks = [step.behaviour for step in window if step.behaviour is not None]
    lengths = [look.completion_tokens for look in looks]
    series = (
        ("the mean length in tokens", lengths, 0.5 * (sum(lengths) / len(lengths)) if lengths else 0.0),
        ("the share of invalid answers", [look.invalid_share for look in looks], 0.2),
        ("the share of paid answers that are copies of each other", [look.repeated_share for look in looks], 0.2),
    )
    for name, values, smallest in series:
        seen = shift(values, smallest)
        if seen is not None:
            yield Finding(Reason.DRIFT_SUSPECTED, f"{name} went from {seen.before:.3g} to {seen.after:.3g}: look at `rlvr rollouts`")
