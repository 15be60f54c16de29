import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr_trainer.storage.tensor_files import NAMES, parse_tensors, plan_shards, stage, tensor_bytes


@st.composite
def tensor_maps(draw):
    names = draw(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=6))
    tensors = {}
    for name in names:
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        dtype = draw(st.sampled_from(sorted(NAMES, key=str)))
        tensors[name] = torch.randint(0, 2 if dtype is torch.bool else 100, shape).to(dtype)
    return tensors


def files(tensors, shard_bytes, metadata=None):
    for plan in plan_shards(tensors, shard_bytes, metadata):
        buffer = torch.full((plan.data_bytes,), 255, dtype=torch.uint8)
        stage(plan, tensors, buffer)
        yield plan, bytearray(plan.header + bytes(tensor_bytes(buffer)))


def equal(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and bytes(tensor_bytes(one)) == bytes(tensor_bytes(other))


@settings(deadline=None, max_examples=100)
@given(tensor_maps(), st.integers(1, 200))
def test_files_are_those_of_the_safetensors_library(tensors, shard_bytes):
    ours, theirs = {}, {}
    for plan, file in files(tensors, shard_bytes):
        assert plan.data_bytes <= shard_bytes or len([place for place in plan.places if place.end > place.start]) == 1
        ours |= parse_tensors(file, "here")
        theirs |= safetensors.torch.load(bytes(file))
    assert ours.keys() == theirs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert equal(ours[name], tensor)
        assert equal(theirs[name], tensor)


def test_we_read_what_the_library_writes():
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(7), "c": torch.tensor(2.5, dtype=torch.bfloat16)}
    read = parse_tensors(bytearray(safetensors.torch.save(tensors, {"format": "pt"})), "here")
    assert all(equal(read[name], tensor) for name, tensor in tensors.items())


def test_strides_do_not_matter_and_memory_is_shared():
    tensor = torch.arange(12.0).reshape(3, 4).t()
    ((_, file),) = files({"a": tensor}, 1 << 20)
    read = parse_tensors(file, "here")["a"]
    assert torch.equal(read, tensor)
    read[0, 0] = 99
    assert parse_tensors(file, "here")["a"][0, 0] == 99


def test_equal_layouts_give_equal_plans():
    first = plan_shards({"a": torch.zeros(3), "b": torch.zeros(2)}, 8)
    assert first == plan_shards({"a": torch.ones(3), "b": torch.ones(2)}, 8)
    assert first != plan_shards({"a": torch.zeros(4), "b": torch.zeros(2)}, 8)
    assert len(first) == 2


def test_a_dtype_without_a_name_is_refused():
    with pytest.raises(ValueError, match=r"tensor 'z' is torch.complex64"):
        plan_shards({"z": torch.zeros(1, dtype=torch.complex64)}, 8)


@pytest.mark.parametrize(
    ("file", "fault"),
    [
        (b"", "header does not fit"),
        (b"\xff" * 20, "header does not fit"),
        ((3).to_bytes(8, "little") + b"{]}", "header cannot be read"),
        ((2).to_bytes(8, "little") + b"[]", "header cannot be read"),
        ((51).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}', "header cannot be read"),
        (
            (54).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}' + bytes(7),
            "does not fit into bytes 0 to 8",
        ),
        ((55).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}' + bytes(9), "does not fit"),
        ((54).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}' + bytes(8), "does not fit"),
    ],
)
def test_files_that_are_none_are_refused(file, fault):
    with pytest.raises(ValueError, match=f"here.*{fault}"):
        parse_tensors(bytearray(file), "here")
