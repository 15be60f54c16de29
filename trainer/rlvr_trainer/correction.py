"""Off-policy correction: weights for the difference between the sampler and the policy at the start of the update.

A completion was drawn from the sampler, which may be older than the policy and computes with other kernels. Its tokens' losses are
weighted as if the policy had drawn them. Algorithms whose ratio is already taken to the sampler must not be weighted again; the spec
refuses that.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rlvr_api.algorithms import Correction
from rlvr_trainer.losses import LOG_RATIO_LIMIT


def importance_weights(old_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
    """exp(clamp(lp_old − lp_inf, ±20)), detached; the shape and dtype of the arguments."""
    return (old_logprobs - sampler_logprobs).detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def correction_weights(correction: Correction, old_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
    """The weight of each token's loss, detached; both arguments and the result are [N]."""
    return CORRECTIONS[correction.kind](correction, old_logprobs, sampler_logprobs)


def _token_truncated(correction: Correction, old_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
    """min(π_old / π_sampler, cap) for each token (arXiv 2505.24298)."""
    assert correction.token_truncated is not None
    return importance_weights(old_logprobs, sampler_logprobs).clamp(max=correction.token_truncated.cap)


def _none(correction: Correction, old_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
    return torch.ones_like(old_logprobs).detach()


CORRECTIONS: Mapping[str, Callable[[Correction, Tensor, Tensor], Tensor]] = {"token_truncated": _token_truncated, "none": _none}
"""By the member of `rlvr_api.algorithms.Correction` that is set."""
