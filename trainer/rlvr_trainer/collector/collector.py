"""Collects rollouts while the learner trains.

An asyncio loop in a thread of its own admits as many groups as the ledger allows and runs their episodes side by side. The learner's
thread takes batches and says when a step is done, which opens room for more:

    loop:    capacity -> admit -> episode -> finish | discard -> (again)
    learner: poll_batch() ... train ... step_done()

The thread shares the learner's process so that a batch needs no copy; PyTorch's kernels release the interpreter while it works.
An error that no retry can mend ends the collection and is raised in the learner's next call.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rlvr_api.integrity import Audit
from rlvr_api.off_policy import OffPolicy
from rlvr_trainer.chat import PromptTooLongError
from rlvr_trainer.collector.curriculum import HELD_OUT
from rlvr_trainer.collector.episode import Episode, EpisodeRunner, SkippedError, UnjudgedError
from rlvr_trainer.collector.ledger import TOO_LONG, UNJUDGED, Batch, GroupLedger, LedgerSnapshot
from rlvr_trainer.context import BadInputError
from rlvr_trainer.integrity.rewards import learning_reward
from rlvr_trainer.rollout import Admission, RolloutGroup

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

IDLE_SECONDS = 0.5
"""How often the loop looks for room when nothing has woken it."""
CONSECUTIVE_DISCARDS = 64
"""Groups given up in a row after which the run cannot be healthy."""


class HeldOutOnlyError(BadInputError):
    """What an environment gives for training is held out."""


class CollectionStalledError(RuntimeError):
    """No group was finished for `deadlines.stallSeconds`."""


class EventLoopThread:
    """An asyncio loop in a daemon thread, for the HTTP of this process."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, ResultT]) -> "Future[ResultT]":
        """Run a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Cancel what is running, and end the thread."""
        self.submit(_cancel_others()).result(timeout_seconds)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout_seconds)
        self._loop.close()


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def has_variance(group: RolloutGroup, audit: Audit | None = None) -> bool:
    """Whether what is learned from the judged rollouts differs, so that the group carries a gradient."""
    learned = (learning_reward(rollout.verdict, audit) for rollout in group.rollouts)
    rewards = [reward for reward in learned if reward is not None]
    return max(rewards) - min(rewards) > 1e-6


@dataclass
class CollectionTimes:
    """Where the time of finished groups went, for the status; seconds summed over groups."""

    generate_seconds: float = 0.0
    score_seconds: float = 0.0
    tokens: int = 0
    groups: int = 0


