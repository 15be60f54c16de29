"""Keeps one process running: start, readiness, liveness, restart with back-off within a budget.

    start -> ready (HTTP 200 within a deadline) -> watched -> ended or unresponsive -> leftovers swept -> back-off -> start ...

Engines, the verifier service and the S3 server are kept by a `Supervisor` each; the learner, whose restarts are numbered attempts, by
`rlvr_operator.local.attempts`, on the same pieces.
"""

import asyncio
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import httpx

from rlvr_api.process import ExitCode
from rlvr_api.status import Termination
from rlvr_operator.backoff import DEFAULT_BACKOFF, Backoff
from rlvr_operator.local.process import Child, ChildSpec, start_child


class BadInputError(Exception):
    """A process refused its input with exit code 2; the message is its last line."""


class BudgetExhaustedError(Exception):
    """A process failed more often than the job's failure policy allows."""


class EventSink(Protocol):
    """Takes one line for the person who watches."""

    def __call__(self, text: str, /) -> None: ...


@dataclass(frozen=True)
class Watch:
    """How readiness and liveness are asked for."""

    ready_within_seconds: float
    """Longest time from start to ready."""
    poll_seconds: float = 0.25
    """Between questions before it is ready."""
    check_seconds: float = 5.0
    """Between questions once it is ready."""
    timeout_seconds: float = 10.0
    """Of one question."""
    strikes: int = 6
    """Questions in a row without an answer before a ready process counts as wedged."""


REPORT_AGE_SECONDS = 15.0
"""What is said of a process that became ready so recently may be meant of the one before it."""
SETTLED_SECONDS = 60.0
"""A process that was ready for this long starts over with the shortest back-off."""


@dataclass
class Streak:
    """Failures in a row, counted two ways."""

    limit: int
    """Failures in a row without becoming ready that the failure policy allows."""
    unready: int = 0
    """Without becoming ready: what the budget counts."""
    unsettled: int = 0
    """Without staying ready for `SETTLED_SECONDS`: what the back-off grows with, so that a crash loop that gets ready slows down too."""

    def record(self, ready_seconds: float | None) -> bool:
        """Counts one failure, after the process was ready for so long (None: never); returns whether the budget allows another start."""
        self.unready = 1 if ready_seconds is not None else self.unready + 1
        self.unsettled = 1 if ready_seconds is not None and ready_seconds >= SETTLED_SECONDS else self.unsettled + 1
        return self.unready <= self.limit


async def answers(client: httpx.AsyncClient, url: str, timeout_seconds: float) -> bool:
    """Whether GET `url` answers 200 in time."""
    try:
        async with asyncio.timeout(timeout_seconds):
            return (await client.get(url, timeout=timeout_seconds)).status_code == httpx.codes.OK
    except (httpx.HTTPError, TimeoutError):
        return False


