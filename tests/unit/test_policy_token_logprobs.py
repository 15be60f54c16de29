import pytest
import torch
from torch.nn.functional import log_softmax
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlvr_trainer import token_logprobs
from rlvr_trainer.token_logprobs import score_states, score_tokens

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


def states_and_head(dtype=torch.float64, rows=4, vocabulary=7, size=5):
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(shape, size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in (rows, vocabulary))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_bytes", [1, 2 * 4 * 7, 1 << 20], ids=["a row a chunk", "two rows", "one chunk"])
def test_scores_from_states_are_those_from_all_logits_and_so_are_both_gradients(temperature, chunk_bytes, monkeypatch):
    monkeypatch.setattr(token_logprobs, "HEAD_CHUNK_BYTES_CPU", chunk_bytes)
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)

    def objective(logprobs, entropies):
        return (logprobs * weights).sum() + (entropies * weights.flip(0)).sum()

    states, head = states_and_head()
    other_states, other_head = states_and_head()
    found, wanted = score_states(states, head, ROWS, TARGETS, temperature), reference(other_states @ other_head.T, temperature)
    torch.testing.assert_close(tuple(found), wanted, rtol=1e-12, atol=1e-13)
    objective(*found).backward()
    objective(*wanted).backward()
    torch.testing.assert_close(states.grad, other_states.grad, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(head.grad, other_head.grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("of", [0, 1], ids=["log-probs alone", "entropies alone"])
def test_one_of_both_may_have_no_gradient(of):
    states, head = states_and_head()
    score_states(states, head, ROWS, TARGETS, 1.0)[of].sum().backward()
    other_states, other_head = states_and_head()
    reference(other_states @ other_head.T, 1.0)[of].sum().backward()
    torch.testing.assert_close(states.grad, other_states.grad, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(head.grad, other_head.grad, rtol=1e-12, atol=1e-13)


def test_bfloat16_states_with_a_float32_head_keep_float32_sums():
    states, head = states_and_head(torch.bfloat16)
    head = head.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = score_states(states, head, ROWS, TARGETS, 1.0)
    found.logprobs.sum().backward()
    assert (found.logprobs.dtype, states.grad.dtype, head.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    torch.testing.assert_close(found.logprobs.double(), reference(states.double() @ head.double().T, 1.0)[0], rtol=2e-2, atol=2e-2)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that an operation gave, views aside."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return result


def test_no_tensor_grows_with_rows_times_vocabulary(monkeypatch):
    rows, vocabulary, size = 512, 1000, 8
    monkeypatch.setattr(token_logprobs, "HEAD_CHUNK_BYTES_CPU", 4 * vocabulary * 16)
    states, head = states_and_head(torch.float32, rows, vocabulary, size)
    places, targets = torch.arange(rows), torch.arange(rows) % vocabulary
    with LargestTensor() as seen:
        torch.autograd.backward(score_states(states, head, places, targets, 0.9).logprobs.sum())
    assert seen.elements <= 16 * vocabulary
    with LargestTensor() as seen:
        torch.autograd.backward(score_tokens(states @ head.T, places, targets, 0.9).logprobs.sum())
    assert seen.elements == rows * vocabulary


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
