"""Adapters: what they add, what they train, and what leaves the policy."""

import math

import adapter_policy
import pytest
import torch
from torch import nn
from torch.nn.functional import log_softmax

from rlvr_api.spec import Lora, RLVRJobSpec
from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.learner import Learner
from rlvr_trainer.lora import add_adapters
from rlvr_trainer.packing import Branch, Tree, pack
from rlvr_trainer.policy import Policy, read_weights
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan

pytestmark = pytest.mark.usefixtures("one_thread")

TREES = [Tree(0, (5, 9, 13, 7), (Branch((21, 22, 23), (-1.0,) * 3, 1.0), Branch((31, 1), (-1.0,) * 2, -1.0)))]
SCALE = 32 / 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("lora") / "tiny"
    write_tiny_model(place)
    return place


def job(lora=True, seed=0, rlvr=None, **learner):
    return RLVRJobSpec.model_validate({
        "seed": seed,
        "model": {"uri": "file:///model", "maxModelLen": 128, **({"lora": {"rank": 4, "alpha": 32}} if lora else {})},
        "environments": [{"name": "sums", "arithmetic": {}}],
        "sampling": {"maxTokens": 8},
        "stages": [{"name": "climb", "rlvr": {"steps": 20, "optimizer": {"learningRate": 1e-2}, **(rlvr or {})}}],
        "learner": learner,
    })  # fmt: skip


def disturb(policy):
    """Adapters that are not zero."""
    adapter_policy.disturb(policy, torch.Generator().manual_seed(7), 0.05)


def logprobs(policy, weights=None):
    return policy.completion_logprobs(pack(TREES, 4), 1.0, weights).logprobs


def test_at_first_it_is_the_model_and_only_adapters_train(folder):
    policy, plain = Policy.load(folder, job()), Policy.load(folder, job(lora=False))
    assert torch.equal(logprobs(policy), logprobs(plain))
    assert {name.rpartition(".")[2] for name in policy.parameters()} == {"lora_a", "lora_b"}
    assert len(policy.parameters()) == 2 * 2 * 7  # two layers of q, k, v, o, gate, up, down
    assert policy.engine_named_tensors().keys() == plain.engine_named_tensors().keys()
    for name, tensor in plain.engine_named_tensors().items():
        assert torch.equal(policy.engine_named_tensors()[name], tensor)


def test_what_engines_get_is_the_model_with_its_adapters_worked_in(folder):
    policy, plain = Policy.load(folder, job()), Policy.load(folder, job(lora=False))
    disturb(policy)
    merged = policy.engine_named_tensors()
    torch.testing.assert_close(logprobs(policy), logprobs(plain, merged), rtol=0, atol=2e-5)
    assert (logprobs(policy) - logprobs(plain)).abs().max() > 0.05
    a, b = (policy.parameters()[f"model.layers.1.mlp.up_proj.lora_{which}"] for which in "ab")
    own = plain.parameters()["model.layers.1.mlp.up_proj.weight"]
    torch.testing.assert_close(merged["model.layers.1.mlp.up_proj.weight"], own + SCALE * b @ a)
    exact = plain.sequence_logprobs((5, 9), (21, 1), "float32")
    with torch.no_grad():
        for name, parameter in plain.parameters().items():
            parameter.copy_(merged[name])
    moved = plain.sequence_logprobs((5, 9), (21, 1), "float32")
    assert policy.sequence_logprobs((5, 9), (21, 1), "float32") == pytest.approx(moved, abs=1e-6)
    assert policy.sequence_logprobs((5, 9), (21, 1), "bfloat16") == pytest.approx(plain.sequence_logprobs((5, 9), (21, 1), "bfloat16"))
    assert exact != pytest.approx(moved, abs=1e-3)


