"""Buckets carry every tensor once and whole, whatever their sizes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlvr_trainer.weights import TRANSPORTS, backend_name, load_transport
from rlvr_trainer.weights.buckets import ALIGNMENT_BYTES, TORCH_DTYPES, bytes_as_they_are, pack_bucket, plan_layout, unpack_bucket
from rlvr_trainer.weights.protocol import Bucket, Invitation, Layout, TensorSlot, check_newer

shapes = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=12)


def make_tensors(sizes, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {f"layers.{index}.weight": torch.randn(shape, generator=generator).to(dtype) for index, shape in enumerate(sizes)}


def travel(layout, tensors):
    received = {}
    for bucket in layout.buckets:
        buffer = torch.full((bucket.size_bytes,), 0xAB, dtype=torch.uint8)
        pack_bucket(bucket, tensors, buffer)
        received |= {name: tensor.clone() for name, tensor in unpack_bucket(bucket, buffer.clone())}
    return received


@given(sizes=shapes, bucket_bytes=st.integers(1, 4000), seed=st.integers(0, 9), dtype=st.sampled_from(["float32", "bfloat16", "float16"]))
def test_every_tensor_arrives_whole_and_cast(sizes, bucket_bytes, seed, dtype):
    tensors = make_tensors(sizes, seed)
    layout = plan_layout(tensors, dtype, bucket_bytes)
    received = travel(layout, tensors)
    assert list(received) == list(tensors) == list(layout.names)
    for name, tensor in tensors.items():
        assert received[name].dtype == TORCH_DTYPES[dtype]
        assert torch.equal(received[name], tensor.to(TORCH_DTYPES[dtype]))


@given(sizes=shapes, bucket_bytes=st.integers(1, 4000))
def test_a_bucket_is_small_or_holds_one_tensor(sizes, bucket_bytes):
    layout = plan_layout(make_tensors(sizes, 0), "float32", bucket_bytes)
    for bucket in layout.buckets:
        assert bucket.size_bytes <= bucket_bytes or sum(slot.size_bytes > 0 for slot in bucket.slots) == 1
        assert all(slot.offset_bytes % ALIGNMENT_BYTES == 0 for slot in bucket.slots)
    assert layout == Layout.model_validate_json(layout.model_dump_json())


def test_buckets_are_filled_before_a_new_one_begins():
    tensors = make_tensors([(16,)] * 10, 0)
    assert [len(bucket.slots) for bucket in plan_layout(tensors, "float32", 4 * 64).buckets] == [4, 4, 2]


def test_tied_weights_travel_once_and_views_of_one_storage_do_not_count_as_tied():
    head = torch.randn(8, 4)
    both = torch.randn(2, 4)
    tensors = {"embed.weight": head, "first.weight": both[0], "second.weight": both[1], "lm_head.weight": head}
    assert plan_layout(tensors, "float32", 1 << 20).names == ("embed.weight", "first.weight", "second.weight")


def test_a_lone_tensor_of_the_right_type_is_sent_without_a_copy():
    tensor = torch.nn.Parameter(torch.randn(32, 3))
    (bucket,) = plan_layout({"weight": tensor}, "float32", 64).buckets
    flat = bytes_as_they_are(bucket, {"weight": tensor})
    assert flat is not None
    assert flat.data_ptr() == tensor.data_ptr()
    assert flat.numel() == bucket.size_bytes
    assert bytes_as_they_are(bucket, {"weight": tensor.double()}) is None
    assert bytes_as_they_are(bucket, {"weight": torch.randn(3, 32).t()}) is None


def test_what_cannot_be_sent_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'counter' is torch\.int64"):
        plan_layout({"counter": torch.zeros(3, dtype=torch.int64)}, "float32", 64)
    with pytest.raises(ValueError, match="no tensors"):
        plan_layout({}, "float32", 64)


def test_a_layout_that_would_write_outside_its_place_is_refused():
    first = TensorSlot(name="a", shape=(4,), dtype="float32", offset_bytes=0)
    with pytest.raises(ValidationError, match="'b' starts at byte 8, within the tensor before it, which ends at 16"):
        Bucket(size_bytes=64, slots=(first, TensorSlot(name="b", shape=(1,), dtype="float32", offset_bytes=8)))
    with pytest.raises(ValidationError, match="'a' ends at byte 16 of a bucket of 15"):
        Bucket(size_bytes=15, slots=(first,))


@given(st.tuples(st.integers(0, 5), st.integers(1, 5)), st.tuples(st.integers(0, 5), st.integers(1, 5)))
def test_only_later_invitations_are_followed(order, seen):
    layout = plan_layout({"weight": torch.zeros(2)}, "float32", 64)
    invitation = Invitation(
        attempt=order[0], epoch=order[1], world_size=2, rank_offset=1, store_host="h", store_port=1, collective="gloo",
        timeout_seconds=1.0, layout=layout,
    )  # fmt: skip
    if order > seen:
        check_newer(invitation, seen)
    else:
        with pytest.raises(ValueError, match="is refused"):
            check_newer(invitation, seen)


def test_every_registered_transport_loads_and_an_unknown_one_is_named():
    for member in TRANSPORTS:
        assert callable(load_transport(member).make_receiver)
        assert backend_name(member) == f"rlvr_{member}"
    with pytest.raises(ValueError, match=r"'pigeons'; there are: torch_distributed, object_store"):
        load_transport("pigeons")
