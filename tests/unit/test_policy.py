import json
import shutil

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoConfig, AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from rlvr_api.spec import RLVRJobSpec
from rlvr_trainer import tree_attention
from rlvr_trainer.packing import Branch, Tree, pack
from rlvr_trainer.policy import Policy, read_weights
from rlvr_trainer.pretrained import write_tiny_model

BATCH = [
    Tree(0, (5, 9, 13, 7), tuple(Branch(ids, (-1.0,) * len(ids), 1.0) for ids in ((21, 22, 23, 24), (31, 1), (1,), (41, 42, 43, 44, 45)))),
    Tree(1, (6, 8), tuple(Branch(ids, (-1.0,) * len(ids), -1.0) for ids in ((51, 1), (33, 34, 35)))),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("policy") / "tiny"
    write_tiny_model(place)
    return place


def job(max_model_len=128, **learner):
    precision = {"learnerCompute": learner.pop("compute", "float32")}
    return RLVRJobSpec.model_validate({
        "model": {"uri": "file:///model", "maxModelLen": max_model_len},
        "environments": [{"name": "sums", "arithmetic": {}}],
        "sampling": {"maxTokens": 8},
        "stages": [{"name": "climb", "rlvr": {"steps": 1}}],
        "precision": precision,
        "learner": learner,
    })  # fmt: skip


def weights_of_tokens(batch):
    """Fixed, uneven coefficients, so that a gradient tells tokens apart."""
    return torch.linspace(-1.0, 1.5, len(batch.targets))


def gradient_of(model, logprobs, weights):
    model.zero_grad()
    (logprobs * weights).sum().backward()
    return torch.cat([parameter.grad.flatten().double() for parameter in model.parameters()])


def ours(policy, model, temperature=1.0, block_tokens=4):
    batch = pack(BATCH, block_tokens)
    scores = policy.completion_logprobs(batch, temperature)
    logprobs = scores.logprobs.detach().clone()
    return logprobs, gradient_of(model, scores.logprobs, weights_of_tokens(batch).to(logprobs.dtype)), scores.entropies


def sequences():
    return [(tree.prompt_ids, branch.token_ids) for tree in BATCH for branch in tree.branches]


def unpacked(model, temperature=1.0):
    """Each sequence by itself, with the model's own attention."""
    rows = []
    for prompt, completion in sequences():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        rows.append(log_softmax(logits / temperature, -1)[range(len(completion)), list(completion)])
    return torch.cat(rows)


def rectangular(model, temperature=1.0):
    """All sequences in one batch, padded on the right."""
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences())
    ids = torch.zeros(len(sequences()), longest, dtype=torch.long)
    for row, (prompt, completion) in enumerate(sequences()):
        ids[row, : len(prompt) + len(completion)] = torch.tensor([*prompt, *completion])
    logs = log_softmax(model(input_ids=ids, use_cache=False).logits / temperature, -1)
    return torch.cat([
        logs[row, range(len(prompt) - 1, len(prompt) + len(completion) - 1), list(completion)]
        for row, (prompt, completion) in enumerate(sequences())
    ])  # fmt: skip


def pair(folder, dtype=torch.float32):
    """The same weights behind `Policy` and behind the model's own attention."""
    tree_attention.register()
    tree = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=tree_attention.NAME)
    return Policy(tree), tree, AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")


