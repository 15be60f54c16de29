"""What a step's batch looked like: rewards, ages and lengths of all completions, and off-policy numbers of the trained tokens.

    groups -> BatchStatistics, token_ages          micro-batches -> TokenSums.add, on the device -> TokenStatistics, read once

Per token, d = lp_old − lp_inf is the trainer's log-prob minus the sampler's, and w = exp(d). From tokens of the sampler,
k1 = mean(−d) and k3 = mean(w − 1 − d) estimate KL(sampler ‖ trainer); both are unbiased, k3 is never negative and varies less
(joschu.net/blog/kl-approx.html). χ² = mean(w²) − 1 is the divergence that bounds how much the weights vary. The effective sample size is
(Σw)² / Σw² over the number of tokens (Kong 1992). All are also told apart by the token's age in optimizer steps.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvr_api.wire import VerdictStatus
from rlvr_trainer.algorithms.base import LossInputs, LossOutput
from rlvr_trainer.correction import importance_weights
from rlvr_trainer.distributed.ranks import ALONE, Ranks
from rlvr_trainer.rollout import RolloutGroup

OLDEST = 32
"""Tokens of this age and older are counted together."""
SMALLEST_VARIANCE = 1e-9
"""Of returns; below it they are all equal."""


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Of all completions of a step. None where there is nothing to average."""

    reward_mean: float | None
    """Over the judged completions."""
    pass_rate: float | None
    """Share of `pass` among the judged completions."""
    masked: int
    """Completions that were not judged."""
    completion_tokens_mean: float | None
    truncated_share: float | None
    """Share of completions that ended at the length limit."""
    staleness_mean: float | None
    """Over tokens: optimizer steps between the weights that sampled a token and those that learn from it."""
    staleness_max: int | None


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Of the trained tokens; see the module's docstring."""

    tokens: int
    mismatch_k1: float
    """Nats."""
    mismatch_k3: float
    """Nats."""
    mismatch_max: float
    """Largest |d|, nats."""
    chi2: float
    ess: float
    """In (0, 1]."""
    clip_fraction: float
    """Share of tokens that the trust region bounded."""
    rejected: float
    """Share of tokens with weight 0."""
    entropy: float
    """Mean, nats."""
    explained_variance: float | None
    """1 − mean((R − V)²) / var(R); None without a critic, and where all returns are equal."""
    by_age: Mapping[int, "AgeStatistics"]
    """By optimizer steps since the token's weights; `OLDEST` stands for all that are older, too."""


@dataclass(frozen=True, slots=True)
class AgeStatistics:
    """Of the trained tokens of one age."""

    tokens: int
    mismatch_k3: float
    """Nats."""
    chi2: float
    ess: float
    clip_fraction: float
    rejected: float


