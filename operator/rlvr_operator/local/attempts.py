"""Keeps the learner running: numbered attempts, each of which resumes from the last committed checkpoint.

    next attempt number written to disk -> start -> progress polled -> ended: by exit code done, refused, superseded, or another attempt

Its budget counts attempts in a row that finished no step, so a run of weeks is not ended by its fourth crash.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import httpx
from pydantic import ValidationError

from rlvr_api.process import ExitCode
from rlvr_api.status import Progress, Termination
from rlvr_operator.backoff import DEFAULT_BACKOFF, Backoff
from rlvr_operator.local.process import Child, ChildSpec, start_child
from rlvr_operator.local.supervision import BadInputError, BudgetExhaustedError, EventSink, ending

POLL_SECONDS = 0.5
POLL_TIMEOUT_SECONDS = 5.0


class SupersededError(Exception):
    """Another attempt, started elsewhere, has committed to the same storage."""


class UntrustworthyRewardError(Exception):
    """The learner has paused the job, since its reward cannot be believed."""


class LearnerKeeper:
    """Runs attempts of the learner until it is done.

    Args:
        begin: allots and persists the next attempt number and returns it with what to start.
        may_start: waits, before each attempt, for what the learner cannot do without.
        limit: failed attempts in a row without a finished step.
        silence_seconds: longest time without an answer of its status endpoint.
        last_progress: what an attempt left behind when it ended in order.
        on_progress: told whatever it says of itself.
    """

    def __init__(
        self,
        begin: Callable[[], tuple[int, ChildSpec]],
        may_start: Callable[[], Awaitable[None]],
        run_marker: str,
        limit: int,
        silence_seconds: float,
        client: httpx.AsyncClient,
        emit: EventSink,
        backoff: Backoff = DEFAULT_BACKOFF,
        last_progress: Callable[[], Progress | None] = lambda: None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._on_progress = on_progress
        self._last_progress = last_progress
        self._begin, self._may_start, self._run_marker, self._limit = begin, may_start, run_marker, limit
        self._silence_seconds, self._client, self._emit, self._backoff = silence_seconds, client, emit, backoff
        self._child: Child | None = None
        self._first_step: int | None = None
        self._stopping = False
        self.ready = asyncio.Event()
        """Set while its status endpoint answers."""
        self.was_ready = asyncio.Event()
        """Set once it has answered for the first time."""
        self.progress: Progress | None = None
        """What it last said."""
        self.attempt = 0
        self.failures = 0
        """Failed attempts in a row without a finished step."""
        self.restarts = 0
        self.last_termination: Termination | None = None

    @property
    def pid(self) -> int | None:
        """Process id, while it runs."""
        return None if self._child is None else self._child.pid

    async def run(self) -> None:
        """Runs attempts until one is done, or `stop` was called.

        Raises:
            BadInputError: the job cannot run as written.
            BudgetExhaustedError: too many attempts in a row finished no step.
            SupersededError: another attempt has committed.
            UntrustworthyRewardError: it has paused the job.
        """
        while not self._stopping:
            await self._may_start()
            if self._stopping:
                return
            self.attempt, spec = self._begin()
            child = self._child = await start_child(spec, self._run_marker, self.attempt)
            if self._stopping:
                child.kill()
            self._emit(f"learner: attempt {self.attempt} started")
            code, why = await self._watch_over(child)
            self._child = None
            self.ready.clear()
            if code in (ExitCode.DONE, ExitCode.SUSPENDED, ExitCode.UNTRUSTWORTHY):
                self.progress = self._last_progress() or self.progress
            if code == ExitCode.DONE or self._stopping:
                return
            await self._recover(child, code, why)

    async def stop(self, grace_seconds: float) -> int | None:
        """Asks it to commit and end: SIGTERM, then SIGKILL after `grace_seconds`; returns its exit code, None if none ran."""
        self._stopping = True
        return None if self._child is None else await self._child.stop(grace_seconds)

    def interrupt(self) -> None:
        """SIGKILL, now. No further attempt is made."""
        self._stopping = True
        if self._child is not None:
            self._child.kill()

    async def _watch_over(self, child: Child) -> tuple[int, str]:
        self._first_step = None
        ended = asyncio.ensure_future(child.wait())
        polled = asyncio.ensure_future(self._poll(child.spec.readiness_url))
        try:
            await asyncio.wait({ended, polled}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                polled.result()
                child.kill()
                return await ended, f"did not answer for {self._silence_seconds:.0f} s, and was killed"
            return ended.result(), ""
        finally:
            for task in (ended, polled):
                task.cancel()
            await asyncio.gather(ended, polled, return_exceptions=True)

    async def _poll(self, url: str) -> None:
        """Keeps `progress` fresh; returns after too long a silence."""
        heard = time.monotonic()
        while time.monotonic() - heard < self._silence_seconds:
            progress = await read_progress(self._client, url)
            if progress is not None:
                heard = time.monotonic()
                self._first_step = progress.step if self._first_step is None else self._first_step
                self.progress = progress
                self._on_progress(progress)
                self.ready.set()
                self.was_ready.set()
            await asyncio.sleep(POLL_SECONDS)

    async def _recover(self, child: Child, code: int, why: str) -> None:
        """Waits out the back-off before the next attempt; raises where there is none."""
        last_line = child.last_line()
        self.last_termination = Termination(exit_code=code, message=last_line, time=datetime.now(UTC))
        if code == ExitCode.BAD_INPUT:
            raise BadInputError(last_line or "the learner ended with exit code 2 without a word")
        if code == ExitCode.UNTRUSTWORTHY:
            raise UntrustworthyRewardError(last_line or "the learner paused the job: its reward cannot be believed")
        if code == ExitCode.SUPERSEDED:
            raise SupersededError(last_line or "a newer attempt of this job has committed; look for another run of it on the same storage")
        advanced = self._first_step is not None and self.progress is not None and self.progress.step > self._first_step
        self.failures = 1 if advanced else self.failures + 1
        story = f"learner: attempt {self.attempt} {why or 'ended ' + ending(code, last_line)}"
        if self.failures > self._limit:
            raise BudgetExhaustedError(
                f"{story} ({self.failures} attempts in a row finished no step; failurePolicy.maxLearnerRestarts is {self._limit}; "
                f"its log is {child.spec.log_file})"
            )
        delay = self._backoff.delay_seconds(self.failures, random.random())  # noqa: S311 - jitter
        self._emit(f"{story}; the next attempt starts in {delay:.1f} s from the last checkpoint")
        self.restarts += 1
        await asyncio.sleep(delay)


async def read_progress(client: httpx.AsyncClient, url: str) -> Progress | None:
    """What the learner says at `url`; None while it does not answer in the agreed form."""
    try:
        async with asyncio.timeout(POLL_TIMEOUT_SECONDS):
            response = await client.get(url, timeout=POLL_TIMEOUT_SECONDS)
        return Progress.model_validate_json(response.content) if response.status_code == httpx.codes.OK else None
    except (httpx.HTTPError, TimeoutError, ValidationError):
        return None
