from datetime import UTC, datetime

import pytest

from rlvr_trainer.rollout import Admission
from rlvr_trainer.storage.documents import Discard
from rlvr_trainer.storage.errors import CorruptObjectError
from rlvr_trainer.storage.manifest import CheckpointManifest, CheckpointState, parse_manifest
from rlvr_trainer.storage.records import FIRST, ChainHead, CommittedRecord, StepRecord, check_chain, check_partition, parse_record
from rlvr_trainer.storage.resume import plan_resume

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def admissions(*indices):
    return tuple(Admission(index, "sums", 0, index + 1000) for index in indices)


def record(step, groups, pending=(), discarded=(), cursor=0, previous=FIRST, weight_version=0):
    return StepRecord(
        stage="climb", step=step, attempt=1, groups=tuple(groups), rollouts=(), pending=admissions(*pending), cursor=cursor,
        discarded=tuple(Discard(index=index, reason="stale") for index in discarded), accepted=0, weight_version=weight_version, time=NOW,
        previous=previous, curriculum={"sums": {"level": step}},
    )  # fmt: skip


def chain(*records):
    committed, previous = [], FIRST
    for item in records:
        item = item.model_copy(update={"previous": previous})
        committed.append(parse_record(item.to_bytes(), "here"))
        previous = committed[-1].sha256
    return committed


def manifest(step, records, pending=(), discarded=(), cursor=0, weight_version=0):
    state = CheckpointState(
        step=step, weight_version=weight_version, record_sha256=records[step - 1].sha256 if step else FIRST, model="file:///m",
        cursor=cursor, accepted=0, pending=admissions(*pending), discarded=tuple(Discard(index=index, reason="x") for index in discarded),
        curriculum={"sums": {"level": -step}},
    )  # fmt: skip
    return CheckpointManifest(stage="climb", stage_index=0, attempt=1, code_version="0", time=NOW, state=state, tensors=())


TWO = chain(
    record(1, [1, 0], pending=[3], discarded=[2], cursor=4, weight_version=5),
    record(2, [3, 5], pending=[4, 6], cursor=7, weight_version=6),
)


def test_json_round_trip():
    original = TWO[0].record
    assert StepRecord.model_validate_json(original.to_bytes()) == original
    assert parse_record(original.to_bytes(), "here") == CommittedRecord(original, TWO[0].sha256)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        (record(2, [3, 5, 5], pending=[4, 6], cursor=7), "indices 5 are named more than once"),
        (record(2, [3, 5], pending=[5, 4, 6], cursor=7), "indices 5 are named more than once"),
        (record(2, [3, 5], pending=[6], cursor=7), "indices 4 are lost"),
        (record(2, [5, 4], pending=[6], cursor=7), "indices 3 are lost"),
        (record(2, [3, 5, 0], pending=[4, 6], cursor=7), "indices 0 are consumed or discarded before"),
        (record(2, [3, 5], pending=[4, 6, 7], cursor=7), "indices 7 are consumed or discarded before, or never admitted"),
        (record(3, [3, 5], pending=[4, 6], cursor=7), "step 3 cannot follow the record of step 1"),
    ],
)
def test_a_record_that_loses_or_doubles_an_index_is_refused(changed, fault):
    head = ChainHead().then(TWO[0])
    check_partition(head, TWO[1].record)
    with pytest.raises(ValueError, match=fault):
        check_partition(head, changed)


def test_a_chain_has_no_gap_and_no_fork():
    assert check_chain(TWO) == ChainHead(2, TWO[1].sha256, 7, frozenset({4, 6}))
    with pytest.raises(ValueError, match="step 2 cannot follow the record of step 0"):
        check_chain(TWO[1:])
    other = chain(record(1, [1, 0], pending=[3], discarded=[2], cursor=4, weight_version=99))
    with pytest.raises(ValueError, match="continues another record of step 1"):
        check_chain([other[0], TWO[1]])


def test_documents_of_a_newer_writer_are_refused_by_field():
    text = TWO[0].record.to_bytes().replace(b'"stage"', b'"novel": 1, "stage"', 1)
    with pytest.raises(CorruptObjectError, match="here is not a step record: novel: Extra inputs"):
        parse_record(text, "here")
    text = manifest(0, []).to_bytes().replace(b'"schema_version": 1', b'"schema_version": 2')
    with pytest.raises(CorruptObjectError, match="here is not a checkpoint manifest: schema_version"):
        parse_manifest(text, "here")
    with pytest.raises(CorruptObjectError, match="not a step record"):
        parse_record(b"{", "here")


def test_a_fresh_stage_starts_at_its_first_step():
    plan = plan_resume(None, [])
    assert (plan.loaded_step, plan.replay, plan.start_step, plan.pending, plan.cursor) == (0, (), 1, (), 0)
    assert (plan.curriculum, plan.next_weight_version, plan.head) == (None, 0, ChainHead())


def test_records_without_a_checkpoint_are_all_replayed():
    plan = plan_resume(None, TWO)
    assert plan.replay == (TWO[0].record, TWO[1].record)
    assert (plan.loaded_step, plan.start_step, plan.cursor, plan.reusable) == (0, 3, 7, {4, 6})
    assert plan.next_weight_version == 8  # step 2 trained from 6, and may have published 7
    assert plan.curriculum == {"sums": {"level": 2}}


def test_the_newest_word_counts():
    behind = plan_resume(manifest(1, TWO, pending=[3, 5], discarded=[4], cursor=6, weight_version=50), TWO)
    assert (behind.loaded_step, behind.replay, behind.cursor, behind.discarded) == (1, (TWO[1].record,), 7, ())
    assert behind.next_weight_version == 51
    level = plan_resume(manifest(2, TWO, pending=[6, 8], discarded=[4, 7], cursor=9), TWO)
    assert (level.replay, level.start_step, level.cursor, level.reusable) == ((), 3, 9, {6, 8})
    assert [discard.index for discard in level.discarded] == [4, 7]
    assert level.curriculum == {"sums": {"level": -2}}


def test_a_checkpoint_that_does_not_fit_its_records_is_refused():
    with pytest.raises(ValueError, match="has no record"):
        plan_resume(manifest(2, TWO, pending=[4, 6], cursor=7), TWO[:1])
    with pytest.raises(ValueError, match="loses or invents"):
        plan_resume(manifest(2, TWO, pending=[4], cursor=7), TWO)
    others = chain(record(1, [1, 0], pending=[3], discarded=[2], cursor=4), TWO[1].record)
    with pytest.raises(ValueError, match="other records"):
        plan_resume(manifest(2, others, pending=[4, 6], cursor=7), TWO)


def test_a_state_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="pending twice"):
        manifest(0, [], pending=[1, 1], cursor=2)
    with pytest.raises(ValueError, match="both pending and discarded"):
        manifest(0, [], pending=[1], discarded=[1], cursor=2)
    with pytest.raises(ValueError, match="index 2 is pending, and the cursor is only at 2"):
        manifest(0, [], pending=[2], cursor=2)
