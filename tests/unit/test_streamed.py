"""Tensors that are made when they are asked for: planned without making one, and asked for once."""

from collections import Counter

import torch

from rlvr_trainer.storage.tensor_files import parse_tensors, plan_shards, stage, tensor_bytes
from rlvr_trainer.streamed import StreamedTensors, any_on_gpu, device_of, outline
from rlvr_trainer.weights.buckets import bytes_as_they_are, pack_bucket, plan_layout, unpack_bucket


class Streamed(StreamedTensors):
    """Counts what it is asked for."""

    def __init__(self, tensors):
        self.tensors, self.asked = tensors, Counter()

    @property
    def device(self):
        return torch.device("cpu")

    def outline(self):
        return {name: tensor.to("meta") for name, tensor in self.tensors.items()}

    def __getitem__(self, name):
        self.asked[name] += 1
        return self.tensors[name].clone()

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)


def make():
    """Two of one shape, which are not one tensor, and one that is larger than a bucket."""
    return Streamed({"a": torch.randn(4, 8), "b": torch.randn(4, 8), "large": torch.randn(64, 8), "bias": torch.randn(8)})


def test_engines_get_every_tensor_and_each_is_made_once():
    tensors, found = make(), {}
    layout = plan_layout(outline(tensors), "float32", 512)
    assert not tensors.asked
    for bucket in layout.buckets:
        assert bytes_as_they_are(bucket, tensors) is None
        buffer = torch.empty(bucket.size_bytes, dtype=torch.uint8)
        pack_bucket(bucket, tensors, buffer)
        found |= {name: tensor.clone() for name, tensor in unpack_bucket(bucket, buffer)}
    assert tensors.asked == Counter(list(tensors))
    assert found.keys() == tensors.tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.tensors.items())


def test_a_checkpoint_of_them_is_that_of_the_tensors():
    tensors = make()
    plans = plan_shards(outline(tensors), 512)
    assert plans == plan_shards(tensors.tensors, 512)
    assert not tensors.asked
    found = {}
    for plan in plans:
        buffer = torch.empty(plan.data_bytes, dtype=torch.uint8)
        stage(plan, tensors, buffer)
        found |= parse_tensors(bytearray(plan.header + bytes(tensor_bytes(buffer))), "here")
    assert tensors.asked == Counter(list(tensors))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.tensors.items())


def test_plain_tensors_are_their_own_outline():
    plain = {"a": torch.zeros(2)}
    assert outline(plain) is plain
    assert device_of(plain) == device_of(make()) == torch.device("cpu")
    assert not any_on_gpu(plain)
    assert not any_on_gpu(make())
    assert not any_on_gpu({})
