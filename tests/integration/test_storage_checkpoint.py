"""Checkpoints on a real server: commits in the background, crashes between blobs and manifest, zombies, corruption, pruning."""

import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest
import torch

from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan
from rlvr_trainer.storage.attempts import claim_attempt
from rlvr_trainer.storage.checkpoint import CheckpointConflictError, CheckpointWriter
from rlvr_trainer.storage.checkpoint_reader import committed_steps, latest_manifest, load_checkpoint, load_latest, prune, read_manifest
from rlvr_trainer.storage.client import ObjectStore, S3Settings, connect
from rlvr_trainer.storage.errors import CheckpointBusyError, CorruptObjectError, StoreFailedError, SupersededError
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.manifest import CheckpointState
from rlvr_trainer.storage.records import FIRST, RecordConflictError, RecordLog, StepRecord
from rlvr_trainer.storage.rollouts import iterate_groups, write_groups
from rlvr_trainer.storage.upload import MIB, TransferSettings

STAGE, NEXT_STAGE = StageKeys(0, "climb"), StageKeys(1, "higher")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
WAIT = 30.0


@pytest.fixture(scope="module")
def bucket(s3):
    return s3.make_bucket("storage-checkpoint")


@pytest.fixture
def store(s3, bucket, monkeypatch, request):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    client = connect(S3Settings(s3.endpoint))
    yield ObjectStore(client, bucket, request.node.name, TransferSettings(part_bytes=5 * MIB))
    client.close()


def group(index):
    verdict = Verdict(id="a", status=VerdictStatus.FAIL, score=0.0, verifier="v", verifier_version="1", reason="42 is wrong")
    rollout = Rollout((1, 2), (-0.1, -0.2), (VersionSpan(0, 0, 2),), "stop", "42", verdict)
    return RolloutGroup(Admission(index, "sums", 0, index), "0" * 16, (1,), "p", (rollout,), "rollout-0", "", 0.0, 0.0)


def state(step, **changes):
    pending = (Admission(7, "sums", 0, 7), Admission(9, "sums", 0, 9))
    values = {"step": step, "weight_version": step, "record_sha256": FIRST, "model": "m", "cursor": 10, "accepted": 2, "pending": pending}
    return CheckpointState(**{**values, **changes})


def tensors(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "model/a": torch.randn(1_500_000, generator=generator),
        "model/b": torch.randn(3, 5, generator=generator).to(torch.bfloat16),
        "optimizer/step": torch.tensor(step),
        "random/torch": generator.get_state(),
    }


def commit(store, writer, step, **changes):
    writer.snapshot(tensors(step), state(step, **changes), (group(9),))
    writer.wait(WAIT)
    (outcome,) = writer.take_outcomes()
    assert outcome.error is None
    assert outcome.step == step
    return outcome.manifest


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


def test_a_snapshot_is_what_was_there_when_it_was_taken(store):
    writer = CheckpointWriter(store, STAGE, claim_attempt(store, 1), shard_bytes=1 * MIB)
    live = tensors(5)
    report = writer.snapshot(live, state(5, scalars={"learning_rate": 1e-6}, curriculum={"level": 3}), (group(9),))
    for tensor in live.values():
        tensor.zero_()
    writer.wait(WAIT)
    assert report.bytes == sum(tensor.nbytes for tensor in live.values())
    loaded = load_latest(store, STAGE)
    assert same(loaded.tensors, tensors(5))
    assert loaded.groups == (group(9),)
    assert loaded.manifest == writer.take_outcomes()[0].manifest
    assert loaded.manifest.state.scalars == {"learning_rate": 1e-6}
    assert len(loaded.manifest.tensors) == 2
    assert latest_manifest(store, [STAGE, NEXT_STAGE]) == loaded.manifest
    assert latest_manifest(store, NEXT_STAGE) is None
    assert load_latest(store, NEXT_STAGE) is None


