"""Adapters on their way to an engine: what it makes of them is what the learner would have sent, bit for bit."""

import json
import shutil

import pytest
import torch
from adapter_policy import disturb, load_policy
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.weights.adapters import BaseWeights
from rlvr_trainer.weights.buckets import pack_bucket, plan_layout, unpack_bucket

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("adapters") / "tiny"
    write_tiny_model(place)
    return place


@pytest.fixture
def copied(folder, tmp_path):
    """The model's folder, to change."""
    shutil.copytree(folder, tmp_path / "tiny")
    return tmp_path / "tiny"


def load(folder, lora=True):
    policy = load_policy(folder, {"rank": 4, "alpha": 10} if lora else None)
    disturb(policy, torch.Generator().manual_seed(7), 0.05)
    return policy


def received(policy, dtype="float32", bucket_bytes=1 << 14):
    """What a worker's transport has, bucket by bucket, and the layout."""
    tensors = policy.published_tensors()
    layout = plan_layout(tensors, dtype, bucket_bytes, policy.adapter_scale)
    buckets = []
    for bucket in layout.buckets:
        buffer = torch.empty(bucket.size_bytes, dtype=torch.uint8)
        pack_bucket(bucket, tensors, buffer)
        buckets.append(tuple(unpack_bucket(bucket, buffer)))
    return buckets, layout


def made_of(policy, folder, dtype=torch.float32):
    buckets, layout = received(policy)
    return dict(pair for bucket in BaseWeights(folder, dtype).add(buckets, layout.adapter_scale) for pair in bucket)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [None, 100_000], ids=["one file", "several"])
def test_an_engine_makes_of_them_what_the_learner_has(folder, tmp_path, stored, shard_bytes, dtype):
    saved = tmp_path / "saved"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, stored))
    model.save_pretrained(saved, **({"max_shard_size": shard_bytes} if shard_bytes else {}))
    assert (saved / SAFE_WEIGHTS_INDEX_NAME).is_file() is bool(shard_bytes)
    policy = load(saved)
    buckets, layout = received(policy, dtype)
    assert layout.adapter_scale == 2.5
    assert len(buckets) > 1
    assert layout.size_bytes < sum(tensor.nbytes for tensor in policy.engine_named_tensors().values()) / 4
    found = made_of(policy, saved, getattr(torch, dtype))
    wanted = policy.engine_named_tensors()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name].to(getattr(torch, dtype))) for name in wanted)


def test_what_an_engine_computes_with_is_not_the_file(copied):
    first = made_of(load(copied), copied)
    before = {name: tensor.clone() for name, tensor in load_file(copied / "model.safetensors").items()}
    for tensor in first.values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(copied / "model.safetensors").items())


def test_a_folder_that_is_not_the_models_is_refused_by_the_engine(copied):
    policy = load(copied)
    weights = load_file(copied / "model.safetensors")
    missing = "model.layers.1.mlp.up_proj.weight"
    save_file({name: tensor for name, tensor in weights.items() if name != missing}, copied / "model.safetensors")
    with pytest.raises(ValueError, match=rf"has no {missing}, which an adapter is to be added to"):
        made_of(policy, copied)
    (copied / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read from"):
        made_of(policy, copied)
    (copied / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="there is no"):
        made_of(policy, copied)


def rename(weights):
    return {name.replace("model.layers", "decoder.blocks"): tensor for name, tensor in weights.items()}


def store_as_numbers(weights):
    return {name: tensor.to(torch.int8) if "up_proj" in name else tensor for name, tensor in weights.items()}


def fuse(weights):
    return {name: tensor.repeat(2, 1) if "up_proj" in name else tensor for name, tensor in weights.items()}


@pytest.mark.parametrize("change", [rename, store_as_numbers, fuse])
def test_whole_weights_travel_where_files_and_model_do_not_name_the_same(copied, change, monkeypatch):
    weights = AutoModelForCausalLM.from_pretrained(copied, dtype=torch.float32)
    monkeypatch.setattr("rlvr_trainer.policy._load_model", lambda folder: prepared(weights))
    save_file(change(load_file(copied / "model.safetensors")), copied / "model.safetensors")
    policy = load(copied)
    assert policy.adapter_scale is None
    assert policy.published_tensors().keys() == policy.engine_named_tensors().keys()


def prepared(model):
    from rlvr_trainer import tree_attention

    tree_attention.register()
    model.set_attn_implementation(tree_attention.NAME)
    return model


def test_an_index_says_which_files_count(copied):
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").rename(copied / "model-00001-of-00001.safetensors")
    (copied / SAFE_WEIGHTS_INDEX_NAME).write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")})
    )
    save_file({name: tensor * 2 for name, tensor in weights.items()}, copied / "model-00009-of-00009.safetensors")
    policy = load(copied)
    found = made_of(policy, copied)
    assert all(torch.equal(found[name], tensor) for name, tensor in policy.engine_named_tensors().items())


def test_without_adapters_nothing_is_otherwise(folder):
    policy = load(folder, lora=False)
    assert policy.adapter_scale is None
    assert all(
        tensor is policy.engine_named_tensors()[name] or torch.equal(tensor, policy.engine_named_tensors()[name])
        for name, tensor in policy.published_tensors().items()
    )
