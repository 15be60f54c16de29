"""The time series of a run in the object store, so that a report can be made of a run that is over, was killed or was resumed.

    learner -> write() -> queue -> one thread -> one small object a step -> read_steps() -> each step once

S3 has no append, so each step is an object of its own, `metrics/steps/<stage>/<step>/<attempt>.json`, and a kill loses at most what
is still in the queue. Attempts never overwrite one another; of several that took the same step, the last one counts. Writing never blocks
or fails a step: it is retried until it succeeds, and when the store stays away, the oldest of `MAX_PENDING` records is dropped, loudly.

Not covered: runs of a hundred thousand steps and more, whose objects would have to be folded together to be read quickly.
"""

import logging
import re
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from pydantic import ValidationError

from rlvr_trainer.metrics import (
    EvaluationCell,
    EvaluationResult,
    PairedDifference,
    Phase,
    StepMetrics,
    paired_difference,
    summarize_evaluation,
)
from rlvr_trainer.storage.errors import StorageError
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.rollback import Reader, segments

__all__ = [
    "EvaluationCell", "EvaluationResult", "MetricsLog", "MetricsUnreadableError", "PairedDifference", "Phase", "StepMetrics",
    "paired_difference", "read_evaluations", "read_steps", "summarize_evaluation",
]  # fmt: skip

logger = logging.getLogger(__name__)

STEPS = "metrics/steps/"
EVALUATIONS = "metrics/evaluations/"
MAX_PENDING = 1024
FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
READ_CONCURRENCY = 8

DocumentT = TypeVar("DocumentT", StepMetrics, EvaluationResult)


class MetricsUnreadableError(ValueError):
    """A record in the store is not one that this version wrote; the message names the object."""


class WritableStore(Protocol):
    """What writing needs of an object store."""

    def put(self, key: str, data: bytes) -> object:
        """Write an object, over one that is there."""
        ...


class MetricsLog:
    """Writes records in the background; safe to use from any thread.

    Args:
        store: the job's part of the object store. The thread ends with `close`, or with the process.
    """

    def __init__(self, store: WritableStore) -> None:
        self._store = store
        self._pending: deque[tuple[str, bytes]] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-log", daemon=True)
        self._thread.start()

    def write(self, record: StepMetrics | EvaluationResult) -> None:
        """Queue a record and return at once.

        Raises:
            RuntimeError: the log is closed.
        """
        if self._closing.is_set():
            raise RuntimeError("the metrics log is closed; write before close()")
        with self._changed:
            if len(self._pending) >= MAX_PENDING:
                key, _ = self._pending.popleft()
                logger.error("metrics record %s is dropped: %d wait already because the store does not take them", key, MAX_PENDING)
            self._pending.append((key_of(record), record.to_bytes()))
            self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything written so far is in the store; False when that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending, timeout_seconds)

    def close(self, timeout_seconds: float = 10.0) -> bool:
        """Flush and end the thread, within `timeout_seconds`; False when records were left behind."""
        flushed = self.flush(timeout_seconds)
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(1.0 if flushed else 0.0)
        if not flushed:
            logger.error("%d metrics records were not written within %.0f s and are lost", len(self._pending), timeout_seconds)
        return flushed

    def _run(self) -> None:
        wait_seconds = FIRST_RETRY_SECONDS
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing.is_set())
                if self._closing.is_set():
                    return
                key, data = self._pending[0]
            try:
                self._store.put(key, data)
            except (StorageError, OSError) as error:
                logger.warning("metrics record %s is not written yet, next try in %.1f s: %s", key, wait_seconds, error)
                self._closing.wait(wait_seconds)
                wait_seconds = min(wait_seconds * 2, LONGEST_RETRY_SECONDS)
                continue
            wait_seconds = FIRST_RETRY_SECONDS
            with self._changed:
                if self._pending and self._pending[0][0] == key:  # not when it was dropped meanwhile
                    self._pending.popleft()
                self._changed.notify_all()


def key_of(record: StepMetrics | EvaluationResult) -> str:
    """Key of a record below the job's prefix; keys sort by stage, step and attempt."""
    kind = STEPS if isinstance(record, StepMetrics) else EVALUATIONS
    folder = StageKeys(record.stage_index, record.stage, record.branch).folder
    return f"{kind}{folder}/{record.step:08d}/{record.attempt:06d}.json"


def measured_steps(store: Reader, stage: StageKeys) -> frozenset[int]:
    """Steps of a stage that count and have a record, of any attempt."""
    return _known_steps(store, STEPS, stage)


def evaluated_steps(store: Reader, stage: StageKeys) -> frozenset[int]:
    """Steps of a stage that count and after which an evaluation was made, by any attempt."""
    return _known_steps(store, EVALUATIONS, stage)


def _known_steps(store: Reader, kind: str, stage: StageKeys) -> frozenset[int]:
    return frozenset(
        step
        for segment in segments(store, stage)
        for key in store.list(f"{kind}{segment.keys.folder}/")
        if segment.holds(step := _position(key)[1])
    )


def read_steps(store: Reader) -> list[StepMetrics]:
    """Every step of the run once, in order: the record of the last attempt that took it.

    Raises:
        MetricsUnreadableError: a record is damaged or of another version.
    """
    return _read(store, STEPS, StepMetrics)


def read_evaluations(store: Reader) -> list[EvaluationResult]:
    """Every evaluation of the run once, in order: that of the last attempt that made it.

    Raises:
        MetricsUnreadableError: a record is damaged or of another version.
    """
    return _read(store, EVALUATIONS, EvaluationResult)


def _read(store: Reader, prefix: str, document: type[DocumentT]) -> list[DocumentT]:
    found = store.list(prefix)
    strange = next((key for key in found if re.fullmatch(r".+/\d+\.json", key) is None), None)
    if strange is not None:
        raise MetricsUnreadableError(f"{strange} is no metrics record; move it away")
    newest: dict[str, tuple[int, str]] = {}
    for key in _counting(store, found):
        folder, _, attempt = key.removesuffix(".json").rpartition("/")
        newest[folder] = max(newest.get(folder, (-1, "")), (int(attempt), key))
    keys = sorted((key for _, key in newest.values()), key=_position)
    with ThreadPoolExecutor(READ_CONCURRENCY, thread_name_prefix="metrics-read") as pool:
        return list(pool.map(lambda key: _parse(key, store.get(key), document), keys))


def _counting(store: Reader, keys: Sequence[str]) -> list[str]:
    """Keys of steps that no rollback has taken back."""
    found = {key: StageKeys.parse(key.split("/", 2)[2]) for key in keys if key.count("/") > 2}
    counting = {
        segment.keys: segment
        for trunk in {stage.trunk for stage in found.values() if stage is not None}
        for segment in segments(store, trunk)
    }

    def counts(key: str) -> bool:
        stage = found.get(key)
        return stage is None or (stage in counting and counting[stage].holds(_position(key)[1]))

    return [key for key in keys if counts(key)]


def _parse(key: str, content: bytes, document: type[DocumentT]) -> DocumentT:
    try:
        return document.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise MetricsUnreadableError(
            f"{key} is not a record that this version can read: {place}: {first['msg']}; read it with the version that wrote it"
        ) from None


def _position(key: str) -> tuple[int, int]:
    *_, stage, step, _name = key.split("/")
    return int(stage.partition("-")[0]), int(step)
