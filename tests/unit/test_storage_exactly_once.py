"""Random kills, take-overs and zombies at every request to the store, against the real records, checkpoints and resume plan.

The store is a dictionary behind boto3's calls. The "weights" are a digest of everything trained on so far, so that any group that is
trained twice, left out or in another order shows.
"""
# ruff: noqa: N803 - boto3's names

import dataclasses
import hashlib
import io
from collections import Counter
from datetime import UTC, datetime

import torch
from botocore.exceptions import ClientError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan
from rlvr_trainer.storage.attempts import claim_attempt, newest_attempt
from rlvr_trainer.storage.checkpoint import CheckpointWriter
from rlvr_trainer.storage.checkpoint_reader import committed_places, latest_manifest, load_checkpoint, prune, read_manifest
from rlvr_trainer.storage.client import ObjectStore
from rlvr_trainer.storage.documents import Discard
from rlvr_trainer.storage.errors import RolledBackError, SupersededError
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.manifest import CheckpointState
from rlvr_trainer.storage.records import CommittedRecord, RecordLog, StepRecord, check_chain, read_history
from rlvr_trainer.storage.resume import plan_resume, plan_rollback
from rlvr_trainer.storage.rollback import ROLLED_BACK, RollbackRecord, newest_branch, read_rollbacks
from rlvr_trainer.storage.rollouts import read_groups, write_groups

STAGE = StageKeys(0, "climb")
BATCH = 2
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class KilledError(Exception):
    """The process died at this request."""


class FakeClient:
    """One process's boto3 client. `fuse` counts requests down to the process's death, before or after the request's effect."""

    def __init__(self, objects):
        self.objects, self.fuse, self.after_effect, self.dead = objects, None, False, False
        self.before_commit = None
        self.meta = type("Meta", (), {"endpoint_url": "http://fake"})()

    def _enter(self):
        if self.dead:
            raise KilledError
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0 and not self.after_effect:
                self._die()

    def _leave(self):
        if self.fuse is not None and self.fuse < 0:
            self._die()

    def _die(self):
        self.dead = True
        raise KilledError

    def put_object(self, Bucket, Key, Body, ChecksumSHA256, IfNoneMatch=None):
        if IfNoneMatch and self.before_commit:
            interrupt, self.before_commit = self.before_commit, None
            interrupt()
        self._enter()
        if IfNoneMatch and Key in self.objects:
            raise error("PreconditionFailed", 412)
        self.objects[Key] = bytes(Body)
        self._leave()

    def get_object(self, Bucket, Key, Range=None):
        self._enter()
        if Key not in self.objects:
            raise error("NoSuchKey", 404)
        start, end = map(int, Range.removeprefix("bytes=").split("-")) if Range else (0, len(self.objects[Key]) - 1)
        return {"Body": io.BytesIO(self.objects[Key][start : end + 1])}

    def head_object(self, Bucket, Key):
        self._enter()
        if Key not in self.objects:
            raise error("404", 404)
        return {"ContentLength": len(self.objects[Key])}

    def delete_objects(self, Bucket, Delete):
        self._enter()
        for entry in Delete["Objects"]:
            self.objects.pop(entry["Key"], None)
        self._leave()
        return {}

    def get_paginator(self, operation):
        return self if operation == "list_objects_v2" else type("Empty", (), {"paginate": lambda *_, **__: []})()

    def paginate(self, Bucket, Prefix, StartAfter):
        self._enter()
        keys = sorted(key for key in self.objects if key.startswith(Prefix) and key > StartAfter)
        half = len(keys) // 2
        entries = [{"Key": key, "Size": len(self.objects[key]), "ETag": '""'} for key in keys]
        return [{"Contents": entries[:half]}, {"Contents": entries[half:]}]


def error(code, status):
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "operation")


def group_of(admission, version):
    verdict = Verdict(id="a", status=VerdictStatus.PASS, score=1.0, verifier="v", verifier_version="1")
    rollout = Rollout((version, admission.index), (-1.0, -2.0), (VersionSpan(version, 0, 2),), "stop", "text", verdict)
    return RolloutGroup(admission, "0" * 16, (1,), "p", (rollout,), "rollout-0", "", 0.0, 0.0)


