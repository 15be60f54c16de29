"""Tasks and verdicts from the verifier service.

A verdict that is `infra_error` is asked for again under the same idempotency key, never replaced by a guess: what stays unjudged is
masked later. A key that the service can no longer open (it restarted with another seal) is renewed by sampling the same task again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence

import httpx

from rlvr_api.wire import (
    CanaryVerdict,
    EnvironmentsResponse,
    SampleRequest,
    SampleResponse,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
    StepItem,
    StepRequest,
    StepResponse,
    StepResult,
    Task,
    TaskRequest,
    Verdict,
    VerdictStatus,
)
from rlvr_trainer.collector.http import RequestRefusedError, UnreachableError, post_model

MAX_CANARIES = 100_000
TASKS_AT_ONCE = 128
SCORE_ATTEMPTS = 3
"""How often an item is sent before its infra_error is final."""


class VerifierClient:
    """The verifier service over HTTP.

    Args:
        timeout_seconds: bound of one call with its retries; long enough for a verifier pod to be replaced.
    """

    def __init__(self, url: str, client: httpx.AsyncClient, timeout_seconds: float) -> None:
        self._url = url
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._canaries: deque[CanaryVerdict] = deque(maxlen=MAX_CANARIES)

    def take_canaries(self) -> tuple[CanaryVerdict, ...]:
        """Canaries that were judged since the last call; safe to ask from any thread."""
        taken = []
        while self._canaries:
            taken.append(self._canaries.popleft())
        return tuple(taken)

    async def environments(self) -> EnvironmentsResponse:
        """What the service says of the job's environments.

        Raises:
            UnreachableError: no answer in time.
        """
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            try:
                response = await self._client.get(f"{self._url}/v1/environments")
                response.raise_for_status()
                return EnvironmentsResponse.model_validate_json(response.content)
            except httpx.HTTPError as error:
                if time.monotonic() > deadline:
                    raise UnreachableError(f"{self._url}/v1/environments: {type(error).__name__} {error}") from error
                await asyncio.sleep(0.2)

    async def sample(self, request: TaskRequest) -> Task:
        """One task.

        Raises:
            RequestRefusedError, UnreachableError: as `post_model`.
        """
        return (await self.sample_all((request,)))[0]

    async def sample_all(self, requests: Sequence[TaskRequest]) -> tuple[Task, ...]:
        """Tasks in the order of the requests, some at a time: the service makes them while others wait.

        Raises:
            RequestRefusedError, UnreachableError: as `post_model`.
        """
        tasks: list[Task] = []
        for start in range(0, len(requests), TASKS_AT_ONCE):
            message = SampleRequest(items=tuple(requests[start : start + TASKS_AT_ONCE]))
            response = await post_model(self._client, f"{self._url}/v1/sample", message, SampleResponse, self._timeout_seconds)
            tasks += response.tasks
        return tuple(tasks)

    async def step(self, item: StepItem, renew: TaskRequest) -> StepResult:
        """What follows a turn. One that could not be played is sent again; after the last time its `fault` is final.

        Args:
            renew: as in `score`.
        """
        for number in range(SCORE_ATTEMPTS):
            message = StepRequest(items=(item,))
            try:
                response = await post_model(self._client, f"{self._url}/v1/step", message, StepResponse, self._timeout_seconds)
            except RequestRefusedError as error:
                if error.status != 409 or number == SCORE_ATTEMPTS - 1:
                    raise
                task = await self.sample(renew)
                item = item.model_copy(update={"task_key": task.task_key})
                continue
            if not response.results[0].fault:
                break
        return response.results[0]

    async def score(self, items: Sequence[ScoreItem], renew: TaskRequest) -> tuple[Verdict, ...]:
        """Verdicts in the order of `items`, which are completions of one task.

        Args:
            renew: the request that gave their task; sent again when the service no longer knows the task's key.
        """
        verdicts: dict[str, Verdict] = {}
        waiting = list(items)
        for _ in range(SCORE_ATTEMPTS):
            try:
                response = await post_model(
                    self._client, f"{self._url}/v1/score", ScoreRequest(items=tuple(waiting)), ScoreResponse, self._timeout_seconds
                )
            except RequestRefusedError as error:
                if error.status not in (400, 409):
                    raise
                task = await self.sample(renew)
                waiting = [item.model_copy(update={"task_key": task.task_key}) for item in waiting]
                continue
            self._canaries.extend(response.canaries)
            verdicts.update((verdict.id, verdict) for verdict in response.verdicts)
            waiting = [item for item in waiting if verdicts[item.id].status is VerdictStatus.INFRA_ERROR]
            if not waiting:
                break
        unknown = [item.id for item in items if item.id not in verdicts]
        if unknown:
            raise RequestRefusedError(f"{self._url}/v1/score", 409, f"the service opens no task key for {unknown[0]}")
        return tuple(verdicts[item.id] for item in items)
