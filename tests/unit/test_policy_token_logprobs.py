import pytest
import torch
from torch.nn.functional import log_softmax

from rlvr_trainer import token_logprobs
from rlvr_trainer.token_logprobs import score_tokens

ROWS = torch.tensor([0, 0, 1, 3, 3, 3])
TARGETS = torch.tensor([2, 5, 0, 6, 6, 1])  # a row may serve several tokens, and the same token twice


def logits(dtype=torch.float64, rows=4, vocabulary=7, seed=0):
    return (torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3).to(dtype)


def reference(values, temperature):
    logs = log_softmax(values / temperature, -1)
    return logs[ROWS, TARGETS], -(logs.exp() * logs).sum(-1)[ROWS]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
@pytest.mark.parametrize("chunk_bytes", [1, 60, 1 << 20], ids=["a row a chunk", "two rows", "one chunk"])
def test_logprobs_entropies_and_gradient_are_those_of_log_softmax(temperature, chunk_bytes, monkeypatch):
    monkeypatch.setattr(token_logprobs, "CHUNK_BYTES_CPU", chunk_bytes)
    leaf, other = logits().requires_grad_(), logits().requires_grad_()
    found, wanted = score_tokens(leaf * 1.0, ROWS, TARGETS, temperature), reference(other, temperature)
    torch.testing.assert_close(found.logprobs, wanted[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.entropies, wanted[1], rtol=1e-13, atol=1e-13)
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)
    (found.logprobs * weights).sum().backward()
    (wanted[0] * weights).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["entropy alone", "both"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20], ids=["a row a chunk", "one chunk"])
def test_the_gradient_of_entropies_is_that_of_log_softmax(share, temperature, chunk_bytes, monkeypatch):
    monkeypatch.setattr(token_logprobs, "CHUNK_BYTES_CPU", chunk_bytes)
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)

    def objective(logprobs, entropies):
        total = (entropies * weights.flip(0)).sum()
        return total + (logprobs * weights).sum() if share else total

    leaf, other = logits().requires_grad_(), logits().requires_grad_()
    objective(*score_tokens(leaf * 1.0, ROWS, TARGETS, temperature)).backward()
    objective(*reference(other, temperature)).backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-12, atol=1e-13)
    assert leaf.grad.abs().max() > 0.1


def test_a_certain_distribution_has_no_entropy_gradient():
    values = torch.tensor([[3e4, 0.0, -3e4]], requires_grad=True)
    score_tokens(values * 1.0, torch.tensor([0]), torch.tensor([0]), 1.0).entropies.sum().backward()
    assert values.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_the_gradient_is_that_of_finite_differences():
    values, weights, step = logits(), torch.arange(1.0, 7.0, dtype=torch.float64), 1e-6

    def objective(flat):
        return float((score_tokens(flat.reshape(values.shape), ROWS, TARGETS, 0.8).logprobs * weights).sum())

    leaf = values.clone().requires_grad_()
    (score_tokens(leaf * 1.0, ROWS, TARGETS, 0.8).logprobs * weights).sum().backward()
    directions = torch.eye(values.numel(), dtype=torch.float64) * step
    flat = values.flatten()
    wanted = torch.tensor([(objective(flat + one) - objective(flat - one)) / (2 * step) for one in directions], dtype=torch.float64)
    torch.testing.assert_close(leaf.grad.flatten(), wanted, rtol=1e-6, atol=1e-7)


def test_bfloat16_logits_are_scored_in_float32():
    values = logits(torch.bfloat16)
    found, wanted = score_tokens(values, ROWS, TARGETS, 1.0), reference(values.double(), 1.0)
    assert found.logprobs.dtype == torch.float32
    torch.testing.assert_close(found.logprobs.double(), wanted[0], rtol=1e-6, atol=1e-6)
    leaf = values.clone().requires_grad_()
    score_tokens(leaf * 1.0, ROWS, TARGETS, 1.0).logprobs.sum().backward()
    other = values.double().requires_grad_()
    reference(other, 1.0)[0].sum().backward()
    assert leaf.grad.dtype == torch.bfloat16
    torch.testing.assert_close(leaf.grad.double(), other.grad, rtol=2e-2, atol=1e-2)


def test_large_logits_do_not_overflow():
    values = torch.tensor([[3e4, 0.0, -3e4]], requires_grad=True)
    found = score_tokens(values * 1.0, torch.tensor([0, 0]), torch.tensor([0, 2]), 1.0)
    found.logprobs.sum().backward()
    assert found.logprobs.tolist() == [0.0, -6e4]
    assert found.entropies.tolist() == [0.0, 0.0]
    assert values.grad.tolist() == [[-1.0, 0.0, 1.0]]


def test_the_logits_memory_is_the_gradients_and_a_second_backward_says_so():
    leaf = logits(torch.float32).requires_grad_()
    inner = leaf * 1.0
    inner.retain_grad()
    loss = score_tokens(inner, ROWS, TARGETS, 1.0).logprobs.sum()
    address = inner.data_ptr()
    loss.backward(retain_graph=True)
    assert inner.data_ptr() == address
    torch.testing.assert_close(inner.detach(), leaf.grad)  # the logits are gone
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
