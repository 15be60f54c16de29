"""Deltas and chains: what an engine has after any of them is, byte by byte, what a broadcast would have given it."""

import hashlib
import time
from contextlib import contextmanager

import pytest
import torch
from blob_server import BlobServer
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr_trainer.storage.errors import StorageError
from rlvr_trainer.weights.buckets import pack_bucket, plan_layout
from rlvr_trainer.weights.chain_reader import DamagedChainError, FetchError, WeightCopy
from rlvr_trainer.weights.chain_writer import ChainWriter
from rlvr_trainer.weights.deltas import LARGEST_GAP, DamagedDeltaError, apply_delta, encode_delta

INTEGERS = {2: torch.int16, 4: torch.int32}


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), element_bytes=st.sampled_from([2, 4]), count=st.integers(1, 200_000), share=st.floats(0.0, 1.0))
def test_a_delta_gives_back_every_bit_and_is_never_larger_than_the_bucket(seed, element_bytes, count, share):
    generator = torch.Generator().manual_seed(seed)
    before = torch.randint(0, 256, (count * element_bytes,), generator=generator, dtype=torch.uint8)
    after = before.clone()
    chosen = torch.rand(count, generator=generator) < share
    after.view(INTEGERS[element_bytes])[chosen] ^= 1
    blob = encode_delta(before, after, element_bytes)
    changed = int(chosen.sum())
    if blob is None:
        assert changed * (2 + element_bytes) + (count // LARGEST_GAP + 1) * (2 + element_bytes) + 8 >= count * element_bytes
        return
    assert len(blob) < count * element_bytes
    assert (blob == b"") == (changed == 0)
    apply_delta(before, blob, element_bytes)
    assert torch.equal(before, after)


def test_a_change_far_from_the_one_before_it_arrives():
    before = torch.zeros(2 * (3 * LARGEST_GAP + 10), dtype=torch.uint8)
    after = before.clone()
    after[-1] = 7
    apply_delta(before, encode_delta(before, after, 2), 2)
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:5], lambda b: b"\xff" * 8 + b[8:], lambda b: b[:10] + b"\xff" * 4 + b[14:]]
)
def test_a_damaged_delta_is_refused_and_changes_nothing(damage):
    before = torch.zeros(1000, dtype=torch.uint8)
    after = before.clone()
    after[100:140] = 3
    blob = encode_delta(before, after, 2)
    copy = before.clone()
    with pytest.raises(DamagedDeltaError):
        apply_delta(copy, damage(blob), 2)
    assert torch.equal(copy, before)


@contextmanager
def chain(max_deltas=20, attempt=1, count=4, size=5000):
    store = BlobServer()
    writer = ChainWriter(store, attempt, max_deltas)
    try:
        yield Run(store, writer, count, size)
    finally:
        writer.close()
        store.close()


class Run:
    """Weights that change a little in each step, written into a store and followed."""

    def __init__(self, store, writer, count, size):
        self.store, self.writer = store, writer
        self.generator = torch.Generator().manual_seed(0)
        self.tensors = {f"layers.{n}.weight": torch.randn(size, generator=self.generator) for n in range(count)}
        self.layout = plan_layout(self.tensors, "bfloat16", 25_000)
        self.version = -1

    def step(self, share=0.02):
        for tensor in self.tensors.values():
            chosen = torch.rand(len(tensor), generator=self.generator) < share
            tensor[chosen] += 1.0
        self.version += 1
        return self.writer.write(self.tensors, self.layout, self.version)

    def follow(self, copy, last_only=False, seconds=20.0, given_up=lambda: False):
        copy.follow(self.layout, self.writer.offer(last_only, 60), time.monotonic() + seconds, given_up)

    def assert_equal(self, copy):
        for bucket, tensors in zip(self.layout.buckets, copy.tensors(), strict=True):
            packed = torch.zeros(bucket.size_bytes, dtype=torch.uint8)
            pack_bucket(bucket, self.tensors, packed)
            digest = hashlib.sha256()
            for name, tensor in tensors:
                assert torch.equal(tensor, self.tensors[name].bfloat16())
            index = self.layout.buckets.index(bucket)
            digest.update(copy._buckets[index].numpy())
            assert digest.hexdigest() == hashlib.sha256(packed.numpy()).hexdigest()


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from([0.0, 0.001, 0.02, 0.4, 1.0]), min_size=1, max_size=12), st.integers(0, 5), st.data())
def test_engines_have_what_a_broadcast_would_give_them_however_many_updates_they_missed(shares, max_deltas, data):
    with chain(max_deltas) as run:
        steady, late = WeightCopy(), WeightCopy()
        for share in shares:
            run.step(share)
            run.follow(steady)
            run.assert_equal(steady)
            if data.draw(st.booleans()):
                run.follow(late)
                run.assert_equal(late)
            links = run.writer.offer(False, 60)
            assert len(links) <= max_deltas + 1
            kept = {key.split("/")[2] for key in run.store.objects}
            assert len(kept) == len(links)


def test_a_step_that_changes_little_costs_little_and_one_that_changes_all_is_a_base():
    with chain(size=50_000) as run:
        whole = run.step()
        assert whole == run.layout.size_bytes
        assert run.step(0.02) < 0.06 * whole
        assert run.writer.write(run.tensors, run.layout, run.version) == 0
        assert run.step(1.0) == whole
        assert len(run.writer.offer(False, 60)) == 1


