"""Log-probs of chosen tokens and entropies from logits, in one pass and in the memory of the logits.

For z = logits / temperature and a token y in row u: log p = z[u, y] − log Σ exp z[u], and H[u] = log Σ exp z[u] − Σ p·z[u].
The gradient by row u of Σ g·log p is Σ_{tokens of u} g·(onehot(y) − p) / temperature, that of h·H is −h·p·(log p + H) / temperature.

A softmax that keeps its output for the backward pass holds three arrays of rows x vocabulary; this one holds the logits alone and writes
their gradient over them. Rows are worked on in chunks that fit a cache. Everything is float32 even where the logits are bfloat16.

Not covered: second derivatives, and logits that somebody else still needs after the backward pass (autograd then says so).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES_CPU = 2 << 20
CHUNK_BYTES_GPU = 256 << 20


class TokenScores(NamedTuple):
    """Of N tokens."""

    logprobs: Tensor
    """[N], float32 (float64 from float64 logits), differentiable."""
    entropies: Tensor
    """[N], entropy in nats of the distribution that each token was drawn from, in the same dtype; differentiable."""


def score_tokens(logits: Tensor, token_rows: Tensor, targets: Tensor, temperature: float) -> TokenScores:
    """Log-probs of `targets` and the entropies behind them.

    Args:
        logits: [U, vocabulary], floating point; destroyed by the backward pass.
        token_rows: [N], int64, the row of each token; a row may serve several tokens.
        targets: [N], int64.
        temperature: divides the logits.
    """
    logprobs, entropies = _ScoreTokens.apply(logits, token_rows, targets, temperature)  # type: ignore[no-untyped-call]
    return TokenScores(logprobs, entropies)


class _ScoreTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        log_sums = torch.empty(len(logits), dtype=dtype, device=logits.device)
        entropies = torch.empty_like(log_sums)
        for part in _chunks(logits):
            scaled = logits[part].to(dtype) / temperature if temperature != 1.0 else logits[part].to(dtype)
            top = scaled.amax(1, keepdim=True)
            shifted = scaled - top
            weights = shifted.exp()
            sums = weights.sum(1)
            log_sums[part] = sums.log() + top[:, 0]
            entropies[part] = sums.log() - torch.linalg.vecdot(weights, shifted) / sums
        ctx.save_for_backward(logits, rows, targets, log_sums, entropies)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logits[rows, targets].to(dtype) / temperature - log_sums[rows], entropies[rows]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, entropy_gradient: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if gradient is None and entropy_gradient is None:
            return None, None, None, None
        logits, rows, targets, log_sums, entropies = ctx.saved_tensors
        by_token = _by_row(gradient, rows, log_sums) / ctx.temperature
        by_entropy = None if entropy_gradient is None else _by_row(entropy_gradient, rows, log_sums) / ctx.temperature
        for part in _chunks(logits):
            piece = logits[part]
            scaled = piece.to(log_sums.dtype)  # the same memory when the dtype is
            if ctx.temperature != 1.0:
                scaled.div_(ctx.temperature)
            scaled.sub_(log_sums[part, None])
            if by_entropy is None:
                scaled.exp_().mul_(-by_token[part, None])
            else:
                chances = scaled.exp()
                scaled.add_(entropies[part, None]).mul_(by_entropy[part, None]).add_(by_token[part, None]).mul_(chances).neg_()
            if scaled is not piece:
                piece.copy_(scaled)
        if gradient is not None:
            logits.index_put_((rows, targets), (gradient / ctx.temperature).to(logits.dtype), accumulate=True)
        return logits, None, None, None


def _by_row(gradient: Tensor | None, rows: Tensor, like: Tensor) -> Tensor:
    """The sum over each row's tokens, in the shape of `like`."""
    sums = torch.zeros_like(like)
    return sums if gradient is None else sums.index_add_(0, rows, gradient)


def _chunks(logits: Tensor) -> list[slice]:
    limit = CHUNK_BYTES_CPU if logits.device.type == "cpu" else CHUNK_BYTES_GPU
    size = max(1, limit // max(1, logits.shape[1] * 4))
    return [slice(start, start + size) for start in range(0, len(logits), size)]
