"""Rollbacks of a stage: what counts afterwards, what becomes of every index, and which checkpoints are kept to go back to."""

from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_api.cli import UserError
from rlvr_api.spec import RLVRJob
from rlvr_trainer.metrics import StepMetrics
from rlvr_trainer.metrics_log import key_of, measured_steps, read_steps
from rlvr_trainer.report.page import render
from rlvr_trainer.report.records import read_step, recorded_steps
from rlvr_trainer.report.run_data import RunData
from rlvr_trainer.report.source import RunSource
from rlvr_trainer.rollout import Admission
from rlvr_trainer.storage.checkpoint_reader import committed_places, kept_steps, latest_place
from rlvr_trainer.storage.documents import Discard
from rlvr_trainer.storage.errors import AlreadyExistsError, CorruptObjectError, RolledBackError
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.manifest import CheckpointManifest, CheckpointState
from rlvr_trainer.storage.records import RecordLog, StepRecord, check_chain, read_history
from rlvr_trainer.storage.resume import plan_resume, plan_rollback
from rlvr_trainer.storage.rollback import ROLLED_BACK, RollbackRecord, newest_branch, read_rollbacks, segments

STAGE = StageKeys(0, "climb")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
BATCH = 2


class Claim:
    """Nobody contests it."""

    attempt = 1

    def check(self):
        pass


@pytest.fixture
def store(memory_store):
    def put_if_absent(key, data):
        if key in memory_store.objects:
            raise AlreadyExistsError(f"{key} is there", memory_store.objects[key])
        return memory_store.put(key, data)

    memory_store.put_if_absent = put_if_absent
    return memory_store


def open_log(store):
    log = RecordLog(store, newest_branch(store, STAGE), Claim())
    log.read_all()
    return log


def take_steps(store, count):
    """Steps that each consume two groups, discard one and leave one pending."""
    log = open_log(store)
    for _ in range(count):
        head = log.head
        pending = sorted(head.pending)
        fresh = list(range(head.cursor, head.cursor + 4 - len(pending)))
        a, b, discarded, left = [*pending, *fresh]
        log.commit(
            StepRecord(
                stage="climb",
                step=head.step + 1,
                attempt=1,
                groups=(a, b),
                rollouts=(),
                discarded=(Discard(index=discarded, reason="stale"),),
                pending=(Admission(left, "sums", 0, left),),
                cursor=head.cursor + len(fresh),
                accepted=(head.step + 1) * BATCH + 1,
                curriculum={"step": head.step + 1},
                weight_version=10 * (head.branch + 1) + head.step,
                time=NOW,
            )
        )
    return log


def roll_back(store, branch, step):
    log = open_log(store)
    plan = plan_rollback(read_history(store, STAGE), branch, step)
    return log, log.roll_back(
        RollbackRecord(
            stage="climb", branch=log.head.branch + 1, attempt=1, from_step=log.head.step, to_step=step, to_branch=branch,
            kept=plan.kept.sha256, previous="0" * 64, discarded=plan.discarded, cursor=plan.cursor, accepted=plan.accepted,
            curriculum=plan.curriculum, next_weight_version=plan.next_weight_version, reason="CanaryPaid", message="m", time=NOW,
        )
    )  # fmt: skip


def test_a_stage_goes_on_from_the_step_that_it_was_rolled_back_to(store):
    take_steps(store, 5)
    log, record = roll_back(store, 0, 2)
    old = {key: content for key, content in store.objects.items() if key.startswith("00-climb/")}
    assert [discard.index for discard in record.discarded] == list(range(6, 16))  # pending at step 2, and admitted since
    assert Counter(discard.reason for discard in record.discarded) == {ROLLED_BACK: 7, "stale": 3}
    assert (log.head.branch, log.head.step, log.head.pending) == (1, 2, frozenset())
    with pytest.raises(ValueError, match="a record in branch 0 of a stage that goes on in branch 1"):
        log.commit(StepRecord.model_validate_json(store.get(STAGE.record(3))))
    plan = plan_resume(None, read_history(store, STAGE))
    assert [step.step for step in plan.replay] == [1, 2]
    assert (plan.start_step, plan.pending, plan.discarded, plan.cursor, plan.accepted) == (3, (), (), record.cursor, 2 * BATCH)
    assert (plan.curriculum, plan.next_weight_version) == ({"step": 2}, 16)  # step 5 trained from 14, and may have published 15
    take_steps(store, 2)
    assert {key: store.objects[key] for key in old} == old
    assert [item.keys.folder for item in segments(store, STAGE)] == ["00-climb", "00-climb_01"]
    history = read_history(store, STAGE)
    assert [getattr(item.record, "step", "back") for item in history] == [1, 2, "back", 3, 4]
    assert check_chain(history).step == 4