def test_snapshots_reuse_their_memory_and_later_ones_do_not_leak_into_earlier_ones(store):
    writer = CheckpointWriter(store, STAGE, claim_attempt(store, 1))
    for step in (1, 2):
        commit(store, writer, step)
    (buffer,) = writer._buffers
    commit(store, writer, 3)
    assert writer._buffers[0] is buffer
    for step in (1, 2, 3):
        assert same(load_checkpoint(store, read_manifest(store, STAGE, step)).tensors, tensors(step))
    with pytest.raises(ValueError, match="step 2 after one of step 3"):
        writer.snapshot(tensors(2), state(2))
    assert writer.snapshot(tensors(3), state(3)).bytes == 0
    assert not writer.busy
    with pytest.raises(ValueError, match=r"groups \[8\] are finished, but not pending"):
        writer.snapshot(tensors(4), state(4), (group(8),))


class SlowStore(ObjectStore):
    """Uploads wait for `gate`."""

    def upload(self, key, chunks):
        if not self.gate.wait(WAIT):
            raise StoreFailedError("the gate stayed shut")
        return super().upload(key, chunks)


def test_training_goes_on_during_an_upload_and_a_second_snapshot_waits_bounded(store):
    slow = SlowStore(store.client, store.bucket, store.prefix)
    slow.gate = threading.Event()
    writer = CheckpointWriter(slow, STAGE, claim_attempt(store, 1))
    writer.snapshot(tensors(1), state(1))
    assert writer.busy
    assert committed_steps(store, STAGE) == ()
    with pytest.raises(CheckpointBusyError, match="still being uploaded after 0 s"):
        writer.snapshot(tensors(2), state(2), wait_seconds=0.0)
    slow.gate.set()
    writer.snapshot(tensors(2), state(2), wait_seconds=WAIT)
    writer.wait(WAIT)
    assert [outcome.step for outcome in writer.take_outcomes()] == [1, 2]
    assert same(load_checkpoint(store, read_manifest(store, STAGE, 1)).tensors, tensors(1))


def test_a_failed_upload_is_reported_and_the_step_may_be_tried_again(store):
    missing = ObjectStore(store.client, "not-there", store.prefix)
    writer = CheckpointWriter(store, STAGE, claim_attempt(store, 1))
    writer._store = missing
    writer.snapshot(tensors(1), state(1))
    writer.wait(WAIT)
    (outcome,) = writer.take_outcomes()
    assert "bucket 'not-there' does not exist" in str(outcome.error)
    writer._store = store
    commit(store, writer, 1)
    assert committed_steps(store, STAGE) == (1,)


CRASH = """
import os, signal, sys, torch
from rlvr_trainer.storage.attempts import claim_attempt
from rlvr_trainer.storage.checkpoint import CheckpointWriter
from rlvr_trainer.storage.client import ObjectStore, S3Settings
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.manifest import CheckpointState

class DyingStore(ObjectStore):
    def put_if_absent(self, key, data):
        if key.endswith("MANIFEST.json"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().put_if_absent(key, data)

class DyingUpload(ObjectStore):
    def upload(self, key, chunks):
        def dying():
            for chunk in chunks:
                yield chunk[: 2 * self.transfer.part_bytes]
                yield chunk[2 * self.transfer.part_bytes : 3 * self.transfer.part_bytes]
            os.kill(os.getpid(), signal.SIGKILL)
        return super().upload(key, dying())

endpoint, bucket, prefix, where = sys.argv[1:]
kind = {"manifest": DyingStore, "upload": DyingUpload}[where]
store = kind.open(f"s3://{bucket}/{prefix}", S3Settings(endpoint))
store.transfer = store.transfer.__class__(part_bytes=5 << 20)
store._uploader._settings = store.transfer
writer = CheckpointWriter(store, StageKeys(0, "climb"), claim_attempt(store, 2))
state = CheckpointState(step=2, weight_version=2, record_sha256="0" * 64, model="m", cursor=0, accepted=0)
writer.snapshot({"a": torch.zeros(5_000_000)}, state)
writer.wait(60)
"""


