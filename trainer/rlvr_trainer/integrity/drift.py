"""Detectors of a policy that changes in ways that reward hacking brings: signals to look, not proofs.

    a number of each step -> shift: the last steps against those before        paid and audited reward -> divergence

`shift` is Welch's t over the means of steps, with a threshold so high that a run of thousands of steps does not cry wolf, and a smallest
change that matters. `divergence` is more than a signal: it holds only where intervals leave no doubt.

Not covered: drift that is as slow as the window is long.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rlvr_trainer.integrity.estimators import AuditTally, noise_rates

RECENT_STEPS = 5
"""Steps that are compared with those before."""
FEWEST_BEFORE = 5
THRESHOLD = 6.0
"""|t| of a shift."""
SMALLEST_STD = 1e-9


@dataclass(frozen=True, slots=True)
class Shift:
    """A number that is not what it was."""

    before: float
    after: float
    t: float


def shift(values: Sequence[float], smallest_change: float) -> Shift | None:
    """Whether the last `RECENT_STEPS` values differ from those before by `smallest_change` and beyond chance; None where they do not.

    Args:
        values: one for each step, oldest first; only differences of their scale matter.
        smallest_change: least |after − before| that is worth a word.
    """
    old, new = values[:-RECENT_STEPS], values[-RECENT_STEPS:]
    if len(old) < FEWEST_BEFORE:
        return None
    before, after = statistics.fmean(old), statistics.fmean(new)
    if abs(after - before) < smallest_change:
        return None
    error = math.sqrt(statistics.variance(old) / len(old) + statistics.variance(new) / len(new))
    t = (after - before) / max(error, SMALLEST_STD)
    return Shift(before, after, t) if abs(t) >= THRESHOLD else None


@dataclass(frozen=True, slots=True)
class Divergence:
    """Paid reward rose while the audited one fell."""

    paid_before: float
    paid_after: float
    right_before: float
    right_after: float


def divergence(tallies: Sequence[AuditTally]) -> Divergence | None:
    """Whether the share of paid rollouts rose from the first half of the steps to the second, while that of right answers certainly fell.

    Args:
        tallies: one for each step of one environment, oldest first.
    """
    half = len(tallies) // 2
    old, new = AuditTally.total(tallies[:half]), AuditTally.total(tallies[half:])
    if not old.audited or not new.audited:
        return None
    paid_before, paid_after = (tally.paid / (tally.paid + tally.refused) for tally in (old, new))
    before, after = noise_rates(old).accuracy, noise_rates(new).accuracy
    if paid_after <= paid_before or after.upper >= before.lower or before.estimate is None or after.estimate is None:
        return None
    return Divergence(paid_before, paid_after, before.estimate, after.estimate)