def checkpoint(branch, step, head, **state):
    made = CheckpointState(
        step=step, weight_version=99, record_sha256=head.sha256, model="m", cursor=head.cursor, accepted=0,
        pending=tuple(Admission(index, "sums", 0, index) for index in sorted(head.pending)), **state,
    )  # fmt: skip
    return CheckpointManifest(stage="climb", stage_index=0, branch=branch, attempt=1, code_version="0", time=NOW, state=made, tensors=())


def test_the_rollback_is_the_newest_word_after_the_checkpoint_that_it_went_back_to(store):
    at_two = take_steps(store, 2).head
    take_steps(store, 3)
    log, record = roll_back(store, 0, 2)
    plan = plan_resume(checkpoint(0, 2, at_two), read_history(store, STAGE))
    assert (plan.loaded_step, plan.replay, plan.pending, plan.cursor) == (2, (), (), record.cursor)
    assert plan.next_weight_version == 100
    # An attempt that was stopped before its first step has committed the same state again, in the new branch.
    again = plan_resume(checkpoint(1, 2, log.head, curriculum={"step": "2, seen later"}), read_history(store, STAGE))
    assert (again.loaded_step, again.replay, again.curriculum) == (2, (), {"step": "2, seen later"})
    with pytest.raises(ValueError, match="the checkpoint of step 2 was trained on other records"):
        plan_resume(checkpoint(1, 2, at_two), read_history(store, STAGE))
    with pytest.raises(ValueError, match="the checkpoint of step 5 has no record: the newest record is of step 2"):
        plan_resume(checkpoint(0, 5, at_two), read_history(store, STAGE))


def test_a_second_rollback_may_go_back_beyond_the_first(store):
    take_steps(store, 4)
    roll_back(store, 0, 3)
    take_steps(store, 2)
    _, record = roll_back(store, 0, 1)
    assert (record.branch, record.from_step) == (2, 5)
    assert [(item.keys.branch, item.last_step) for item in segments(store, STAGE)] == [(0, 1), (2, None)]
    assert [(item.keys.branch, item.last_step) for item in segments(store, STAGE, branch=1)] == [(0, 3), (1, None)]
    take_steps(store, 1)
    assert check_chain(read_history(store, STAGE)).step == 2
    _, record = roll_back(store, 0, 0)
    assert (record.accepted, record.curriculum) == (0, None)
    assert {discard.index for discard in record.discarded} == set(range(record.cursor))


def test_who_comes_late_is_told_and_nothing_is_overwritten(store):
    """An older attempt rolled back between its check and its write, when this one had read the records already."""
    take_steps(store, 3)
    late = open_log(store)
    plan = plan_rollback(read_history(store, STAGE), 0, 1)
    _, record = roll_back(store, 0, 1)
    before = dict(store.objects)
    step = StepRecord.model_validate_json(store.get(STAGE.record(3)))
    following = step.model_copy(update={"step": 4, "groups": (9, 10), "discarded": (), "pending": (), "cursor": 11})
    for act in (lambda: late.commit(following), lambda: late.roll_back(record.model_copy(update={"kept": plan.kept.sha256}))):
        with pytest.raises((RolledBackError, ValueError)):
            act()
    with pytest.raises(RolledBackError, match="was rolled back by an earlier attempt"):
        late.roll_back(record.model_copy(update={"message": "other"}))
    assert store.objects == before


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"discarded": []}, "indices .* are lost"),
        ({"kept": "1" * 64}, "goes on from another record of step 2"),
        ({"to_step": 1}, "goes on from another record of step 1"),
    ],
)
def test_a_rollback_that_loses_an_index_or_goes_on_from_elsewhere_is_refused(store, change, fault):
    take_steps(store, 4)
    roll_back(store, 0, 2)
    key = StageKeys(0, "climb", 1).rollback
    record = RollbackRecord.model_validate_json(store.get(key))
    store.put(key, RollbackRecord.model_validate({**record.model_dump(), **change}).to_bytes())
    with pytest.raises(ValueError, match=fault):
        check_chain(read_history(store, STAGE))


