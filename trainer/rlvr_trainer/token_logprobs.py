"""Log-probs of chosen tokens and entropies from logits, in one pass and in the memory of the logits.

For z = logits / temperature and a token y in row u: log p = z[u, y] − log Σ exp z[u], and H[u] = log Σ exp z[u] − Σ p·z[u].
The gradient of Σ g·log p by row u is Σ_{tokens of u} g·(onehot(y) − p) / temperature.

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
    """[N], entropy in nats of the distribution that each token was drawn from; detached."""


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
        ctx.save_for_backward(logits, rows, targets, log_sums)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        chosen_entropies = entropies[rows]
        ctx.mark_non_differentiable(chosen_entropies)
        return logits[rows, targets].to(dtype) / temperature - log_sums[rows], chosen_entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if gradient is None:
            return None, None, None, None
        logits, rows, targets, log_sums = ctx.saved_tensors
        gradient = gradient / ctx.temperature
        row_gradients = torch.zeros_like(log_sums).index_add_(0, rows, gradient)
        for part in _chunks(logits):
            piece = logits[part]
            scaled = piece.to(log_sums.dtype)  # the same memory when the dtype is
            if ctx.temperature != 1.0:
                scaled.div_(ctx.temperature)
            scaled.sub_(log_sums[part, None]).exp_().mul_(-row_gradients[part, None])
            if scaled is not piece:
                piece.copy_(scaled)
        logits.index_put_((rows, targets), gradient.to(logits.dtype), accumulate=True)
        return logits, None, None, None


def _chunks(logits: Tensor) -> list[slice]:
    limit = CHUNK_BYTES_CPU if logits.device.type == "cpu" else CHUNK_BYTES_GPU
    size = max(1, limit // max(1, logits.shape[1] * 4))
    return [slice(start, start + size) for start in range(0, len(logits), size)]