@pytest.mark.parametrize("where", ["manifest", "upload"])
def test_a_crash_before_the_manifest_leaves_the_checkpoint_before(store, where):
    commit(store, CheckpointWriter(store, STAGE, claim_attempt(store, 1)), 1)
    program = [sys.executable, "-c", CRASH, store.endpoint, store.bucket, store.prefix, where]
    assert subprocess.run(program, env=dict(os.environ), timeout=60, check=False).returncode == -signal.SIGKILL
    assert load_latest(store, STAGE).manifest.step == 1
    left_blobs, left_uploads = store.list(STAGE.checkpoint(2)), store.unfinished_uploads(STAGE.checkpoints)
    assert (len(left_blobs), len(left_uploads)) == ((1, 0) if where == "manifest" else (0, 1))
    claim = claim_attempt(store, 3)
    assert prune(store, STAGE, 3, claim.attempt) == ()
    assert store.list(STAGE.checkpoint(2)) == ()
    assert store.unfinished_uploads(STAGE.checkpoints) == {}
    commit(store, CheckpointWriter(store, STAGE, claim), 2)
    assert load_latest(store, STAGE).manifest.attempt == 3


def record(step, attempt, groups, cursor):
    return StepRecord(
        stage="climb", step=step, attempt=attempt, groups=groups, rollouts=(), cursor=cursor, accepted=0, weight_version=0, time=NOW
    )


def test_a_zombie_commits_nothing(store):
    old = claim_attempt(store, 1)
    log, writer = RecordLog(store, STAGE, old), CheckpointWriter(store, STAGE, old)
    log.commit(record(1, 1, (0, 1), 2))
    claim_attempt(store, 2)
    with pytest.raises(SupersededError, match="attempt 2 has taken over"):
        log.commit(record(2, 1, (2, 3), 4))
    writer.snapshot(tensors(1), state(1))
    with pytest.raises(SupersededError, match="attempt 2 has taken over"):
        writer.wait(WAIT)
    with pytest.raises(SupersededError, match="attempt 2 has taken over"):
        writer.snapshot(tensors(2), state(2))
    assert committed_steps(store, STAGE) == ()
    assert store.list(STAGE.records) == (STAGE.record(1),)


def test_a_commit_that_arrives_late_is_adopted_or_reported(store):
    """The old attempt passed its check before the new one claimed, and its write arrives afterwards."""
    old, new = claim_attempt(store, 1), claim_attempt(store, 2)
    old.check = lambda: None
    late = RecordLog(store, STAGE, old).commit(record(1, 1, (1, 0), 2))
    log = RecordLog(store, STAGE, new)
    with pytest.raises(RecordConflictError, match=r"step 1 .* was committed by attempt 1, so attempt 2 may not") as caught:
        log.commit(record(1, 2, (0, 1), 2))
    assert caught.value.other == late
    assert log.read_all() == (late,)

    writer = CheckpointWriter(store, STAGE, new)
    writer._find_present = lambda manifest: None  # it was not there yet when this attempt looked
    first = commit(store, CheckpointWriter(store, STAGE, old), 1)
    assert commit(store, writer, 1) == first
    other_records = CheckpointWriter(store, STAGE, new)
    other_records.snapshot(tensors(1), state(1, record_sha256="1" * 64))
    with pytest.raises(CheckpointConflictError, match="was committed by attempt 1, so attempt 2 may not"):
        other_records.wait(WAIT)
    assert same(load_latest(store, STAGE).tensors, tensors(1))
    assert {key.split("/")[-2] for key in store.list(STAGE.checkpoint(1)) if not key.endswith(".json")} == {"000001"}


