"""Policy losses, token by token: pure functions of log-probs, written as the papers write them.

Each returns the loss of every token, to be summed and divided by a global count elsewhere, and which tokens its trust region cut off.
All arguments are [N] floating-point tensors; only `logprobs` carries a gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to ± this before `exp`: beyond it, the ratio has no meaning but can still overflow."""


class TokenLoss(NamedTuple):
    """Of N tokens."""

    loss: Tensor
    """[N], differentiable."""
    cut: Tensor
    """[N], bool: the token's policy gradient is zero because it left the trust region."""


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float
) -> TokenLoss:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7) with separate bounds (arXiv 2503.14476, eq. 10) and a floor for negative
    advantages (arXiv 1912.09729, eq. 5).

    r = exp(clamp(lp − lp_old, ±20));  L = max(−A·r, −A·clip(r, 1 − ε_low, 1 + ε_high));  where A < 0: L = min(L, −A·c)
    """
    ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    free, bounded = -advantages * ratio, -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = torch.maximum(free, bounded)
    ceiling = torch.where(advantages < 0, -advantages * dual_clip, torch.inf)
    cut = (bounded > free) | (loss > ceiling)
    return TokenLoss(torch.minimum(loss, ceiling), cut.detach())


def total_variation_loss(
    logprobs: Tensor, sampler_logprobs: Tensor, advantages: Tensor, threshold: float, kl_coefficient: float
) -> TokenLoss:
    """Policy gradient on the ratio to the sampler, masked where the token's probability has moved too far (arXiv 2602.04879), and a
    squared log-ratio on every token.

    ρ = exp(lp − lp_inf);  Δ = exp(lp) − exp(lp_inf);  cut where Δ > t and A > 0, or Δ < −t and A ≤ 0
    L = −[not cut]·A·ρ + k·(lp − lp_inf)²

    The gradient flows through ρ, which is not clamped: a token that overflows it is refused with its step.
    """
    log_ratio = logprobs - sampler_logprobs
    moved = (logprobs.exp() - sampler_logprobs.exp()).detach()
    cut = torch.where(advantages > 0, moved > threshold, moved < -threshold)
    # The inner `where` keeps a cut token's overflow out of the gradient, where it would be 0 · ∞.
    ratio = torch.where(cut, 0.0, torch.where(cut, 0.0, log_ratio).exp())
    return TokenLoss(kl_coefficient * log_ratio.square() - advantages * ratio, cut)
