"""The time series in the store: each step once, whatever was killed, and never in a step's way."""

import threading
import time
from datetime import UTC, datetime

import pytest

from rlvr_trainer import metrics_log
from rlvr_trainer.metrics import StepMetrics, seconds_by_part
from rlvr_trainer.metrics_log import MetricsLog, MetricsUnreadableError, key_of, read_evaluations, read_steps
from rlvr_trainer.storage.errors import UnreachableError


def step_metrics(step, attempt=1, stage="climb", stage_index=0, **values):
    given = {"reward_mean": 0.5, "pass_rate": 0.5, **values}
    return StepMetrics(
        stage=stage, stage_index=stage_index, step=step, attempt=attempt, time=datetime(2026, 1, 1, tzinfo=UTC), weight_version=step,
        groups=4, live_groups=3, rollouts=32, tokens_trained=100, **given,
    )  # fmt: skip


class FailingStore:
    """Refuses the first writes, and can be held up."""

    def __init__(self, store, failures=0):
        self.store, self.failures, self.gate = store, failures, threading.Event()
        self.gate.set()

    def put(self, key, data):
        assert self.gate.wait(30)
        if self.failures > 0:
            self.failures -= 1
            raise UnreachableError("nobody answers")
        return self.store.put(key, data)


def test_steps_come_back_in_order_each_once_from_the_last_attempt(memory_store):
    log = MetricsLog(memory_store)
    for step in range(1, 13):
        log.write(step_metrics(step))
    for step in (11, 12, 13):
        log.write(step_metrics(step, attempt=10, loss=0.25))
    log.write(step_metrics(12, attempt=2, loss=0.75))  # an attempt that was given up, and writes late
    log.write(step_metrics(1, stage="second", stage_index=1))
    assert log.close(20)
    steps = read_steps(memory_store)
    assert [(step.stage, step.step) for step in steps] == [*(("climb", number) for number in range(1, 14)), ("second", 1)]
    assert [step.attempt for step in steps[9:13]] == [1, 10, 10, 10]
    assert steps[11].loss == 0.25
    assert read_evaluations(memory_store) == []


def test_writing_never_waits_and_failures_are_retried(memory_store, monkeypatch):
    monkeypatch.setattr(metrics_log, "FIRST_RETRY_SECONDS", 0.01)
    store = FailingStore(memory_store, failures=3)
    store.gate.clear()
    log = MetricsLog(store)
    started = time.monotonic()
    for step in range(1, 6):
        log.write(step_metrics(step))
    assert time.monotonic() - started < 5
    assert not log.flush(0.05)
    store.gate.set()
    assert log.flush(20)
    assert [step.step for step in read_steps(memory_store)] == [1, 2, 3, 4, 5]
    assert log.close(5)
    with pytest.raises(RuntimeError, match="closed"):
        log.write(step_metrics(6))


def test_a_store_that_stays_away_costs_the_oldest_records_and_close_is_bounded(memory_store, monkeypatch, caplog):
    monkeypatch.setattr(metrics_log, "MAX_PENDING", 3)
    store = FailingStore(memory_store, failures=10**9)
    log = MetricsLog(store)
    for step in range(1, 6):
        log.write(step_metrics(step))
    assert not log.close(0.1)
    assert "00000001/000001.json is dropped" in caplog.text
    assert "3 metrics records were not written" in caplog.text


def test_a_record_of_another_version_is_named(memory_store):
    record = step_metrics(7)
    memory_store.put(key_of(record), record.to_bytes().replace(b'"groups"', b'"novel"'))
    with pytest.raises(MetricsUnreadableError, match=r"00-climb/00000007/000001\.json.*groups"):
        read_steps(memory_store)


def test_numbers_that_are_none_do_not_fail_a_step():
    record = step_metrics(1, mismatch_kl=float("nan"), ess=float("inf"), loss=None)
    assert (record.mismatch_kl, record.ess, record.loss) == (None, None, None)
    assert StepMetrics.model_validate_json(record.to_bytes()) == record


def test_waiting_is_split_as_the_groups_own_times():
    record = step_metrics(
        1, phase_seconds={"wait": 4.0, "verify": 1.0, "train": 2.0, "publish": 0.5, "checkpoint": 0.25, "commit": 0.25},
        generate_seconds=3.0, score_seconds=1.0,
    )  # fmt: skip
    assert seconds_by_part(record) == {"generate": 3.0, "verify": 2.0, "train": 2.0, "sync": 0.5, "idle": 0.5}
    assert sum(seconds_by_part(record).values()) == sum(record.phase_seconds.values())