@dataclass
class Collector:
    """Keeps the ledger filled.

    Args:
        prefix: unique name of the stage in this run; begins the id of every episode.
        attempt: part of the ids, since another attempt samples other completions for the same index.
        audit: the job's `integrity.audit`.
        restored: outstanding admissions of an earlier attempt without a finished group; they are run first.
    """

    ledger: GroupLedger
    runner: EpisodeRunner
    loop: EventLoopThread
    prefix: str
    attempt: int
    stall_seconds: float
    audit: Audit | None = None
    restored: Sequence[Admission] = ()
    times: CollectionTimes = field(default_factory=CollectionTimes)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._discards_in_a_row = 0
        self._waiting_since = 0.0
        self._last_finish = time.monotonic()
        self._wake = asyncio.Event()
        self._main = self.loop.submit(self._collect())

    def poll_batch(self, staleness: Callable[[RolloutGroup], int], wait_seconds: float) -> Batch | None:
        """The next batch, or None when there is none within `wait_seconds`.

        Raises:
            CollectionStalledError: nothing was finished since the first poll for this batch, for too long.
            Exception: what ended the collection.
        """
        with self._changed:
            self._waiting_since = self._waiting_since or time.monotonic()
            batch = self._take(staleness)
            if batch is None:
                self._changed.wait(wait_seconds)
                batch = self._take(staleness)
            if batch is None:
                self._check_progress(self._waiting_since)
                return None
            self._waiting_since = 0.0
        self._wake_up()
        return batch

    def _take(self, staleness: Callable[[RolloutGroup], int]) -> Batch | None:
        if self._error is not None:
            raise self._error
        return self.ledger.take(staleness)

    def step_done(self) -> None:
        """An optimizer step is done: the ledger has room for more."""
        with self._changed:
            self.ledger.step += 1
        self._wake_up()

    def govern(self, off_policy: OffPolicy) -> None:
        """Admit and drop by these bounds from now on."""
        with self._changed:
            self.ledger.off_policy = off_policy

    def snapshot(self) -> LedgerSnapshot:
        """The ledger at one moment."""
        with self._changed:
            return self.ledger.snapshot()

    def close(self) -> None:
        """Stop collecting; groups under way are abandoned and stay outstanding."""
        self._main.cancel()

    def _wake_up(self) -> None:
        self.loop.submit(self._set_wake())

    async def _set_wake(self) -> None:
        self._wake.set()

    async def _collect(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for admission in self.restored:
                    tasks.create_task(self._run(admission))
                while True:
                    for admission in self._admit():
                        tasks.create_task(self._run(admission))
                    self._wake.clear()
                    try:
                        async with asyncio.timeout(IDLE_SECONDS):  # `wait_for` of Python 3.11 swallows a cancellation that meets a wake
                            await self._wake.wait()
                    except TimeoutError:
                        continue
        except BaseExceptionGroup as group:
            self._fail(group.exceptions[0])

    def _admit(self) -> list[Admission]:
        with self._changed:
            return [self.ledger.admit() for _ in range(self.ledger.capacity())]

    async def _run(self, admission: Admission) -> None:
        stage = self.ledger.stage
        episode = Episode(
            id=f"{self.prefix}/{self.attempt}/{admission.index}",
            admission=admission,
            split="train",
            samples=stage.group_size,
            # Ordered runs draw the same numbers in every attempt.
            seed=self.ledger.schedule.sampling_seed(admission.index, 0 if stage.ordered else self.attempt),
            reason_to_skip=lambda problem_id: self._reason_to_skip(problem_id, admission.index),
        )
        try:
            group = await self.runner.run(episode)
        except SkippedError as error:
            self._skip(admission, error)
            return
        except PromptTooLongError as error:
            self._discard(admission, TOO_LONG, error)
            return
        except UnjudgedError as error:
            self._discard(admission, UNJUDGED, error)
            return
        with self._changed:
            self.ledger.finish(group, zero_variance=not has_variance(group, self.audit))
            self.times.groups += 1
            self.times.generate_seconds += group.generate_seconds
            self.times.score_seconds += group.score_seconds
            self.times.tokens += sum(rollout.sampled_tokens for rollout in group.rollouts)
            self._discards_in_a_row = 0
            self._last_finish = time.monotonic()
            self._changed.notify_all()
        self._wake.set()

    def _reason_to_skip(self, problem_id: str, index: int) -> str | None:
        with self._changed:
            return self.ledger.curriculum.reason_to_skip(problem_id, index)

    def _skip(self, admission: Admission, error: SkippedError) -> None:
        """Give up an index of which nothing was sampled. This is no fault, unless it goes on: held-out problems alone, for example."""
        with self._changed:
            self.ledger.discard(admission.index, error.reason)
            if error.reason == HELD_OUT:
                self._discards_in_a_row += 1
                if self._discards_in_a_row >= CONSECUTIVE_DISCARDS:
                    raise HeldOutOnlyError(
                        f"{self._discards_in_a_row} tasks in a row, the last of {admission.environment}, are held-out ones of this job: "
                        "its training tasks are what another environment is measured on; take one of the two out"
                    )
        self._wake.set()

    def _discard(self, admission: Admission, reason: str, error: Exception) -> None:
        logger.warning("group %d of %s is discarded (%s): %s", admission.index, self.prefix, reason, error)
        with self._changed:
            self.ledger.discard(admission.index, reason)
            self._discards_in_a_row += 1
            if self._discards_in_a_row >= CONSECUTIVE_DISCARDS or self.ledger.stage.ordered:
                raise error
        self._wake.set()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _check_progress(self, started: float) -> None:
        waited = time.monotonic() - max(started, self._last_finish)
        if waited > self.stall_seconds:
            raise CollectionStalledError(
                f"no group was finished for {waited:.0f} s (deadlines.stallSeconds); {len(self.ledger.outstanding)} are outstanding: "
                "look at the logs of the engines and the verifier"
            )
