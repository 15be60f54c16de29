"""Off-policy correction: what is done about the difference between the sampler and the policy at the start of the step.

    log-probs of a micro-batch -> correction (a weight for each token) x rejection (0 for each token of a completion) -> weights

A completion was drawn from the sampler, which may be older than the policy and computes with other kernels. Its tokens' losses are
weighted as if the policy had drawn them. Algorithms whose ratio is already taken to the sampler must not be weighted again, and the spec
refuses that; completions may be rejected with any algorithm. Everything is detached.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rlvr_api.algorithms import Correction, Rejection
from rlvr_api.off_policy import OffPolicy
from rlvr_trainer.losses import LOG_RATIO_LIMIT, sequence_means, sequence_sums


def importance_weights(old_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
    """exp(clamp(lp_old − lp_inf, ±20)), detached; the shape and dtype of the arguments."""
    return _bounded_exp((old_logprobs - sampler_logprobs).detach())


def off_policy_weights(
    off_policy: OffPolicy, logprobs: Tensor, old_logprobs: Tensor, sampler_logprobs: Tensor, advantages: Tensor, sequences: Tensor
) -> Tensor:
    """The weight of each token's loss, [N] as all arguments; 0 drops the token.

    Args:
        logprobs: under the weights that are trained.
        old_logprobs: under the policy at the start of the step.
        sequences: number of each token's completion, int64.
    """
    correction = off_policy.correction
    weights = CORRECTIONS[correction.kind](correction, (old_logprobs - sampler_logprobs).detach(), sequences)
    for kept in _kept(off_policy.rejection, logprobs.detach(), old_logprobs.detach(), sampler_logprobs, advantages, sequences):
        weights = torch.where(kept, weights, 0.0)
    return weights


def _token_truncated(correction: Correction, log_ratio: Tensor, sequences: Tensor) -> Tensor:
    """min(π_old / π_sampler, cap) for each token (arXiv 2505.24298)."""
    assert correction.token_truncated is not None
    return _bounded_exp(log_ratio).clamp(max=correction.token_truncated.cap)


def _token_masked(correction: Correction, log_ratio: Tensor, sequences: Tensor) -> Tensor:
    """π_old / π_sampler within the bounds, else 0 (IcePop, arXiv 2510.18855)."""
    assert correction.token_masked is not None
    return _within(_bounded_exp(log_ratio), correction.token_masked.low, correction.token_masked.high)


def _sequence_truncated(correction: Correction, log_ratio: Tensor, sequences: Tensor) -> Tensor:
    """min(Π_t π_old / π_sampler, cap) for each completion."""
    assert correction.sequence_truncated is not None
    return _bounded_exp(sequence_sums(log_ratio, sequences)).clamp(max=correction.sequence_truncated.cap)


def _sequence_masked(correction: Correction, log_ratio: Tensor, sequences: Tensor) -> Tensor:
    """Π_t π_old / π_sampler within the bounds, else 0, for each completion."""
    assert correction.sequence_masked is not None
    return _within(_bounded_exp(sequence_sums(log_ratio, sequences)), correction.sequence_masked.low, correction.sequence_masked.high)


def _none(correction: Correction, log_ratio: Tensor, sequences: Tensor) -> Tensor:
    return torch.ones_like(log_ratio)


CORRECTIONS: Mapping[str, Callable[[Correction, Tensor, Tensor], Tensor]] = {
    "token_truncated": _token_truncated,
    "token_masked": _token_masked,
    "sequence_truncated": _sequence_truncated,
    "sequence_masked": _sequence_masked,
    "none": _none,
}
"""By the member of `rlvr_api.algorithms.Correction` that is set: from it, lp_old − lp_inf and completions, the weights."""


def _kept(
    rejection: Rejection, logprobs: Tensor, old_logprobs: Tensor, sampler_logprobs: Tensor, advantages: Tensor, sequences: Tensor
) -> list[Tensor]:
    """For each rule that is set, which tokens belong to completions that it keeps; [N], bool."""
    log_ratio = old_logprobs - sampler_logprobs
    kept = []
    if rejection.geometric is not None:
        mean = _bounded_exp(sequence_means(log_ratio, sequences))
        kept.append((mean >= rejection.geometric.low) & (mean <= rejection.geometric.high))
    if rejection.veto_below is not None:
        vetoed = (_bounded_exp(log_ratio) < rejection.veto_below).to(log_ratio.dtype)
        kept.append(sequence_sums(vetoed, sequences) == 0)
    if rejection.opsm is not None:
        distance = sequence_means(sampler_logprobs - logprobs, sequences)
        kept.append((advantages >= 0) | (distance <= rejection.opsm.threshold))
    return kept


def _bounded_exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def _within(ratio: Tensor, low: float, high: float) -> Tensor:
    return torch.where((ratio >= low) & (ratio <= high), ratio, 0.0)
