"""Slow scorers run in killable processes, one item at a time, in the main thread of each (math-verify sets signals).

A scorer that outlasts its time is killed, which is the candidate's `timeout`. A worker that dies by itself is replaced and the item tried
once more; a second death is an `infra_error`. The queue is bounded; a full one is the caller's 429. Workers are forks of a process that has
imported what they need, so one that is replaced costs milliseconds, and not the seconds that sympy takes.
"""

import asyncio
import json
import logging
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence

from pydantic import JsonValue

from rlvr_api.spec import RLVRJobSpec
from rlvr_api.wire import StepResult, Transcript, VerdictStatus
from rlvr_verifier.environments.base import Score
from rlvr_verifier.processor_time import WALL_FACTOR, describe_limit, processor_seconds
from rlvr_verifier.scorer_forks import MAX_ANSWER_BYTES
from rlvr_verifier.worker import serve

logger = logging.getLogger(__name__)

ITEMS_PER_WORKER = 2_000
"""A worker is replaced after this many items, so that nothing in it can grow without bound."""
QUEUED_ITEMS_PER_WORKER = 2_048
LIBRARIES = {"math": "rlvr_verifier.environments.equivalence", "reasoning_gym": "reasoning_gym"}
"""What the workers of a kind of environment import, and what takes long."""
START_SECONDS = 60.0


class ScorerTimeoutError(RuntimeError):
    """The item used up `verifiers.itemTimeoutSeconds`."""


class WorkerLostError(RuntimeError):
    """A worker died twice on the same item, or could not be started."""


class ScorerFailedError(RuntimeError):
    """The scorer raised; the message says what and where, and nothing of the task."""


class PoolBusyError(RuntimeError):
    """Too many items are waiting."""


Message = tuple[str, dict[str, JsonValue], str, bool | None]
"""Environment, payload, completion, and whether that is truncated; None asks for what follows an episode's newest turn."""


class _WorkerDiedError(RuntimeError):
    """The worker's pipe closed without an answer."""


class _Worker:
    def __init__(self, job_json: str, preload: Sequence[str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
        self._pipe, child = context.Pipe()
        self.process = context.Process(target=serve, args=(child, job_json), daemon=True)
        self.process.start()
        child.close()
        self.items = 0
        self.ready = False

    def ask(self, message: Message, seconds: float) -> Score | StepResult | str:
        """Blocking: send one item and wait for its answer."""
        try:
            if not self.ready:
                if not self._pipe.poll(START_SECONDS):
                    raise _WorkerDiedError(f"not ready within {START_SECONDS:.0f} s")
                self._pipe.recv_bytes(MAX_ANSWER_BYTES)
                self.ready = True
            self._pipe.send_bytes(json.dumps(message).encode())
            self._await_answer(seconds)
            self.items += 1
            answer = json.loads(self._pipe.recv_bytes(MAX_ANSWER_BYTES))
        except (EOFError, OSError) as error:
            raise _WorkerDiedError(str(error)) from error
        if answer is None:
            raise ScorerTimeoutError(_late(seconds))
        # Plain JSON, never pickle: what a scorer was made to do by a completion must not reach this process.
        if isinstance(answer, dict):
            return StepResult.model_validate(answer)
        return answer if isinstance(answer, str) else Score(VerdictStatus(answer[0]), float(answer[1]), str(answer[2]))

    def _await_answer(self, seconds: float) -> None:
        pid = self.process.pid
        assert pid is not None
        deadline, spent = time.monotonic() + WALL_FACTOR * seconds, processor_seconds(pid) + seconds
        left = seconds
        while not self._pipe.poll(max(left, 0.001)):
            left = min(spent - processor_seconds(pid), deadline - time.monotonic())
            if left <= 0:
                raise ScorerTimeoutError(_late(seconds))

    def kill(self) -> None:
        self.process.kill()
        self.process.join(5)
        self._pipe.close()


def _late(seconds: float) -> str:
    return f"the answer could not be judged within {describe_limit(seconds)}"


class WorkerPool:
    """`verifiers.workers` processes, started when the first slow item comes."""

    def __init__(self, job_json: str, spec: RLVRJobSpec) -> None:
        self._job_json = job_json
        self._preload = [serve.__module__, *(LIBRARIES[one.kind] for one in spec.environments if one.kind in LIBRARIES)]
        self._workers = spec.verifiers.workers
        self._seconds = spec.verifiers.item_timeout_seconds
        self._idle: asyncio.LifoQueue[_Worker | None] = asyncio.LifoQueue()
        for _ in range(self._workers):
            self._idle.put_nowait(None)
        self.waiting = 0
        self._live: set[_Worker] = set()

    async def run(
        self, environment: str, payload: Mapping[str, JsonValue], completion: str, truncated: bool, begin: Callable[[], None] = lambda: None
    ) -> Score:
        """Score one item in a worker.

        Args:
            begin: called when a worker takes the item, again when another one does.

        Raises:
            ScorerTimeoutError, ScorerFailedError, WorkerLostError, PoolBusyError: see there.
        """
        found = await self._ask((environment, dict(payload), completion, truncated), begin)
        assert isinstance(found, Score)
        return found

    async def step(self, environment: str, payload: Mapping[str, JsonValue], transcript: Transcript) -> StepResult:
        """Play one step of an episode in a worker. Raises as `run`."""
        found = await self._ask((environment, dict(payload), transcript.completion, None), lambda: None)
        assert isinstance(found, StepResult)
        return found

    async def _ask(self, message: Message, begin: Callable[[], None]) -> Score | StepResult:
        if self.waiting >= QUEUED_ITEMS_PER_WORKER * self._workers:
            raise PoolBusyError(f"{self.waiting} items are waiting for {self._workers} workers; try again later")
        self.waiting += 1
        try:
            for attempt in (1, 2):
                try:
                    return await self._once(message, begin)
                except _WorkerDiedError as error:
                    logger.warning("a scorer's process died (try %d of 2): %s", attempt, error)
        finally:
            self.waiting -= 1
        raise WorkerLostError("the scorer's process died twice on this item")

    async def _once(self, message: Message, begin: Callable[[], None]) -> Score | StepResult:
        worker = await self._idle.get()
        begin()
        healthy = False
        try:
            if worker is None:
                worker = await asyncio.to_thread(_Worker, self._job_json, self._preload)
                self._live.add(worker)
            answer = await asyncio.to_thread(worker.ask, message, self._seconds)
            healthy = worker.items < ITEMS_PER_WORKER
        finally:
            if worker is not None and not healthy:
                self._live.discard(worker)
                worker.kill()
                worker = None
            self._idle.put_nowait(worker)
        if isinstance(answer, str):
            raise ScorerFailedError(answer)
        return answer

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._live:
            worker.kill()
        self._live.clear()
