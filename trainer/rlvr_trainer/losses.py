"""Policy losses, token by token: pure functions of log-probs, written as the papers write them.

Each returns the loss of every token, to be summed and divided by a global count elsewhere, and which tokens its trust region bounded.
All arguments are [N] floating-point tensors unless they are said to be numbers; only `logprobs` carries a gradient. `sequences` is [N],
int64: the number of each token's completion within the micro-batch.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to ± this before `exp`: beyond it, the ratio has no meaning but can still overflow."""


class TokenLoss(NamedTuple):
    """Of N tokens."""

    loss: Tensor
    """[N], differentiable."""
    cut: Tensor
    """[N], bool: the trust region acts on the token: its policy gradient is zero, or its ratio is capped."""


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float = math.inf
) -> TokenLoss:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7) with separate bounds (arXiv 2503.14476, eq. 10) and a floor for negative
    advantages (arXiv 1912.09729, eq. 5).

    r = exp(clamp(lp − lp_old, ±20));  L = max(−A·r, −A·clip(r, 1 − ε_low, 1 + ε_high));  where A < 0: L = min(L, −A·c)
    """
    loss = _clip(_ratio(logprobs, old_logprobs), advantages, clip_low, clip_high)
    ceiling = torch.where(advantages < 0, -advantages * dual_clip, torch.inf)
    return TokenLoss(torch.minimum(loss.loss, ceiling), loss.cut | (loss.loss > ceiling).detach())


def sequence_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, sequences: Tensor, clip_low: float, clip_high: float
) -> TokenLoss:
    """GSPO's clipped surrogate in its token form (arXiv 2507.18071, eq. 13 to 15), so that weights and masks can be a token's own.

    s_i = exp(mean_t(lp − lp_old));  s_it = sg(s_i)·exp(lp − sg(lp));  L = max(−A·s_it, −A·clip(s_it, 1 − ε_low, 1 + ε_high))
    """
    log_ratio = (logprobs - old_logprobs).detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = sequence_means(log_ratio, sequences).exp() * (logprobs - logprobs.detach()).exp()
    return _clip(ratio, advantages, clip_low, clip_high)


def capped_policy_gradient(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, max_ratio: float) -> TokenLoss:
    """CISPO (arXiv 2506.13585, eq. 4 and 5, without a lower bound as there): L = −sg(min(r, max_ratio))·A·lp."""
    ratio = _ratio(logprobs, old_logprobs).detach()
    return TokenLoss(-ratio.clamp(max=max_ratio) * advantages * logprobs, ratio > max_ratio)


def soft_gate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, temperature_positive: float, temperature_negative: float
) -> TokenLoss:
    """SAPO (arXiv 2511.20347): L = −A·(4/τ)·σ(τ·(r − 1)), with τ by the sign of A; its slope is 1 at r = 1. Nothing is cut."""
    temperature = torch.where(advantages > 0, temperature_positive, temperature_negative).to(logprobs.dtype)
    gate = torch.sigmoid(temperature * (_ratio(logprobs, old_logprobs) - 1.0)) * 4.0 / temperature
    return TokenLoss(-advantages * gate, torch.zeros_like(advantages, dtype=torch.bool))


def policy_gradient(logprobs: Tensor, advantages: Tensor) -> TokenLoss:
    """REINFORCE: L = −A·lp. Nothing is cut."""
    return TokenLoss(-advantages * logprobs, torch.zeros_like(advantages, dtype=torch.bool))


def kl_penalty(logprobs: Tensor, reference_logprobs: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """KL(π ‖ π_ref) at tokens of π, [N]: the value of the estimator (joschu.net/blog/kl-approx.html), and always the gradient of k2.

    d = lp − lp_ref;  k1 = d,  k2 = d²/2,  k3 = exp(−d) − 1 + d, with d within ± 20 where it is exponentiated

    E_π[d·∇lp] = ∇KL(π ‖ π_ref), and d·∇lp is k2's gradient. Differentiated as they stand, k1 would give 0 on average and k3 the gradient of
    KL(π_ref ‖ π), the other direction (arXiv 2506.09477); with the score function's weight exp(lp − sg(lp)), k3 gives d·∇lp as well.
    """
    difference = logprobs - reference_logprobs
    k2 = difference.square() / 2
    if estimator == "k2":
        return k2
    bounded = difference.detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    value = difference.detach() if estimator == "k1" else torch.expm1(-bounded) + bounded
    return value + (k2 - k2.detach())


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """PPO's value loss, [N]: ½·max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²), so that one step moves V by about ε at most."""
    bounded = values.clamp(old_values - clip, old_values + clip)
    return torch.maximum((values - returns).square(), (bounded - returns).square()) / 2


def sequence_means(values: Tensor, sequences: Tensor) -> Tensor:
    """The mean over each token's completion of `values`, [N]."""
    return sequence_sums(values, sequences) / sequence_lengths(values, sequences)


def sequence_sums(values: Tensor, sequences: Tensor) -> Tensor:
    """The sum over each token's completion of `values`, [N]."""
    return values.new_zeros(len(values)).index_add(0, sequences, values)[sequences]


def sequence_lengths(values: Tensor, sequences: Tensor) -> Tensor:
    """Tokens of each token's completion, [N], in the dtype of `values`."""
    return sequence_sums(torch.ones_like(values), sequences)


def _ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    return (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def _clip(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> TokenLoss:
    free, bounded = -advantages * ratio, -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return TokenLoss(torch.maximum(free, bounded), (bounded > free).detach())


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