def describe_batch(groups: Sequence[RolloutGroup], current_step: int, step_of: Callable[[int], int]) -> BatchStatistics:
    """Statistics of a batch that is learned from with the weights after optimizer step `current_step`.

    Args:
        step_of: optimizer step after which a weight version was published; raises for one that never was.

    Raises:
        ValueError: a token's weights are newer than `current_step`, or spans do not cover their completion.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    passed = sum(rollout.verdict.status is VerdictStatus.PASS for rollout in rollouts)
    tokens = sum(len(rollout.token_ids) for rollout in rollouts)
    sampled = sum(rollout.sampled_tokens for rollout in rollouts)
    ages = token_ages(groups, current_step, step_of)
    return BatchStatistics(
        reward_mean=math.fsum(rewards) / len(rewards) if rewards else None,
        pass_rate=passed / len(rewards) if rewards else None,
        masked=len(rollouts) - len(rewards),
        completion_tokens_mean=sampled / len(rollouts) if rollouts else None,
        truncated_share=sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts) if rollouts else None,
        staleness_mean=sum(age * count for age, count in ages.items()) / tokens if tokens else None,
        staleness_max=max(ages, default=None),
    )


def token_ages(groups: Sequence[RolloutGroup], current_step: int, step_of: Callable[[int], int]) -> dict[int, int]:
    """How many tokens have each age in optimizer steps. Raises as `describe_batch`."""
    ages: dict[int, int] = {}
    for group in groups:
        for number, rollout in enumerate(group.rollouts):
            end = 0
            for span in rollout.spans:
                age = current_step - step_of(span.version)
                if age < 0 or span.start != end or span.end < span.start:
                    raise ValueError(
                        f"completion {number} of group {group.admission.index} has {span} after token {end}, and the policy is that of "
                        f"step {current_step}: spans must follow each other, and no version may be newer"
                    )
                end = span.end
                ages[age] = ages.get(age, 0) + span.end - span.start
            if end != len(rollout.token_ids):
                raise ValueError(
                    f"completion {number} of group {group.admission.index} has {len(rollout.token_ids)} tokens, and its spans cover {end}"
                )
    return {age: count for age, count in ages.items() if count}


class TokenSums:
    """Sums over micro-batches by age, float64 on the device; nothing waits for the device until `read`."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(OLDEST + 1, 8, dtype=torch.float64, device=device)
        self._largest = torch.zeros((), dtype=torch.float64, device=device)
        self._of_critic = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, inputs: LossInputs, output: LossOutput, entropies: Tensor, ages: Tensor) -> None:
        """Add a micro-batch of N tokens; `entropies` and `ages` (int64) are [N]."""
        if not len(ages):
            return
        gaps = (inputs.old_logprobs - inputs.sampler_logprobs).double()
        weights = importance_weights(inputs.old_logprobs, inputs.sampler_logprobs).double()
        ones, k3, rejected = torch.ones_like(gaps), gaps.expm1() - gaps, (inputs.weights == 0).double()
        per_token = (ones, -gaps, k3, weights, weights.square(), output.cut.double(), rejected, entropies.double())
        self._sums.index_add_(0, ages.clamp(max=OLDEST), torch.stack(per_token, 1))
        self._largest = torch.maximum(self._largest, gaps.abs().amax())
        if inputs.values is not None and inputs.returns is not None:
            returns, errors = inputs.returns.double(), (inputs.returns - inputs.values).double()
            self._of_critic += torch.stack([ones.sum(), returns.sum(), returns.square().sum(), errors.square().sum()])

    def read(self, ranks: Ranks = ALONE) -> TokenStatistics:
        """The statistics of what all processes have added, at least one token; read once."""
        rows: list[list[float]] = ranks.add(self._sums).tolist()
        sums = [math.fsum(column) for column in zip(*rows, strict=True)]
        whole, count, k1, entropy = _statistics(sums), sums[0], sums[1], sums[-1]
        return TokenStatistics(
            tokens=whole.tokens,
            mismatch_k1=k1 / count,
            mismatch_k3=whole.mismatch_k3,
            mismatch_max=float(ranks.largest(self._largest)),
            chi2=whole.chi2,
            ess=whole.ess,
            clip_fraction=whole.clip_fraction,
            rejected=whole.rejected,
            entropy=entropy / count,
            explained_variance=_explained(*ranks.add(self._of_critic).tolist()),
            by_age={age: _statistics(row) for age, row in enumerate(rows) if row[0]},
        )


def _explained(count: float, returns: float, squares: float, errors: float) -> float | None:
    variance = squares / count - (returns / count) ** 2 if count else 0.0
    return 1.0 - errors / count / variance if variance > SMALLEST_VARIANCE else None


def _statistics(sums: Sequence[float]) -> AgeStatistics:
    count, _, k3, weight, square, cut, rejected, _ = sums
    return AgeStatistics(
        tokens=round(count),
        mismatch_k3=k3 / count,
        chi2=square / count - 1.0,
        ess=weight * weight / square / count if square > 0 else 0.0,
        clip_fraction=cut / count,
        rejected=rejected / count,
    )
