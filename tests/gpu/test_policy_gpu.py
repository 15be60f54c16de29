"""The policy on a GPU beside the same on the CPU, and the memory that the loss takes there."""

import pytest
import torch

from rlvr_api.spec import RLVRJobSpec
from rlvr_trainer.packing import Branch, Tree, pack
from rlvr_trainer.policy import Policy
from rlvr_trainer.token_logprobs import head_chunk_bytes, score_states

SOURCE = torch.Generator().manual_seed(0)
GIB = 1 << 30


def random_ids(count):
    return tuple(torch.randint(4, 60, (count,), generator=SOURCE).tolist())


TREES = [
    Tree(number, random_ids(5 + 7 * number), tuple(Branch(random_ids(length), (-1.0,) * length, 1.0) for length in lengths))
    for number, lengths in enumerate(((3, 8, 1), (12, 2), (30, 30, 30, 30)))
]


def load(folder, gpus, compute="float32", **learner):
    spec = RLVRJobSpec.model_validate({
        "model": {"uri": "file:///model", "maxModelLen": 256},
        "environments": [{"name": "sums", "arithmetic": {}}],
        "sampling": {"maxTokens": 64},
        "stages": [{"name": "climb", "rlvr": {"steps": 1}}],
        "precision": {"learnerCompute": compute},
        "learner": {"gpus": gpus, **learner},
    })  # fmt: skip
    return Policy.load(folder, spec)


def scores_and_gradients(policy, block_tokens, temperature):
    batch = pack(TREES, block_tokens).to(policy.device)
    scores = policy.completion_logprobs(batch, temperature)
    weights = torch.linspace(-1.0, 1.5, len(batch.targets), device=policy.device)
    (scores.logprobs * weights).sum().add(scores.entropies.sum()).backward()
    gradients = {name: parameter.grad.cpu() for name, parameter in policy.parameters().items()}
    return scores.logprobs.detach().cpu(), scores.entropies.detach().cpu(), gradients


@pytest.mark.parametrize("block_tokens", [16, 1024])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_float32_is_that_of_the_cpu(tiny, block_tokens, temperature, checkpointing):
    there, here = (load(tiny, gpus, gradientCheckpointing=checkpointing) for gpus in (1, 0))
    found, wanted = (scores_and_gradients(policy, block_tokens, temperature) for policy in (there, here))
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=1e-5)
    for name, gradient in wanted[2].items():
        torch.testing.assert_close(found[2][name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()), msg=name)


def test_bfloat16_compute_is_close_and_its_master_weights_stay_float32(tiny):
    there, here = load(tiny, 1, "bfloat16"), load(tiny, 0)
    found, wanted = scores_and_gradients(there, 1024, 1.0), scores_and_gradients(here, 1024, 1.0)
    assert {parameter.dtype for parameter in there.parameters().values()} == {torch.float32}
    assert float((found[0] - wanted[0]).abs().max()) < 0.05
    for name, gradient in wanted[2].items():
        assert torch.nn.functional.cosine_similarity(found[2][name].flatten(), gradient.flatten(), dim=0) > 0.99, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_probe_computes_as_an_engine_of_that_dtype(tiny, dtype):
    there, here = load(tiny, 1), load(tiny, 0)
    branch = TREES[2].branches[0].token_ids
    found, wanted = (torch.tensor(policy.sequence_logprobs(TREES[2].prompt_ids, branch, dtype)) for policy in (there, here))
    assert float((found - wanted).abs().max()) < (1e-5 if dtype == "float32" else 0.1)


@pytest.mark.parametrize("rows", [2_000, 32_000])
def test_the_loss_of_32k_rows_and_150k_tokens_takes_the_memory_of_its_chunks(rows):
    """All logits would be 18 GiB in float32, and their gradient as much."""
    width, vocabulary = 896, 151_936
    states = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    head = torch.randn(vocabulary, width, device="cuda", requires_grad=True)
    targets = torch.randint(vocabulary, (rows,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    scores = score_states(states, head, torch.arange(rows, device="cuda"), targets, 1.0)
    scores.logprobs.mean().backward()
    gradients = states.grad.nbytes + head.grad.nbytes
    cast_head = head.nbytes // 2
    chunks = torch.cuda.max_memory_allocated() - before - gradients - cast_head
    # A chunk in float32 with its shifted and exponential copies, and its rows of the product in bfloat16.
    assert chunks < 5 * head_chunk_bytes(states.device) + head.nbytes + 64 * rows, f"{chunks / GIB:.2f} GiB"
