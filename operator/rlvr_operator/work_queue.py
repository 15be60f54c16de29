"""Keys that wait for a look: each once, never looked at twice at the same time, and later again after a failure.

    add(key) -> waiting -> get() -> in work -> done(key) -> waiting again if it was added meanwhile
    retry(key) -> added after a back-off that doubles;  forget(key) -> the back-off starts anew;  add_after(key, seconds) -> added then

Keys of which something is new go before keys that are looked at for no more reason than that time has passed (`is_routine`): a new job does
not wait for a look at a thousand others. So that these are looked at some time, too, one of them follows every few of the others.
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
CONFLICT_BACKOFF = Backoff(base_seconds=0.1, maximum_seconds=5.0, jitter=0.5)
"""After a conflict: nothing is out of order, somebody was faster."""
FRESH_IN_A_ROW = 16
"""Keys with news that are looked at while routine waits."""


class WorkQueue:
    """For one event loop."""

    def __init__(self, name: str = metrics.CONTROLLER) -> None:
        self._name = name
        self._fresh: dict[Key, float] = {}
        self._routine: dict[Key, float] = {}
        self._in_a_row = 0
        self._in_work: dict[Key, float] = {}
        self._again: dict[Key, bool] = {}
        self._failures: Counter[Key] = Counter()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._wake = asyncio.Event()

    def add(self, key: Key, is_routine: bool = False) -> None:
        """Have a key looked at soon.

        Args:
            is_routine: nothing is known to be new.
        """
        self._cancel_timer(key)
        metrics.QUEUE_ADDS.labels(name=self._name).inc()
        if key in self._in_work:
            self._again[key] = is_routine and self._again.get(key, True)
        elif key not in self._fresh and not is_routine:
            self._fresh[key] = self._routine.pop(key, time.monotonic())
            self._wake.set()
        elif key not in self._fresh and key not in self._routine:
            self._routine[key] = time.monotonic()
            self._wake.set()
        self._measure()

    def add_after(self, key: Key, seconds: float, is_routine: bool = False) -> None:
        """Have a key looked at in `seconds`, or before if something else asks for it; an earlier appointment stays."""
        loop = asyncio.get_running_loop()
        timer, when = self._timers.get(key), loop.time() + max(0.0, seconds)
        if timer is None or timer.when() > when:
            self._cancel_timer(key)
            self._timers[key] = loop.call_at(when, self.add, key, is_routine)

    def retry(self, key: Key, at_least_seconds: float = 0.0, backoff: Backoff = BACKOFF) -> float:
        """Have a key looked at after a back-off; returns its seconds."""
        metrics.QUEUE_RETRIES.labels(name=self._name).inc()
        self._failures[key] += 1
        delay = max(backoff.delay_seconds(self._failures[key], random.random()), at_least_seconds)  # noqa: S311 - jitter
        self.add_after(key, delay)
        return delay

    def forget(self, key: Key) -> None:
        """The key is well: its next back-off is the shortest."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """The key that has waited longest, of those with news if there are any; waits for one."""
        while not (self._fresh or self._routine):
            self._wake.clear()
            await self._wake.wait()
        is_routine = not self._fresh or (bool(self._routine) and self._in_a_row >= FRESH_IN_A_ROW)
        waiting = self._routine if is_routine else self._fresh
        self._in_a_row = 0 if is_routine else self._in_a_row + 1
        key = next(iter(waiting))
        metrics.QUEUE_SECONDS.labels(name=self._name).observe(time.monotonic() - waiting.pop(key))
        self._in_work[key] = time.monotonic()
        self._measure()
        return key

    def done(self, key: Key) -> None:
        """The look is over."""
        started = self._in_work.pop(key)
        metrics.WORK_SECONDS.labels(name=self._name).observe(time.monotonic() - started)
        if key in self._again:
            self.add(key, self._again.pop(key))
        self._measure()

    def oldest_seconds(self) -> float:
        """Duration of the longest look under way; 0 when there is none."""
        return max((time.monotonic() - since for since in self._in_work.values()), default=0.0)

    def __len__(self) -> int:
        return len(self._fresh) + len(self._routine)

    def _cancel_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _measure(self) -> None:
        metrics.QUEUE_DEPTH.labels(name=self._name).set(len(self))
        metrics.UNFINISHED_SECONDS.labels(name=self._name).set(self.oldest_seconds())
        metrics.ACTIVE_WORKERS.labels(controller=self._name).set(len(self._in_work))
