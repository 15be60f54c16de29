"""Samples tasks and judges completions: the part of the service that knows no HTTP.

    sample: environment -> task -> payload sealed into the key
    score:  id seen? -> open the key -> size gate -> environment (here, in a worker, in a slot, or elsewhere) -> verdict -> remembered by id

An exception of a scorer is an `infra_error`, logged; it is never a zero, and never remembered. Its own words go nowhere: they may quote
the answer.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from pydantic import JsonValue

from rlvr_api.spec import RLVRJobSpec
from rlvr_api.wire import (
    MAX_COMPLETION_BYTES,
    CanaryVerdict,
    EnvironmentInfo,
    EnvironmentsResponse,
    ScoreItem,
    StepItem,
    StepResult,
    Task,
    TaskRequest,
    Verdict,
    VerdictStatus,
)
from rlvr_verifier.environments.base import Environment, NoSuchTaskError, Place, Score, UnjudgedError, invalid
from rlvr_verifier.environments.episodes import Interactive, step, turns_of
from rlvr_verifier.faults import fault
from rlvr_verifier.instruments import Instruments, QueueTicket
from rlvr_verifier.integrity.auditors import open_auditors
from rlvr_verifier.integrity.traffic import IntegrityTraffic
from rlvr_verifier.pool import PoolBusyError, ScorerFailedError, ScorerTimeoutError, WorkerLostError, WorkerPool
from rlvr_verifier.sandbox.pool import SandboxError
from rlvr_verifier.sandboxed import SandboxedScorers
from rlvr_verifier.seal import Seal
from rlvr_verifier.threads import ScorerThreads

logger = logging.getLogger(__name__)

POOLED = (Place.WORKER, Place.FORK)
REMEMBERED_VERDICTS = 4096
"""For requests that come again since their answer was lost: more than are under way at once. One that is forgotten is judged anew."""


class UnknownEnvironmentError(LookupError):
    """The job has no such environment."""


class IdReusedError(ValueError):
    """An idempotency key came with another completion than the first time."""


class VerifierService:
    """Environments, seal, workers and the memory of verdicts."""

    def __init__(
        self,
        spec: RLVRJobSpec,
        environments: Mapping[str, Environment],
        seal: Seal,
        pool: WorkerPool,
        instruments: Instruments,
        sandboxed: SandboxedScorers | None = None,
        uncertified: Sequence[str] = (),
    ) -> None:
        self._spec = spec
        self._environments = environments
        self._seal = seal
        self._pool = pool
        self._instruments = instruments
        self._sandboxed = sandboxed
        self._uncertified = tuple(uncertified)
        for name in environments:
            instruments.certified.labels(name).set(name not in self._uncertified)
        if sandboxed is not None:
            sandboxed.publish(instruments)
        self._remote = {
            name: ScorerThreads(name, getattr(environment, "requests_in_flight", 1), "requests to another service")
            for name, environment in environments.items()
            if environment.place is Place.REMOTE
        }
        self._integrity = IntegrityTraffic(spec.integrity, open_auditors(spec.environments, environments), seal, self._score_text)
        self._noise = {environment.name: environment.noise for environment in spec.environments}
        self._remembered: OrderedDict[str, tuple[str, asyncio.Future[Verdict]]] = OrderedDict()

    @property
    def sandbox_status(self) -> Mapping[str, object] | None:
        """What the sandbox keeps out; None where no environment runs what the model wrote."""
        return None if self._sandboxed is None else self._sandboxed.status

    def close(self) -> None:
        """End all scorers; what they work on is lost."""
        self._pool.close()
        for name, threads in self._remote.items():
            threads.close()
            if (close := getattr(self._environments[name], "close", None)) is not None:
                close()
        if self._sandboxed is not None:
            self._sandboxed.close()

    def describe(self) -> EnvironmentsResponse:
        """All environments, with the held-out tasks of the job's levels, and the sandbox."""
        levels = {environment.name: environment.levels for environment in self._spec.environments}
        environments = tuple(
            EnvironmentInfo(
                name=name,
                kind=environment.kind,
                version=environment.version,
                levels=environment.levels,
                held_out_tasks={level: environment.held_out_tasks(level) for level in range(levels[name].start, levels[name].maximum + 1)},
                deterministic=environment.deterministic,
            )
            for name, environment in self._environments.items()
        )
        level = None if self._sandboxed is None else self._sandboxed.level.value
        return EnvironmentsResponse(environments=environments, sandbox_level=level, uncertified=self._uncertified)

    def sample(self, request: TaskRequest) -> Task:
        """One task.

        Raises:
            UnknownEnvironmentError, NoSuchTaskError: there is no such task.
        """
        environment = self._find(request.environment)
        low, high = environment.levels
        if not low <= request.level <= high:
            raise NoSuchTaskError(f"environment {request.environment!r} has levels {low} to {high}, not {request.level}")
        task = environment.sample(request.split, request.seed, request.level)
        return Task(
            environment=request.environment,
            environment_version=environment.version,
            level=request.level,
            problem_id=task.problem_id,
            messages=task.messages,
            task_key=self._seal.close(task.payload, request.environment, environment.version),
            max_turns=turns_of(environment),
        )

    async def step(self, item: StepItem) -> StepResult:
        """What follows the newest turn of an episode. Whatever fails on the way is a `fault`, and no end.

        Raises:
            UnknownEnvironmentError, UnknownKeyError: there is no such task.
            NoSuchTaskError: its environment has one turn only.
            PoolBusyError: too many wait.
        """
        environment = self._find(item.environment)
        payload = self._seal.open(item.task_key, item.environment, environment.version)
        if not isinstance(environment, Interactive):
            raise NoSuchTaskError(f"environment {item.environment!r} has one turn only: send the completion to /v1/score")
        try:
            if environment.place in POOLED:
                return await self._pool.step(item.environment, payload, item.transcript)
            return step(environment, payload, item.transcript)
        except ScorerTimeoutError:
            return StepResult(done=True)  # the same happens when it is scored, and that is the candidate's `timeout`
        except PoolBusyError:
            raise
        except (WorkerLostError, ScorerFailedError, UnjudgedError) as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - the border of the environment; its words may quote an answer
            logger.error("a step of %s failed: %s", item.environment, fault(error))
            reason = f"the environment failed with {type(error).__name__}"
        return StepResult(done=False, fault=reason[:500])

    def check(self, item: ScoreItem) -> None:
        """Raises UnknownEnvironmentError, UnknownKeyError or IdReusedError for an item that cannot be judged at all."""
        environment = self._find(item.environment)
        self._seal.open(item.task_key, item.environment, environment.version)
        seen = self._remembered.get(item.id)
        if seen is not None and seen[0] != _digest(item):
            raise IdReusedError(f"id {item.id!r} was used for another completion; give each completion an id of its own")

    async def score(self, item: ScoreItem, arrived: float) -> Verdict:
        """Judge one item that `check` let pass; the same id gets the same verdict, also while the first is under way.

        Args:
            arrived: monotonic time of the request.
        """
        seen = self._remembered.get(item.id)
        if seen is not None:
            return await asyncio.shield(seen[1])
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._remembered[item.id] = (_digest(item), future)
        if len(self._remembered) > REMEMBERED_VERDICTS:
            self._remembered.popitem(last=False)
        try:
            with self._instruments.queue(item.environment, arrived) as ticket:
                verdict = await self._judge(item, ticket)
            verdict = await self._integrity.audited(item, verdict, self._find(item.environment))
        except BaseException:
            self._remembered.pop(item.id, None)
            future.cancel()
            raise
        future.set_result(verdict)
        if verdict.status is VerdictStatus.INFRA_ERROR:
            self._remembered.pop(item.id, None)
        return verdict

    async def _judge(self, item: ScoreItem, ticket: QueueTicket) -> Verdict:
        environment = self._find(item.environment)
        try:
            score = await self._score(environment, item, ticket)
        except ScorerTimeoutError as error:
            return self._verdict(item, environment, VerdictStatus.TIMEOUT, 0.0, str(error), ticket)
        except PoolBusyError:
            raise
        except (WorkerLostError, ScorerFailedError, SandboxError, UnjudgedError) as error:
            logger.error("scoring %s of %s failed: %s", item.id, item.environment, error)
            return self._verdict(item, environment, VerdictStatus.INFRA_ERROR, None, str(error), ticket)
        except Exception as error:  # noqa: BLE001 - the border of the scorer: whatever it does, it is not the candidate's zero
            logger.error("scoring %s of %s failed: %s", item.id, item.environment, fault(error))
            reason = f"the scorer failed with {type(error).__name__}"
            return self._verdict(item, environment, VerdictStatus.INFRA_ERROR, None, reason, ticket)
        return self._verdict(item, environment, score.status, score.score, score.reason, ticket)

    async def _score(self, environment: Environment, item: ScoreItem, ticket: QueueTicket) -> Score:
        payload = self._seal.open(item.task_key, item.environment, environment.version)
        return await self._score_text(environment, payload, item.completion, item.truncated, ticket.begin)

    async def _score_text(
        self, environment: Environment, payload: Mapping[str, JsonValue], completion: str, truncated: bool,
        begin: Callable[[], None] = lambda: None,
    ) -> Score:  # fmt: skip
        too_long = len(completion.encode(errors="replace")) > MAX_COMPLETION_BYTES
        if too_long or environment.place is Place.SERVICE:
            begin()
            if too_long:
                return invalid(f"the completion has more than {MAX_COMPLETION_BYTES} bytes")
            return environment.score(payload, completion, truncated)
        if environment.place in POOLED:
            return await self._pool.run(environment.name, payload, completion, truncated, begin)
        score = partial(environment.score, payload, completion, truncated)
        if environment.place is Place.REMOTE:
            return await self._remote[environment.name].run(score, begin)
        assert self._sandboxed is not None
        return await self._sandboxed.run(score, begin)

    async def canaries(self, items: Sequence[ScoreItem]) -> tuple[CanaryVerdict, ...]:
        """Verdicts on the canaries that are drawn beside items that `check` let pass."""
        found = await self._integrity.canaries(items, self._environments)
        for verdict in found:
            self._instruments.note_canary(verdict)
        return found

    def _verdict(
        self, item: ScoreItem, environment: Environment, status: VerdictStatus, score: float | None, reason: str, ticket: QueueTicket
    ) -> Verdict:
        noise = self._noise.get(item.environment)
        return Verdict(
            id=item.id,
            status=status,
            score=score,
            verifier=environment.kind,
            verifier_version=environment.version,
            false_positive_rate=None if noise is None else noise.false_positive_rate,
            false_negative_rate=None if noise is None else noise.false_negative_rate,
            reason=reason[:500],
            seconds=0.0 if ticket.begun is None else time.monotonic() - ticket.begun,
        )

    def _find(self, name: str) -> Environment:
        try:
            return self._environments[name]
        except KeyError:
            raise UnknownEnvironmentError(f"the job has no environment {name!r}; it has {', '.join(self._environments)}") from None


def _digest(item: ScoreItem) -> str:
    # The key is not part of it: the same task sealed again has another key, and the completion is still the same.
    return hashlib.sha256(f"{item.environment}\0{item.truncated}\0{item.completion}".encode(errors="replace")).hexdigest()
