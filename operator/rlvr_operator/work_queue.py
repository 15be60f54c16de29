"""Keys that wait for a look: each once, never looked at twice at the same time, and later again after a failure.

add(key) -> waiting -> get() -> in work -> done(key) -> waiting again if it was added meanwhile
retry(key) -> added after a back-off that doubles;  forget(key) -> the back-off starts anew;  add_after(key, seconds) -> added then
"""

import asyncio
import random
import time
from collections import Counter

from rlvr_operator import metrics
from rlvr_operator.backoff import Backoff

Key = tuple[str, str]
"""Namespace and name of a job."""

MAXIMUM_SECONDS = 300.0
BACKOFF = Backoff(base_seconds=0.25, maximum_seconds=MAXIMUM_SECONDS)


class WorkQueue:
    """For one event loop."""

    def __init__(self, name: str = metrics.CONTROLLER) -> None:
        self._name = name
        self._waiting: dict[Key, float] = {}
        self._in_work: dict[Key, float] = {}
        self._again: set[Key] = set()
        self._failures: Counter[Key] = Counter()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._wake = asyncio.Event()

    def add(self, key: Key) -> None:
        """Have a key looked at soon."""
        self._cancel_timer(key)
        metrics.QUEUE_ADDS.labels(name=self._name).inc()
        if key in self._in_work:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting[key] = time.monotonic()
            self._wake.set()
        self._measure()

    def add_after(self, key: Key, seconds: float) -> None:
        """Have a key looked at in `seconds`, or before if something else asks for it; an earlier appointment stays."""
        loop = asyncio.get_running_loop()
        timer, when = self._timers.get(key), loop.time() + max(0.0, seconds)
        if timer is None or timer.when() > when:
            self._cancel_timer(key)
            self._timers[key] = loop.call_at(when, self.add, key)

    def retry(self, key: Key, at_least_seconds: float = 0.0) -> float:
        """Have a key looked at after a back-off; returns its seconds."""
        metrics.QUEUE_RETRIES.labels(name=self._name).inc()
        self._failures[key] += 1
        delay = max(BACKOFF.delay_seconds(self._failures[key], random.random()), at_least_seconds)  # noqa: S311 - jitter
        self.add_after(key, delay)
        return delay

    def forget(self, key: Key) -> None:
        """The key is well: its next back-off is the shortest."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """The key that has waited longest; waits for one."""
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()
        key, since = next(iter(self._waiting.items()))
        del self._waiting[key]
        self._in_work[key] = time.monotonic()
        metrics.QUEUE_SECONDS.labels(name=self._name).observe(time.monotonic() - since)
        self._measure()
        return key

    def done(self, key: Key) -> None:
        """The look is over."""
        started = self._in_work.pop(key)
        metrics.WORK_SECONDS.labels(name=self._name).observe(time.monotonic() - started)
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        self._measure()

    def oldest_seconds(self) -> float:
        """Duration of the longest look under way; 0 when there is none."""
        return max((time.monotonic() - since for since in self._in_work.values()), default=0.0)

    def __len__(self) -> int:
        return len(self._waiting)

    def _cancel_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _measure(self) -> None:
        metrics.QUEUE_DEPTH.labels(name=self._name).set(len(self._waiting))
        metrics.UNFINISHED_SECONDS.labels(name=self._name).set(self.oldest_seconds())
        metrics.ACTIVE_WORKERS.labels(controller=self._name).set(len(self._in_work))