class Supervisor:
    """Keeps one process running until `stop`.

    Args:
        spec: called for each start, so that a later start may differ (other ports).
        run_marker: marker of the run.
        limit: restarts in a row without becoming ready.
        emit: takes one line for each event.
    """

    def __init__(
        self,
        spec: Callable[[], ChildSpec],
        run_marker: str,
        limit: int,
        watch: Watch,
        client: httpx.AsyncClient,
        emit: EventSink,
        backoff: Backoff = DEFAULT_BACKOFF,
    ) -> None:
        self._spec, self._run_marker, self._watch, self._client, self._emit, self._backoff = spec, run_marker, watch, client, emit, backoff
        self._streak = Streak(limit)
        self._child: Child | None = None
        self._ready_since: float | None = None
        self._condemned = ""
        self._stopping = False
        self.ready = asyncio.Event()
        """Set while the process answers."""
        self.was_ready = asyncio.Event()
        """Set once it has answered for the first time."""
        self.restarts = 0
        self.last_termination: Termination | None = None

    @property
    def pid(self) -> int | None:
        """Process id, while it runs."""
        return None if self._child is None else self._child.pid

    async def run(self) -> None:
        """Keeps the process running; returns after `stop`.

        Raises:
            BadInputError: it refused its input before it was ever ready.
            BudgetExhaustedError: it failed too often.
        """
        number = 0
        while not self._stopping:
            number += 1
            child = self._child = await start_child(self._spec(), self._run_marker, number)
            if self._stopping:  # asked for while the process was being made
                child.kill()
            code, why = await self._watch_over(child)
            self._child = None
            self.ready.clear()
            if self._stopping:
                return
            await self._recover(child, code, why)

    async def stop(self, grace_seconds: float) -> None:
        """Ends the process: SIGTERM, then SIGKILL after `grace_seconds`. It is not started again."""
        self._stopping = True
        if self._child is not None:
            await self._child.stop(grace_seconds)

    def restart(self, why: str) -> None:
        """Ends the process because it `why`; it is started again. One that is not ready, or only just, is left as it is."""
        if self._child is None or self._ready_since is None or time.monotonic() - self._ready_since < REPORT_AGE_SECONDS:
            return
        self._condemned = why
        self._child.kill()

    def interrupt(self) -> None:
        """SIGKILL, now. It is not started again."""
        self._stopping = True
        if self._child is not None:
            self._child.kill()

    async def _watch_over(self, child: Child) -> tuple[int, str]:
        """Waits until the process ended, or kills it when it does not answer; returns its exit code, and why it was killed."""
        self._ready_since, self._condemned = None, ""
        ended = asyncio.ensure_future(child.wait())
        asked = asyncio.ensure_future(self._ask(child.spec))
        try:
            await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                child.kill()
            return await ended, asked.result() if asked.done() else self._condemned
        finally:
            for task in (ended, asked):
                task.cancel()
            await asyncio.gather(ended, asked, return_exceptions=True)

    async def _ask(self, spec: ChildSpec) -> str:
        """Asks until there is no answer any more; returns what was missing."""
        deadline = time.monotonic() + self._watch.ready_within_seconds
        while not await answers(self._client, spec.readiness_url, self._watch.timeout_seconds):
            if time.monotonic() > deadline:
                return f"was not ready within {self._watch.ready_within_seconds:.0f} s"
            await asyncio.sleep(self._watch.poll_seconds)
        self._ready_since = time.monotonic()
        self.ready.set()
        self.was_ready.set()
        self._emit(f"{spec.name} is ready")
        strikes = 0
        while strikes < self._watch.strikes:
            await asyncio.sleep(self._watch.check_seconds)
            strikes = 0 if await answers(self._client, spec.readiness_url, self._watch.timeout_seconds) else strikes + 1
        return f"did not answer {strikes} times in a row"

    async def _recover(self, child: Child, code: int, why: str) -> None:
        """Waits out the back-off before the next start; raises where there is none."""
        name = child.spec.name
        last_line = child.last_line()
        self.last_termination = Termination(exit_code=code, message=last_line, time=datetime.now(UTC))
        if code == ExitCode.BAD_INPUT and not self.was_ready.is_set():
            raise BadInputError(f"{name}: {last_line or 'exit code 2 without a word'}")
        story = f"{why}, and was killed" if why else f"ended {ending(code, last_line)}"
        ready_seconds = None if self._ready_since is None else time.monotonic() - self._ready_since
        if not self._streak.record(ready_seconds):
            raise BudgetExhaustedError(
                f"{name} {story} (failed {self._streak.unready} times in a row without becoming ready; failurePolicy.maxRoleRestarts is "
                f"{self._streak.limit}; its log is {child.spec.log_file})"
            )
        delay = self._backoff.delay_seconds(self._streak.unsettled, random.random())  # noqa: S311 - jitter
        self._emit(f"{name} {story}; starting it again in {delay:.1f} s")
        self.restarts += 1
        await asyncio.sleep(delay)


def ending(code: int, last_line: str) -> str:
    """How a process ended, in words; a process that was killed had no last words."""
    if code == -signal.SIGKILL:
        return "by signal 9"
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return f"{how}: {last_line}" if last_line else how