@pytest.mark.parametrize("logits_bytes", [1 << 30, 0], ids=["all logits", "in chunks"])
def test_gradients_of_adapters_are_those_of_the_merged_weights_by_the_chain_rule(folder, monkeypatch, logits_bytes):
    """dA = s·Bᵀ·dW and dB = s·dW·Aᵀ, with dW of the plain model at W0 + s·B·A."""
    from transformers import AutoModelForCausalLM

    policy = Policy.load(folder, job())
    disturb(policy)
    monkeypatch.setattr("rlvr_trainer.policy.LOGITS_BYTES_CPU", logits_bytes)
    weights = torch.linspace(-1, 1, 5)
    (logprobs(policy) * weights).sum().backward()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model.load_state_dict(policy.engine_named_tensors(), strict=False)
    rows = []
    for branch in TREES[0].branches:
        ids = torch.tensor([[*TREES[0].prompt_ids, *branch.token_ids]])
        logs = log_softmax(model(input_ids=ids, use_cache=False).logits[0, len(TREES[0].prompt_ids) - 1 : -1], -1)
        rows.append(logs[range(len(branch.token_ids)), list(branch.token_ids)])
    (torch.cat(rows) * weights).sum().backward()
    found = policy.parameters()
    for name, parameter in model.named_parameters():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_a" in found:
            a, b = found[f"{layer}.lora_a"], found[f"{layer}.lora_b"]
            torch.testing.assert_close(a.grad, SCALE * b.detach().T @ parameter.grad, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(b.grad, SCALE * parameter.grad @ a.detach().T, rtol=1e-3, atol=1e-5)


def rollout(tokens, reward):
    verdict = Verdict(id="x", status=VerdictStatus.PASS if reward else VerdictStatus.FAIL, score=reward, verifier="v", verifier_version="1")
    return Rollout(tuple(tokens), (-4.3,) * len(tokens), (VersionSpan(0, 0, len(tokens)),), "stop", "", verdict)


GROUP = RolloutGroup(
    Admission(0, "sums", 0, 0), "0" * 16, (4, 9), "1 + 1", (rollout((20, 21, 1), 1.0), rollout((30, 1), 0.0)), "rollout-0", "", 1.0, 0.1
)


def make_learner(folder, reference=None, **rlvr):
    spec = job(rlvr=rlvr)
    policy = Policy.load(folder, spec)
    return Learner(policy, spec.stages[0].rlvr, spec, reference), policy


def test_a_learner_trains_adapters_and_leaves_the_model_alone(folder):
    learner, policy = make_learner(folder)
    before = policy.sequence_logprobs((4, 9), (20, 21, 1), "float32")
    for step in range(5):
        learner.step([GROUP], step, lambda version: 0)
    assert sum(policy.sequence_logprobs((4, 9), (20, 21, 1), "float32")) > sum(before) + 1.0
    base = {name.replace(".base.", "."): tensor for name, tensor in policy._model.named_parameters() if not tensor.requires_grad}
    for name, tensor in read_weights(folder).items():
        assert torch.equal(base[name], tensor)


def test_a_checkpoint_holds_adapters_alone_and_goes_on_with_the_same_bits(folder):
    straight, policy = make_learner(folder)
    for step in range(2):
        straight.step([GROUP], step, lambda version: 0)
    saved = {name: tensor.clone() for name, tensor in straight.tensors().items()}
    whole = sum(tensor.numel() for tensor in read_weights(folder).values())
    assert all(".lora_" in name for name in saved if name.startswith(("model/", "optimizer/")))
    assert sum(tensor.numel() for name, tensor in saved.items() if name.startswith("model/")) < whole / 4
    resumed, other = make_learner(folder)
    resumed.load(saved, straight.scalars())
    for learner in (straight, resumed):
        learner.step([GROUP], 2, lambda version: 0)
    assert all(torch.equal(tensor, other.engine_named_tensors()[name]) for name, tensor in policy.engine_named_tensors().items())
    with pytest.raises(ValueError, match=r"with the same model\.lora"):
        Policy.load(folder, job(lora=False)).load_tensors(saved)
    with pytest.raises(ValueError, match=r"not those of spec\.model\.uri"):
        policy.load_tensors(Policy.load(folder, job(lora=False)).tensors())


def test_the_seed_decides_how_adapters_begin(folder):
    one, same, other = (Policy.load(folder, job(seed=seed)).parameters() for seed in (3, 3, 4))
    name = "model.layers.0.self_attn.q_proj.lora_a"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert 0 < one[name].abs().max() <= 1 / math.sqrt(64)


@pytest.mark.parametrize("of", ["the model's folder", "another stage's adapters"])
def test_a_reference_is_the_model_without_adapters_or_with_others(folder, of):
    learner, policy = make_learner(folder)
    if of == "the model's folder":
        reference = read_weights(folder)
    else:
        learner.step([GROUP], 0, lambda version: 0)
        reference = {name: tensor.detach().clone() for name, tensor in policy.parameters().items()}
    held, other = make_learner(folder, reference, referenceKl={"coefficient": 1e-3})
    other.load_tensors(policy.tensors())
    first = held.step([GROUP], 0, lambda version: 0).reference_kl
    assert first == pytest.approx(0.0, abs=1e-9)
    assert held.step([GROUP], 1, lambda version: 0).reference_kl > 1e-4


def test_a_model_without_linear_layers_is_refused():
    model = nn.Sequential(nn.Embedding(4, 4))
    with pytest.raises(ValueError, match=r"model\.lora has nothing to add to"):
        add_adapters(model, model[0], Lora(), 0)


def test_gradient_checkpointing_trains_the_same_adapters(folder):
    found = []
    for learner in ({}, {"gradientCheckpointing": True}):
        policy = Policy.load(folder, job(**learner))
        disturb(policy)
        logprobs(policy).sum().backward()
        found.append({name: parameter.grad for name, parameter in policy.parameters().items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-5, atol=1e-8)


def test_bfloat16_compute_is_near(folder):
    spec = job().model_copy(update={"precision": job().precision.model_copy(update={"learner_compute": "bfloat16"})})
    exact, rough = Policy.load(folder, job()), Policy.load(folder, spec)
    disturb(exact)
    disturb(rough)
    assert 0 < (logprobs(exact) - logprobs(rough)).abs().max() < 0.1
    logprobs(rough).sum().backward()
    assert {parameter.grad.dtype for parameter in rough.parameters().values()} == {torch.float32}