@pytest.mark.parametrize(("dtype", "gap", "relative"), [(torch.float32, 5e-5, 1e-5), (torch.float64, 1e-10, 1e-6)], ids=["fp32", "fp64"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("other", [rectangular, unpacked])
def test_a_tree_equals_the_sequences_it_stands_for(folder, dtype, gap, relative, temperature, other):
    policy, tree_model, plain_model = pair(folder, dtype)
    logprobs, gradient, _ = ours(policy, tree_model, temperature)
    wanted = other(plain_model, temperature)
    assert float((logprobs - wanted).detach().abs().max()) <= gap
    wanted_gradient = gradient_of(plain_model, wanted, weights_of_tokens(pack(BATCH, 4)).to(dtype))
    assert float((gradient - wanted_gradient).norm() / wanted_gradient.norm()) <= relative


@pytest.mark.parametrize("block_tokens", [1, 8, 1000])
def test_the_size_of_blocks_changes_rounding_only(folder, block_tokens):
    policy, model, _ = pair(folder, torch.float64)
    small, large = ours(policy, model, block_tokens=2), ours(policy, model, block_tokens=block_tokens)
    torch.testing.assert_close(small[0], large[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(small[1], large[1], rtol=1e-9, atol=1e-12)


def test_the_wrong_packed_calls_differ_without_an_error(folder):
    """Why nothing but `Policy` calls the model: what looks right is wrong by far more than rounding."""
    policy, tree_model, plain = pair(folder)
    sharpened = {name: tensor * 8 if "proj" in name else tensor for name, tensor in plain.state_dict().items()}  # random attention is flat
    plain.load_state_dict(sharpened)
    tree_model.load_state_dict(sharpened)
    packed = [(*prompt, *completion) for prompt, completion in sequences()]
    ids = torch.tensor([[token for sequence in packed for token in sequence]])
    positions = torch.tensor([[position for sequence in packed for position in range(len(sequence))]])
    starts = [sum(map(len, packed[:number])) for number in range(len(packed))]

    def logprobs(**call):
        with torch.no_grad():
            logs = log_softmax(plain(input_ids=ids, position_ids=positions, **call).logits[0], -1)
        return torch.cat([
            logs[range(start + len(prompt) - 1, start + len(prompt) + len(completion) - 1), list(completion)]
            for start, (prompt, completion) in zip(starts, sequences(), strict=True)
        ])  # fmt: skip

    wanted = unpacked(plain).detach()
    assert float((logprobs(use_cache=False) - wanted).abs().max()) < 1e-4
    assert float((logprobs() - wanted).abs().max()) > 0.1
    assert float((logprobs(use_cache=False, attention_mask=torch.ones_like(ids)) - wanted).abs().max()) > 0.1
    assert float((ours(policy, tree_model)[0] - wanted).abs().max()) < 1e-4


def test_entropies_are_those_of_the_distributions_that_predict_each_token(folder):
    policy, model, plain = pair(folder, torch.float64)
    entropies = ours(policy, model, temperature=0.7)[2]
    rows = []
    for prompt, completion in sequences():
        logs = log_softmax(
            plain(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0, len(prompt) - 1 : -1] / 0.7, -1
        )
        rows.append(-(logs.exp() * logs).sum(-1))
    torch.testing.assert_close(entropies, torch.cat(rows).detach(), rtol=1e-10, atol=1e-10)


def test_gradient_checkpointing_recomputes_the_same(folder, monkeypatch):
    calls = []
    counted = tree_attention.attend_trees
    monkeypatch.setattr(tree_attention, "attend_trees", lambda *a, **k: (calls.append(1), counted(*a, **k))[1])
    plain, checkpointed = Policy.load(folder, job()), Policy.load(folder, job(gradientCheckpointing=True))
    found = []
    for policy in (plain, checkpointed):
        calls.clear()
        found.append((*ours(policy, policy._model)[:2], len(calls)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=1e-9)
    assert found[1][2] == 2 * found[0][2]  # each layer a second time


@pytest.mark.parametrize(
    ("learner", "gap", "relative"), [({}, 5e-6, 1e-5), ({"gradientCheckpointing": True}, 5e-6, 1e-5), ({"compute": "bfloat16"}, 1e-6, 1e-2)]
)
def test_logits_in_chunks_change_rounding_only(folder, monkeypatch, learner, gap, relative):
    policy = Policy.load(folder, job(**learner))
    whole = ours(policy, policy._model, 0.8)
    monkeypatch.setattr("rlvr_trainer.policy.LOGITS_BYTES_CPU", 0)
    monkeypatch.setattr("rlvr_trainer.token_logprobs.HEAD_CHUNK_BYTES_CPU", 4 * 3 * policy._head.out_features)
    given = []
    policy._head.register_forward_hook(lambda _, arguments, output: given.append(output.shape[1]))
    chunked = ours(policy, policy._model, 0.8)
    assert given == [0]  # rows that the head itself was asked for
    torch.testing.assert_close(chunked[0], whole[0], rtol=0, atol=gap)
    torch.testing.assert_close(chunked[2], whole[2], rtol=0, atol=gap)
    assert float((chunked[1] - whole[1]).norm() / whole[1].norm()) <= relative


def test_logits_in_chunks_are_those_of_other_weights_where_asked(folder, tmp_path, monkeypatch):
    write_tiny_model(tmp_path / "other", seed=1)
    other, batch = read_weights(tmp_path / "other"), pack(BATCH, 4)
    policy, wanted = Policy.load(folder, job()), Policy.load(tmp_path / "other", job()).completion_logprobs(batch, 1.0)
    monkeypatch.setattr("rlvr_trainer.policy.LOGITS_BYTES_CPU", 0)
    torch.testing.assert_close(policy.completion_logprobs(batch, 1.0, other).logprobs, wanted.logprobs, rtol=0, atol=5e-6)
    scores, states = policy.completion_states(batch, 1.0)
    assert states.shape == (len(batch.targets), policy.hidden_size)
    assert scores.logprobs.requires_grad
    assert states.requires_grad


def test_a_model_that_scales_its_logits_keeps_them_whole(tmp_path, monkeypatch):
    config = GraniteConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        logits_scaling=4.0, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    model = GraniteForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    policy = Policy.load(tmp_path, job())
    wanted = ours(policy, policy._model)[0]
    monkeypatch.setattr("rlvr_trainer.policy.LOGITS_BYTES_CPU", 0)
    assert torch.equal(ours(policy, policy._model)[0], wanted)


def test_bfloat16_compute_is_near_and_leaves_float32_weights_and_gradients(folder):
    exact, rough = Policy.load(folder, job()), Policy.load(folder, job(compute="bfloat16"))
    wanted, found = ours(exact, exact._model), ours(rough, rough._model)
    gap = (found[0] - wanted[0]).abs()
    assert 0 < float(gap.max()) < 0.05
    assert found[0].dtype == torch.float32
    assert {parameter.dtype for parameter in rough.parameters().values()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in rough.parameters().values()} == {torch.float32}


def test_weights_for_engines_are_each_storage_once(folder):
    policy = Policy.load(folder, job())
    tensors = policy.engine_named_tensors()
    assert "model.embed_tokens.weight" in tensors
    assert "lm_head.weight" not in tensors
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors)
    assert not any(tensor.requires_grad for tensor in tensors.values())


def test_the_probe_computes_with_the_engines_dtype(folder):
    policy, _, plain = pair(folder)
    prompt, completion = sequences()[3]

    def by(model):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        return log_softmax(logits.float(), -1)[range(len(completion)), list(completion)].tolist()

    exact = policy.sequence_logprobs(prompt, completion, "float32")
    assert exact == pytest.approx(by(plain), abs=1e-5)
    rounded = policy.sequence_logprobs(prompt, completion, "bfloat16")
    assert rounded == pytest.approx(by(plain.to(torch.bfloat16)), abs=0.02)
    assert max(abs(one - other) for one, other in zip(exact, rounded, strict=True)) > 1e-4
    assert {parameter.dtype for parameter in policy.parameters().values()} == {torch.float32}


def test_a_checkpoints_weights_are_taken_whole_or_not_at_all(folder):
    policy, other = Policy.load(folder, job()), Policy.load(folder, job())
    saved = {name: tensor.clone() for name, tensor in policy.tensors().items()}
    with torch.no_grad():
        for parameter in other.parameters().values():
            parameter.add_(1.0)
    changed = {name: tensor.clone() for name, tensor in other.tensors().items()}
    name = "model/model.norm.weight"
    for broken in (
        {**saved, name: torch.zeros(3)},
        {key: value for key, value in saved.items() if key != name},
        {**saved, "model/x": saved[name]},
    ):
        with pytest.raises(ValueError, match=r"not those of spec\.model\.uri: '(model\.norm\.weight|x)'"):
            other.load_tensors(broken)
        assert all(torch.equal(tensor, changed[key]) for key, tensor in other.tensors().items())
    other.load_tensors({**saved, "optimizer/x/step": torch.zeros(())})
    assert all(torch.equal(tensor, saved[key]) for key, tensor in other.tensors().items())


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="nothing-here"):
        Policy.load(tmp_path / "nothing-here", job())


def test_a_gpu_that_is_not_there_is_named(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"learner\.gpus is 1"):
        Policy.load(folder, job(gpus=1))


def test_a_sliding_window_shorter_than_a_sequence_is_refused_when_loading(tmp_path):
    config = AutoConfig.for_model(
        "mistral", vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        sliding_window=16,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mistral")
    Policy.load(tmp_path / "mistral", job(max_model_len=16))
    with pytest.raises(ValueError, match=r"set model\.maxModelLen to at most 16"):
        Policy.load(tmp_path / "mistral", job(max_model_len=17))


def test_a_model_that_is_no_attention_is_refused_when_loading(tmp_path):
    config = AutoConfig.for_model("mamba", vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mamba")
    with pytest.raises(ValueError, match="does not support an attention implementation"):
        Policy.load(tmp_path / "mamba", job())


def test_a_model_whose_layers_ignore_the_plan_is_refused_when_loading(folder, monkeypatch):
    def causal(module, query, key, value, attention_mask, scaling=None, **options):
        key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
        heads = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return heads.transpose(1, 2), None

    monkeypatch.setattr(tree_attention, "attend_trees", causal)
    monkeypatch.setattr("rlvr_trainer.policy.SELF_CHECK_TOLERANCE", 1e-6)  # a random model attends so evenly that it hardly shows
    with pytest.raises(ValueError, match="some of its layers are not plain attention"):
        Policy.load(folder, job())


def test_soft_capped_logits_are_refused_when_loading(folder, tmp_path):
    capped = tmp_path / "capped"
    shutil.copytree(folder, capped)
    config = json.loads((capped / "config.json").read_text())
    (capped / "config.json").write_text(json.dumps({**config, "final_logit_softcapping": 30.0}))
    with pytest.raises(ValueError, match="soft-capped"):
        Policy.load(capped, job())


def test_dropout_is_off_although_the_model_trains():
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        attention_dropout=0.5, attn_implementation=tree_attention.NAME,
    )  # fmt: skip
    tree_attention.register()
    policy = Policy(LlamaForCausalLM(config))
    batch = pack(BATCH, 64)
    first, second = (policy.completion_logprobs(batch, 1.0).logprobs for _ in range(2))
    assert torch.equal(first, second)
    assert policy._model.training
    assert policy._model.model.layers[0].self_attn.attention_dropout == 0.0