def test_a_resume_without_a_step_uploads_nothing(store, monkeypatch):
    first = commit(store, CheckpointWriter(store, STAGE, claim_attempt(store, 1)), 1)
    writer = CheckpointWriter(store, STAGE, claim_attempt(store, 2))
    monkeypatch.setattr(store, "upload", lambda *_: pytest.fail("nothing is to be uploaded"))
    assert commit(store, writer, 1) == first


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest"])
def test_a_corrupt_checkpoint_is_named_and_passed_over_only_when_told(store, damage):
    claim = claim_attempt(store, 1)
    writer = CheckpointWriter(store, STAGE, claim)
    for step in (1, 2):
        manifest = commit(store, writer, step)
    broken = {"changed": manifest.blobs[0].key, "missing": manifest.groups.key, "manifest": STAGE.manifest(2)}[damage]
    if damage == "missing":
        store.delete([broken])
    else:
        content = bytearray(store.get(broken))
        content[len(content) // 2] ^= 1
        content[1] = 0
        store.put(broken, content)
    with pytest.raises(CorruptObjectError, match=broken):
        load_latest(store, STAGE)
    loaded = load_latest(store, STAGE, fall_back=True)
    assert loaded.manifest.step == 1
    assert same(loaded.tensors, tensors(1))
    assert broken in loaded.condemned[0]
    assert committed_steps(store, STAGE) == (1,)
    newer = CheckpointWriter(store, STAGE, claim_attempt(store, 2))
    commit(store, newer, 2)
    assert load_latest(store, STAGE).manifest.attempt == 2


def test_when_nothing_sound_is_left_nothing_is_condemned(store):
    manifest = commit(store, CheckpointWriter(store, STAGE, claim_attempt(store, 1)), 1)
    store.delete([manifest.blobs[0].key])
    with pytest.raises(CorruptObjectError, match=r"all 1 checkpoints in .* are corrupt"):
        load_latest(store, STAGE, fall_back=True)
    assert committed_steps(store, STAGE) == (1,)


def test_pruning_keeps_the_newest_and_never_a_manifest_without_blobs(store, monkeypatch):
    writer = CheckpointWriter(store, STAGE, claim_attempt(store, 1))
    for step in (1, 2, 3, 4):
        commit(store, writer, step)
    delete = store.delete

    def interrupted(keys):
        keys = list(keys)
        delete(keys[:1])
        raise StoreFailedError("interrupted")

    monkeypatch.setattr(store, "delete", interrupted)
    with pytest.raises(StoreFailedError, match="interrupted"):
        prune(store, STAGE, 2, 1)
    assert committed_steps(store, STAGE) == (2, 3, 4)
    monkeypatch.setattr(store, "delete", delete)
    for step in committed_steps(store, STAGE):
        load_checkpoint(store, read_manifest(store, STAGE, step))
    assert prune(store, STAGE, 2, 1) == (2,)
    assert store.list(STAGE.checkpoint(2)) == ()
    assert store.list(STAGE.checkpoint(1)) != ()  # blobs of the own attempt without a manifest may be an upload in flight
    prune(store, STAGE, 2, claim_attempt(store, 2).attempt)
    assert store.list(STAGE.checkpoint(1)) == ()
    assert [load_checkpoint(store, read_manifest(store, STAGE, step)).manifest.step for step in (3, 4)] == [3, 4]
    with pytest.raises(ValueError, match="keep_last must be at least 1, not 0"):
        prune(store, STAGE, 0, 2)


def test_rollouts_larger_than_memory_allows_are_streamed(store, monkeypatch):
    monkeypatch.setattr("rlvr_trainer.storage.rollouts.IN_MEMORY_BYTES", 100)
    monkeypatch.setattr("rlvr_trainer.storage.rollouts.ROW_GROUP_TOKENS", 10)
    groups = [group(index) for index in range(20)]
    blob = write_groups(store, STAGE.rollouts(1, 1), iter(groups))
    assert list(iterate_groups(store, blob)) == groups
