"""pass@k: the probability that at least one of k samples of a task passes, without bias and with an interval.

Of n samples of a task c passed. A draw of k of them without replacement has none that passed with probability C(n − c, k) / C(n, k), so
1 − that is unbiased (arXiv 2107.03374, section 2.1); 1 − (1 − c/n)^k is not. Tasks are independent and their samples are not, so the
interval is that of the mean over tasks: p̄ ± t(0.975, tasks − 1) · s / √tasks, within [0, 1].
"""

import math
import statistics
from collections.abc import Sequence

from rlvr_api.model import Fraction
from rlvr_trainer.intervals import t_quantile
from rlvr_trainer.storage.documents import Count, StoredDocument


class PassAt(StoredDocument):
    """pass@k of some tasks."""

    mean: Fraction
    """Every task weighs the same."""
    lower: Fraction
    """Of the two-sided 95 % interval; 0 for a single task, of which nothing is known."""
    upper: Fraction
    """1 for a single task."""
    tasks: Count
    """Tasks with at least k judged samples; the others are left out."""


def pass_at(samples: int, passed: int, k: int) -> float:
    """The unbiased estimate for one task of which `passed` of `samples` passed; `k` is at most `samples`."""
    if not 0 <= passed <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {passed} of {samples} samples: it needs k samples at least")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def estimate_pass_at(k: int, tasks: Sequence[tuple[int, int]]) -> PassAt | None:
    """pass@k over tasks, each given as its judged and its passed samples; None when no task has k samples."""
    values = [pass_at(samples, passed, k) for samples, passed in tasks if samples >= k]
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return PassAt(mean=mean, lower=0.0, upper=1.0, tasks=1)
    margin = t_quantile(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return PassAt(mean=mean, lower=max(0.0, mean - margin), upper=min(1.0, mean + margin), tasks=len(values))
