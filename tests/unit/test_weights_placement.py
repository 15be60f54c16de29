"""A parameter is placed only if it is nothing but tensors of the checkpoint, end to end."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rlvr_trainer.weights.buckets import pack_bucket, plan_layout, unpack_bucket
from rlvr_trainer.weights.placement import join, watch_load


def arrive(tensors, bucket_bytes=1 << 20):
    """As the transport hands them on."""
    for bucket in plan_layout(tensors, "float32", bucket_bytes).buckets:
        buffer = torch.empty(bucket.size_bytes, dtype=torch.uint8)
        pack_bucket(bucket, tensors, buffer)
        yield from unpack_bucket(bucket, buffer)


class Model(nn.Module):
    """Parameters made in every way that an engine has. `load_weights` is that of vLLM in small."""

    def __init__(self):
        super().__init__()
        shapes = {"fused": (6, 16), "plain": (16,), "padded": (5, 16), "shifted": (16,), "sharded": (2, 16), "cast": (16,), "gap": (4, 16)}
        for name, shape in shapes.items():
            dtype = torch.bfloat16 if name == "cast" else torch.float32
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False))

    def load_weights(self, pairs):
        targets = {
            "q": self.fused.data[:2], "k": self.fused.data[2:4], "v": self.fused.data[4:], "plain": self.plain.data,
            "padded": self.padded.data[:4], "shifted": self.shifted.data, "cast": self.cast.data, "gap": self.gap.data[2:],
        }  # fmt: skip
        for name, tensor in pairs:
            if name == "sharded":
                self.sharded.data.copy_(tensor.narrow(0, 2, 2))
            else:
                targets[name].copy_(tensor)
            if name == "shifted":
                self.shifted.data.add_(1.0)
        return {"fused"}


def make_checkpoint(seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = {"q": 2, "k": 2, "v": 2, "padded": 4, "sharded": 4, "gap": 2}
    return {
        name: torch.randn(*([rows[name]] if name in rows else []), 16, generator=generator)
        for name in ("v", "q", "k", "plain", "padded", "shifted", "sharded", "cast", "gap")
    }


def test_only_parameters_that_are_whole_tensors_end_to_end_are_placed():
    model = Model()
    result, places = watch_load(model, model.load_weights, arrive(make_checkpoint()))
    assert result == {"fused"}
    assert places == {"fused": ("q", "k", "v"), "plain": ("plain",)}


def test_a_load_that_fails_goes_through_and_a_later_one_is_not_watched():
    model = Model()
    with pytest.raises(KeyError):
        watch_load(model, model.load_weights, iter([("unknown", torch.zeros(1))]))
    model.load_weights(arrive(make_checkpoint()))
    assert watch_load(model, model.load_weights, iter(()))[1] == {}


@given(
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    columns=st.sampled_from([3, 16, 32]),
    bucket_bytes=st.integers(1, 2000),
    order=st.randoms(use_true_random=False),
)
def test_joined_tensors_are_those_that_arrived(rows, columns, bucket_bytes, order):
    tensors = {str(number): torch.randn(count, columns) for number, count in enumerate(rows)}
    names = list(tensors)
    order.shuffle(names)
    arrived = dict(arrive(tensors, bucket_bytes))
    joined = join([arrived[name] for name in names], (sum(rows), columns))
    assert joined.is_contiguous()
    assert torch.equal(joined, torch.cat([tensors[name] for name in names]))


def test_neighbours_are_not_copied():
    tensors = {name: torch.randn(4, 16) for name in "qkv"}
    arrived = dict(arrive(tensors))
    assert join([arrived[name] for name in "qkv"], (12, 16)).data_ptr() == arrived["q"].data_ptr()
    assert join([arrived[name] for name in "qv"], (8, 16)).data_ptr() not in {tensor.data_ptr() for tensor in arrived.values()}