def test_deltas_together_are_never_larger_than_their_base():
    with chain(max_deltas=1000) as run:
        sizes = [run.step(0.2) for _ in range(12)]
        assert sizes.count(run.layout.size_bytes) >= 3


def test_weights_in_use_stay_as_they_are_while_the_next_delta_is_applied():
    with chain() as run:
        copy = WeightCopy()
        run.step()
        run.follow(copy)
        in_use = {name: tensor for bucket in copy.tensors() for name, tensor in bucket}
        wanted = {name: tensor.clone() for name, tensor in in_use.items()}
        run.step(0.5)
        run.follow(copy)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in in_use.items())


@pytest.mark.parametrize("is_stored", [False, True], ids=["lost", "answer lost"])
def test_after_a_failed_write_comes_a_base_and_nothing_stays_behind(monkeypatch, is_stored):
    with chain() as run:
        late = WeightCopy()
        run.step()
        run.step()

        def fail(key, data):
            if is_stored:
                run.store.put(key, data)
            raise StorageError("the store does not answer")

        with monkeypatch.context() as patch:
            patch.setattr(run.store, "put_if_absent", fail)
            with pytest.raises(StorageError):
                run.step()
        assert run.writer.write(run.tensors, run.layout, run.version) == run.layout.size_bytes
        run.follow(late)
        run.assert_equal(late)
        assert {key.split("/")[2] for key in run.store.objects} == {"00000003"}
        run.writer.close()
        assert not run.store.objects


def test_an_engine_that_follows_fetches_the_last_link_alone():
    with chain() as run:
        copy = WeightCopy()
        run.step()
        run.follow(copy)
        run.step()
        run.store.requests.clear()
        run.follow(copy, last_only=True)
        run.assert_equal(copy)
        assert {key.split("/")[2] for key in run.store.requests} == {"00000001"}


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data + b"x", lambda data: bytes([data[0] ^ 1]) + data[1:], lambda data: None, lambda data: b""],
    ids=["truncated", "longer", "one bit", "missing", "empty"],
)
@pytest.mark.parametrize("name", ["00000", "link.json"])
def test_a_damaged_object_is_found_and_the_same_version_comes_as_a_base(damage, name):
    with chain() as run:
        copy, fresh = WeightCopy(), WeightCopy()
        run.step()
        run.follow(copy)
        run.step()
        key = f"weights/000001/00000001/{name}"
        damaged = damage(run.store.objects.pop(key))
        if damaged is not None:
            run.store.objects[key] = damaged
        for engine in (copy, fresh):
            with pytest.raises(DamagedChainError):
                run.follow(engine)
        run.writer.break_off()
        assert run.writer.write(run.tensors, run.layout, run.version) == run.layout.size_bytes
        for engine in (copy, fresh):
            run.follow(engine)
            run.assert_equal(engine)
        assert all(key.startswith("weights/000001/00000002/") for key in run.store.objects)


def test_memory_that_is_not_what_it_was_is_found_before_it_is_served():
    with chain() as run:
        copy = WeightCopy()
        run.step()
        run.follow(copy)
        copy._buckets[0][3] ^= 1
        run.step()
        with pytest.raises(DamagedChainError, match="version 1 is not what the learner has in 1 buckets"):
            run.follow(copy)
        run.follow(copy)
        run.assert_equal(copy)


def test_a_delta_on_weights_that_the_engine_lacks_asks_for_a_base():
    with chain() as run:
        run.step()
        run.step()
        with pytest.raises(DamagedChainError, match="builds on weights that this engine does not have"):
            run.follow(WeightCopy(), last_only=True)


def test_a_store_that_fails_for_a_moment_is_asked_again_and_one_that_stays_away_costs_the_engine_nothing(monkeypatch):
    monkeypatch.setattr("rlvr_trainer.weights.chain_reader.PAUSE_SECONDS", 0.001)
    with chain() as run:
        copy = WeightCopy()
        run.step()
        run.store.failures = [503, 500]
        run.follow(copy)
        before = [bucket.clone() for bucket in copy._buckets]
        run.step()
        run.store.failures = [503] * 40
        with pytest.raises(FetchError, match="the store answered 503"):
            run.follow(copy)
        assert all(torch.equal(old, new) for old, new in zip(before, copy._buckets, strict=True))
        run.store.failures = []
        run.follow(copy)
        run.assert_equal(copy)


def test_an_engine_that_is_wanted_elsewhere_stops_fetching():
    with chain() as run:
        run.step()
        with pytest.raises(FetchError, match="given up"):
            run.follow(WeightCopy(), given_up=lambda: True)


def test_a_new_attempt_removes_what_older_ones_wrote_and_no_newer_ones():
    store = BlobServer()
    for attempt in (1, 2, 3):
        store.put(f"weights/{attempt:06d}/00000000/00000", b"x")
    store.put("attempts/000001.json", b"{}")
    run = Run(store, ChainWriter(store, 2, 20), 4, 5000)
    run.step()
    run.writer.close()
    store.close()
    assert sorted(store.objects) == ["attempts/000001.json", "weights/000003/00000000/00000"]