def train(weights, groups):
    """What weights become by training on `groups`, as 32 bytes."""
    text = repr([[group.admission.index, group.rollouts[0].token_ids] for group in groups]).encode()
    return hashlib.sha256(bytes(weights.tolist()) + text).digest()


class Learner:
    """A learner as the real one uses storage: resume, admit, finish, discard, step, checkpoint."""

    def __init__(self, objects, attempt):
        self.client = FakeClient(objects)
        self.store = ObjectStore(self.client, "bucket", "runs/job")
        self.attempt = attempt
        self.claim = claim_attempt(self.store, attempt)
        self.keys = newest_branch(self.store, STAGE)
        self.log = RecordLog(self.store, self.keys, self.claim)
        self.log.read_all()
        self.writer = CheckpointWriter(self.store, self.keys, self.claim, shard_bytes=16)
        manifest = latest_manifest(self.store, STAGE)
        plan = plan_resume(manifest, read_history(self.store, STAGE))
        assert plan.head == self.log.head
        self.pending = {admission.index: admission for admission in plan.pending}
        self.discarded, self.cursor, self.version = list(plan.discarded), plan.cursor, plan.next_weight_version
        self.step, self.weights, self.finished = plan.loaded_step, torch.zeros(32, dtype=torch.uint8), {}
        if manifest is not None:
            loaded = load_checkpoint(self.store, manifest)
            self.weights = loaded.tensors["weights"]
            self.finished = {group.admission.index: group for group in loaded.groups if group.admission.index in plan.reusable}
        for record in plan.replay:
            self._train(record)

    def admit(self):
        self.pending[self.cursor] = Admission(self.cursor, "sums", 0, self.cursor)
        self.cursor += 1

    def finish(self, choice):
        waiting = sorted(set(self.pending) - set(self.finished))
        if waiting:
            index = waiting[choice % len(waiting)]
            self.finished[index] = group_of(self.pending[index], self.version)

    def discard(self, choice):
        if self.pending:
            index = sorted(self.pending)[choice % len(self.pending)]
            del self.pending[index]
            self.finished.pop(index, None)
            self.discarded.append(Discard(index=index, reason="stale"))

    def consume(self):
        if len(self.finished) < BATCH:
            return
        groups = [self.finished.pop(index) for index in list(self.finished)[:BATCH]]
        step = self.log.head.step + 1
        blob = write_groups(self.store, self.keys.rollouts(step, self.attempt), groups)
        for group in groups:
            del self.pending[group.admission.index]
        discarded, self.discarded = self.discarded, []
        indices = [group.admission.index for group in groups]
        record = StepRecord(
            stage="climb", step=step, attempt=self.attempt, groups=indices, rollouts=[blob], discarded=discarded,
            pending=tuple(self.pending.values()), cursor=self.cursor, accepted=step * BATCH + len(self.pending),
            weight_version=self.version, time=NOW,
        )  # fmt: skip
        self._train(self.log.commit(record))

    def roll_back(self, window):
        """As `stages/rollback.py`; the attempt ends with it."""
        before = [place for place in committed_places(self.store, STAGE) if place[1] <= self.log.head.step - window]
        to_keys, to_step = before[-1] if before else (STAGE, 0)
        plan = plan_rollback(read_history(self.store, STAGE), to_keys.branch, to_step)
        self.log.roll_back(
            RollbackRecord(
                stage="climb", branch=self.keys.branch + 1, attempt=self.attempt, from_step=self.log.head.step, to_step=to_step,
                to_branch=to_keys.branch, kept=plan.kept.sha256, previous=self.log.head.sha256, discarded=plan.discarded,
                cursor=plan.cursor, accepted=plan.accepted, next_weight_version=max(plan.next_weight_version, self.version), reason="x",
                message="x", time=NOW,
            )
        )  # fmt: skip
        return to_step, plan

    def checkpoint(self, keep_last):
        state = CheckpointState(
            step=self.step, weight_version=self.version, record_sha256=self.log.head.sha256, model="m", cursor=self.cursor, accepted=0,
            pending=tuple(self.pending.values()), discarded=tuple(self.discarded),
        )  # fmt: skip
        self.writer.snapshot({"weights": self.weights, "other": torch.zeros(3)}, state, tuple(self.finished.values()))
        self.weights = self.weights.clone()
        self.writer.wait(20)
        for outcome in self.writer.take_outcomes():
            if outcome.error is not None:
                raise outcome.error
        prune(self.store, self.keys, keep_last, self.attempt)

    def _train(self, record):
        groups = [group for blob in record.rollouts for group in read_groups(self.store, blob)]
        assert tuple(group.admission.index for group in groups) == record.groups
        self.weights = torch.tensor(list(train(self.weights, groups)), dtype=torch.uint8)
        self.version += 1
        self.step = record.step


