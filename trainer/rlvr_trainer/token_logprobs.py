"""Log-probs of chosen tokens and entropies, from logits in the memory of the logits, or from hidden states without ever having all logits.

For z = logits / temperature and a token y in row u: log p = z[u, y] − log Σ exp z[u], and H[u] = log Σ exp z[u] − Σ p·z[u].
The gradient by row u of Σ g·log p is Σ_{tokens of u} g·(onehot(y) − p) / temperature, that of h·H is −h·p·(log p + H) / temperature.

A softmax that keeps its output for the backward pass holds three arrays of rows x vocabulary; this one holds the logits alone and writes
their gradient over them. Rows are worked on in chunks that fit a cache. Everything is float32 even where the logits are bfloat16.

`score_states` makes logits of a chunk of rows at a time, once forward and again backward: one matrix product more, and memory that does
not grow with rows x vocabulary. 32,000 rows and a vocabulary of 150,000 are 19 GB of float32 logits, and as much for their gradient.

Not covered: second derivatives, and logits that somebody else still needs after the backward pass (autograd then says so).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES_CPU = 2 << 20
CHUNK_BYTES_GPU = 256 << 20
HEAD_CHUNK_BYTES_CPU = 128 << 20
HEAD_CHUNK_BYTES_GPU = 1 << 30
"""Logits that `score_states` has at a time, in float32: enough rows for a fast matrix product."""


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


def score_states(states: Tensor, head: Tensor, token_rows: Tensor, targets: Tensor, temperature: float) -> TokenScores:
    """As `score_tokens(states @ head.T, ...)`, in the memory of the states and a few chunks.

    Args:
        states: [U, H], last hidden states in the dtype of the matrix product.
        head: [vocabulary, H], floating point, of any dtype.
    """
    logprobs, entropies = _ScoreStates.apply(states, head, token_rows, targets, temperature)  # type: ignore[no-untyped-call]
    return TokenScores(logprobs, entropies)


class _ScoreTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        log_sums = torch.empty(len(logits), dtype=dtype, device=logits.device)
        entropies = torch.empty_like(log_sums)
        for part in _chunks(logits):
            log_sums[part], entropies[part] = _summarize(logits[part].to(dtype), temperature)
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
            of_entropy = None if by_entropy is None else by_entropy[part]
            _to_gradient(scaled, ctx.temperature, log_sums[part], entropies[part], by_token[part], of_entropy)
            if scaled is not piece:
                piece.copy_(scaled)
        if gradient is not None:
            logits.index_put_((rows, targets), (gradient / ctx.temperature).to(logits.dtype), accumulate=True)
        return logits, None, None, None


class _ScoreStates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, rows: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(states.dtype, torch.float32)
        log_sums = torch.empty(len(states), dtype=dtype, device=states.device)
        entropies, chosen = torch.empty_like(log_sums), torch.empty(len(rows), dtype=dtype, device=states.device)
        with torch.autocast(states.device.type, enabled=False):
            cast = head.to(states.dtype)
            for part in _head_chunks(states, head):
                logits = (states[part] @ cast.T).to(dtype)
                log_sums[part], entropies[part] = _summarize(logits, temperature)
                inside, places = _places(rows, part)
                chosen = torch.where(inside, logits[places, targets], chosen)
        ctx.save_for_backward(states, head, rows, targets, log_sums, entropies)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return chosen / temperature - log_sums[rows], entropies[rows]

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor | None, entropy_gradient: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if gradient is None and entropy_gradient is None:
            return None, None, None, None, None
        states, head, rows, targets, log_sums, entropies = ctx.saved_tensors
        by_token = _by_row(gradient, rows, log_sums) / ctx.temperature
        by_entropy = None if entropy_gradient is None else _by_row(entropy_gradient, rows, log_sums) / ctx.temperature
        by_choice = None if gradient is None else gradient / ctx.temperature
        of_states, of_head = torch.empty_like(states), torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        with torch.autocast(states.device.type, enabled=False):
            cast = head.to(states.dtype)
            for part in _head_chunks(states, head):
                piece = (states[part] @ cast.T).to(log_sums.dtype)
                of_entropy = None if by_entropy is None else by_entropy[part]
                _to_gradient(piece, ctx.temperature, log_sums[part], entropies[part], by_token[part], of_entropy)
                if by_choice is not None:
                    inside, places = _places(rows, part)
                    piece.index_put_((places, targets), torch.where(inside, by_choice, 0.0), accumulate=True)
                small = piece.to(states.dtype)
                of_states[part] = small @ cast
                if of_head is not None:
                    of_head += small.T @ states[part]
        return of_states, of_head, None, None, None


def _summarize(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log Σ exp and entropy of each row of logits / temperature."""
    scaled = logits / temperature if temperature != 1.0 else logits
    top = scaled.amax(1, keepdim=True)
    shifted = scaled - top
    weights = shifted.exp()
    sums = weights.sum(1)
    return sums.log() + top[:, 0], sums.log() - torch.linalg.vecdot(weights, shifted) / sums


def _to_gradient(
    logits: Tensor, temperature: float, log_sums: Tensor, entropies: Tensor, by_token: Tensor, by_entropy: Tensor | None
) -> None:
    """Writes over the logits what their gradient is but for the chosen tokens; the other arguments are [rows]."""
    if temperature != 1.0:
        logits.div_(temperature)
    logits.sub_(log_sums[:, None])
    if by_entropy is None:
        logits.exp_().mul_(-by_token[:, None])
        return
    chances = logits.exp()
    logits.add_(entropies[:, None]).mul_(by_entropy[:, None]).add_(by_token[:, None]).mul_(chances).neg_()


def _by_row(gradient: Tensor | None, rows: Tensor, like: Tensor) -> Tensor:
    """The sum over each row's tokens, in the shape of `like`."""
    sums = torch.zeros_like(like)
    return sums if gradient is None else sums.index_add_(0, rows, gradient)


def _places(rows: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Which tokens have their row in a part, and where: anywhere for the others. A list of them would have the host wait for the GPU."""
    return (rows >= part.start) & (rows < part.stop), (rows - part.start).clamp(0, part.stop - part.start - 1)


def head_chunk_bytes(device: torch.device) -> int:
    """Bytes of float32 logits that `score_states` has at a time there."""
    return HEAD_CHUNK_BYTES_CPU if device.type == "cpu" else HEAD_CHUNK_BYTES_GPU


def _head_chunks(states: Tensor, head: Tensor) -> list[slice]:
    size = max(1, head_chunk_bytes(states.device) // (4 * len(head)))
    return [slice(start, min(start + size, len(states))) for start in range(0, len(states), size)]


def _chunks(logits: Tensor) -> list[slice]:
    limit = CHUNK_BYTES_CPU if logits.device.type == "cpu" else CHUNK_BYTES_GPU
    size = max(1, limit // max(1, logits.shape[1] * 4))
    return [slice(start, start + size) for start in range(0, len(logits), size)]