def test_a_rollback_of_another_place_is_no_rollback(store):
    take_steps(store, 2)
    roll_back(store, 0, 1)
    store.put(StageKeys(0, "climb", 2).rollback, store.get(StageKeys(0, "climb", 1).rollback))
    with pytest.raises(CorruptObjectError, match="begins branch 1 of stage 'climb'; it was moved"):
        read_rollbacks(store, STAGE)
    store.put(StageKeys(0, "climb", 2).rollback, b"{}")
    with pytest.raises(CorruptObjectError, match="is not a rollback: stage: Field required"):
        read_rollbacks(store, STAGE)


def metrics(step, branch, attempt):
    return StepMetrics.model_validate({
        "stage": "climb", "step": step, "branch": branch, "attempt": attempt, "time": NOW, "weight_version": step, "groups": 1,
        "live_groups": 1, "rollouts": 1, "completion_tokens_mean": 1.0, "tokens_trained": 1, "loss": 0.0, "gradient_norm": 0.0,
        "learning_rate": 0.0, "phase_seconds": {}, "discarded": {}, "levels": {},
    })  # fmt: skip


def test_steps_that_were_taken_back_are_measured_no_more(store):
    take_steps(store, 4)
    for step in range(1, 5):
        record = metrics(step, 0, 1)
        store.put(key_of(record), record.to_bytes())
    roll_back(store, 0, 2)
    assert [step.step for step in read_steps(store)] == [1, 2]
    record = metrics(3, 1, 2)
    store.put(key_of(record), record.to_bytes())
    assert [(step.step, step.branch) for step in read_steps(store)] == [(1, 0), (2, 0), (3, 1)]
    assert measured_steps(store, STAGE) == {1, 2, 3}


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 40))
def test_there_is_always_a_checkpoint_from_before_the_window_and_few_are_kept(every, keep_last, window):
    committed, farthest = [], 0
    for step in range(every, 40 * every, every):
        committed = sorted(kept_steps([*committed, step], keep_last, window))
        assert committed[-keep_last:] == sorted(committed)[-keep_last:]
        assert len(committed) <= keep_last + 2
        before = [one for one in committed if one <= step - window]
        assert before or step < window + every, "one was committed before the window, and none is kept"
        farthest = max(farthest, step - before[-1] if before else 0)
    assert farthest < 2 * window + 2 * every
    assert kept_steps(committed, keep_last) == set(committed[-keep_last:])


def test_the_newest_checkpoint_is_one_that_counts(store):
    take_steps(store, 4)
    for step in (2, 4):
        store.put(STAGE.manifest(step), b"{}")
    assert latest_place(store, STAGE) == (STAGE, 4)
    roll_back(store, 0, 2)
    assert latest_place(store, [STAGE]) == (STAGE, 2)
    branch = StageKeys(0, "climb", 1)
    store.put(branch.manifest(3), b"{}")
    assert latest_place(store, STAGE) == (branch, 3)
    assert committed_places(store, STAGE) == ((STAGE, 2), (branch, 3))


def test_rollouts_that_were_taken_back_are_shown_when_asked_for(store):
    take_steps(store, 4)
    roll_back(store, 0, 2)
    take_steps(store, 1)
    source = RunSource(make_job(), store)
    assert recorded_steps(store, STAGE) == [1, 2, 3]
    assert recorded_steps(store, STAGE, branch=0) == [1, 2, 3, 4]
    assert read_step(source, 3).record.weight_version == 22
    assert read_step(source, 3, branch=0).record.weight_version == 12
    with pytest.raises(UserError, match="run arithmetic has no step 4; stage climb has steps 1 to 3"):
        read_step(source, 4)
    with pytest.raises(UserError, match="has no branch 2"):
        read_step(source, 1, branch=2)


def test_the_report_says_what_was_taken_back_and_why(store):
    take_steps(store, 3)
    _, record = roll_back(store, 0, 1)
    page = render(RunData(make_job(), [], (), (), rollbacks=(record,)), NOW)
    assert "Stage climb was rolled back from step 3 to step 1 on 2026-01-01 00:00 UTC: m" in page
    assert "Taken back" not in render(RunData(make_job(), [], (), ()), NOW)


def make_job():
    return RLVRJob.model_validate({
        "apiVersion": "rlvr.dev/v1alpha1", "kind": "RLVRJob", "metadata": {"name": "arithmetic"},
        "spec": {
            "model": {"uri": "file:///m"}, "environments": [{"name": "sums", "arithmetic": {}}],
            "stages": [{"name": "climb", "rlvr": {"steps": 9, "promptsPerStep": BATCH}}],
        },
    })  # fmt: skip