class Crashes(RuleBasedStateMachine):
    """Any number of learners, one of which believes that it is the only one."""

    @initialize()
    def start(self):
        self.objects, self.seen = {}, {}
        self.reader = ObjectStore(FakeClient(self.objects), "bucket", "runs/job")
        self.learner, self.zombies = Learner(self.objects, 1), []

    @rule(count=st.integers(1, 5))
    def admit(self, count):
        for _ in range(count):
            self.learner.admit()

    @rule(choices=st.lists(st.integers(0, 20), min_size=1, max_size=5))
    def finish(self, choices):
        for choice in choices:
            self.learner.finish(choice)

    @rule(choice=st.integers(0, 20))
    def discard(self, choice):
        self.learner.discard(choice)

    @rule(more=st.integers(0, 2))
    def consume(self, more):
        self._prepare(more)
        self._survive(self.learner.consume)

    @rule(keep_last=st.integers(1, 3), discards=st.integers(0, 2), kill=st.booleans())
    def checkpoint(self, keep_last, discards, kill):
        for _ in range(discards):
            self.learner.discard(0)
        self._survive(lambda: self.learner.checkpoint(keep_last))
        if kill:
            self.kill()

    @precondition(lambda self: self.learner.log.head.step)
    @rule(window=st.integers(1, 4))
    def roll_back(self, window):
        """The reward cannot be believed: the last steps are taken back, or the attempt dies on the way."""
        branches = len(read_rollbacks(self.reader, STAGE))
        consumed = {index for item in self._records() for index in item.record.groups}
        try:
            to_step, plan = self.learner.roll_back(window)
        except (KilledError, SupersededError, RolledBackError):
            to_step = None
        self.learner.client.dead = True
        self._take_over()
        if to_step is None:
            assert len(read_rollbacks(self.reader, STAGE)) in (branches, branches + 1)
            return
        kept = {index for item in self._records() for index in item.record.groups}
        reasons = {discard.index: discard.reason for discard in plan.discarded}
        assert (len(read_rollbacks(self.reader, STAGE)), self.learner.step) == (branches + 1, to_step)
        assert kept <= consumed
        assert all(reasons[index] == ROLLED_BACK for index in consumed - kept)
        assert not self.learner.pending

    @rule(requests=st.integers(0, 12), after_effect=st.booleans())
    def light_a_fuse(self, requests, after_effect):
        self.learner.client.fuse, self.learner.client.after_effect = requests, after_effect

    @rule()
    def kill(self):
        self.learner.client.dead = True
        self._take_over()

    @rule()
    def suspect_wrongly(self):
        """The supervisor starts a new attempt while the old one lives."""
        self.zombies.append(self.learner)
        self._take_over()

    @rule(successor_commits=st.booleans())
    def take_over_in_the_middle_of_a_commit(self, successor_commits):
        """The new attempt claims, resumes and perhaps commits between the old one's check and its conditional write."""
        old = self.learner
        self._prepare(1)

        def interrupt():
            self._take_over()
            if successor_commits:
                self._prepare(0)
                self.learner.consume()

        old.client.before_commit = interrupt
        try:
            old.consume()
            old.checkpoint(2)
        except (SupersededError, KilledError, RolledBackError):
            old.client.dead = True
        old.client.before_commit = None
        if old is not self.learner and not old.client.dead:
            self.zombies.append(old)
        elif old is self.learner and old.client.dead:
            self._take_over()

    @precondition(lambda self: self.zombies)
    @rule(data=st.data())
    def zombie_acts(self, data):
        zombie = data.draw(st.sampled_from(self.zombies))
        before = dict(self.objects)
        committed = False
        try:
            zombie.admit()
            zombie.finish(0)
            committed = len(zombie.finished) >= BATCH
            zombie.consume()
        except (SupersededError, KilledError, RolledBackError):
            committed = False
            self.zombies.remove(zombie)  # now it knows, and ends
        assert not committed, "an old attempt committed a record long after a new one had claimed"
        assert {key for key in self.objects if "/records/" in key} == {key for key in before if "/records/" in key}

    @invariant()
    def earlier_records_never_change(self):
        now = {key: content for key, content in self.objects.items() if "/records/" in key or key.endswith("ROLLBACK.json")}
        assert {key: now[key] for key in self.seen} == self.seen
        self.seen = now

    @invariant()
    def every_index_is_exactly_one_thing(self):
        committed = read_history(self.reader, STAGE)
        check_chain(committed)
        if not committed:
            return
        records = [item.record for item in committed]
        consumed = Counter(index for item in self._records() for index in item.record.groups)
        discarded = Counter(discard.index for record in records for discard in record.discarded)
        pending = Counter(admission.index for admission in records[-1].pending)
        assert consumed + discarded + pending == Counter(range(records[-1].cursor))

    @invariant()
    def checkpoints_and_learner_hold_what_the_records_say(self):
        weights = [torch.zeros(32, dtype=torch.uint8)]
        for item in self._records():
            groups = [group for blob in item.record.rollouts for group in read_groups(self.reader, blob)]
            weights.append(torch.tensor(list(train(weights[-1], groups)), dtype=torch.uint8))
        for keys, step in committed_places(self.reader, STAGE):
            loaded = load_checkpoint(self.reader, read_manifest(self.reader, keys, step))
            assert torch.equal(loaded.tensors["weights"], weights[step])
        assert torch.equal(self.learner.weights, weights[self.learner.step])

    def _records(self):
        return [item for item in read_history(self.reader, STAGE) if isinstance(item, CommittedRecord)]

    def teardown(self):
        if hasattr(self, "learner"):
            self._take_over()
            last = self.learner.log.head.step
            for _ in range(2 * BATCH):
                self.learner.admit()
            for _ in range(2 * BATCH + len(self.learner.pending)):
                self.learner.finish(0)
            self.learner.consume()
            self.learner.checkpoint(1)
            assert self.learner.log.head.step == last + 1 == latest_manifest(self.reader, STAGE).step
            self.checkpoints_and_learner_hold_what_the_records_say()

    def _prepare(self, more):
        """Enough finished groups for a batch, and some admissions beyond."""
        for _ in range(BATCH + more):
            self.learner.admit()
        for choice in range(BATCH):
            self.learner.finish(choice)

    def _survive(self, act):
        """A supervisor: whatever ends the learner, the next attempt goes on."""
        try:
            act()
        except (KilledError, SupersededError, RolledBackError):
            self.learner.client.dead = True
            self._take_over()

    def _take_over(self):
        self.learner = Learner(self.objects, newest_attempt(self.reader) + 1)


TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_lost_answer_is_no_conflict():
    """The write happened and its answer was lost: the repeated request meets its own object."""
    objects = {}
    client = FakeClient(objects)
    store = ObjectStore(client, "bucket", "")
    client.put_object("bucket", "a", b"mine", "", IfNoneMatch="*")
    assert store.put_if_absent("a", b"mine").bytes == 4
    assert objects == {"a": b"mine"}


def test_equal_states_are_equal_documents():
    state = CheckpointState(step=0, weight_version=0, record_sha256="0" * 64, model="m", cursor=0, accepted=0)
    assert CheckpointState.model_validate_json(state.to_bytes()) == state
    assert dataclasses.asdict(Admission(0, "a", 0, 0)) == {"index": 0, "environment": "a", "level": 0, "task_seed": 0}
