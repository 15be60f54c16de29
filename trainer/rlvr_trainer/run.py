"""The parts of a run, and what they do together outside a single stage: start, wait, publish, evaluate.

A `Run` is made once by the learner process and handed to each stage. Whatever waits in it also looks for a request to stop and for
engines that have come back, so that neither is noticed late.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from torch import Tensor

from rlvr_api.wire import EnvironmentInfo
from rlvr_trainer.collector.collector import EventLoopThread
from rlvr_trainer.collector.episode import EpisodeRunner
from rlvr_trainer.contamination import Reference
from rlvr_trainer.context import RunContext
from rlvr_trainer.evaluation import EvaluationPlan, evaluate
from rlvr_trainer.fork import Fork
from rlvr_trainer.metrics import EvaluationCell, EvaluationResult, summarize_evaluation
from rlvr_trainer.metrics_log import MetricsLog
from rlvr_trainer.policy import Policy, read_weights, weights_of
from rlvr_trainer.progress import ProgressBoard
from rlvr_trainer.provenance import Provenance
from rlvr_trainer.storage.attempts import AttemptClaim
from rlvr_trainer.storage.client import ObjectStore
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.lineage import Contamination
from rlvr_trainer.storage.rollouts import write_groups
from rlvr_trainer.telemetry import Attribute, SpanName, StepInstruments, tracer
from rlvr_trainer.versions import VersionHistory
from rlvr_trainer.weights.engine_state import EngineStatus
from rlvr_trainer.weights.publisher import WeightPublisher, highest_version
from rlvr_trainer.weights.report import PublishReport

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

POLL_SECONDS = 0.25
"""How often a wait looks at requests to stop and at engines that came back."""


class StopRequestedError(RuntimeError):
    """The run was asked to stop."""


class UntrustworthyRewardError(StopRequestedError):
    """The reward cannot be believed, and the job says to pause then; the message says what was found and how to go on."""


class NoEngineError(RuntimeError):
    """No engine became ready in time."""


@dataclass
class Run:
    """The parts, made by `assemble`."""

    context: RunContext
    stop: threading.Event
    store: ObjectStore
    claim: AttemptClaim
    policy: Policy
    publisher: WeightPublisher
    runner: EpisodeRunner
    loop: EventLoopThread
    board: ProgressBoard
    metrics: MetricsLog
    instruments: StepInstruments
    held_out: tuple[EnvironmentInfo, ...]
    """What the verifier service has for evaluations."""
    evaluation: EvaluationPlan
    versions: VersionHistory
    provenance: Provenance
    contamination: Mapping[str, Contamination] = field(default_factory=dict)
    """What the preflight found in the traces of stages, by URI."""
    fork: Fork | None = None
    """What the job began with, where that is no folder."""
    held_out_problems: frozenset[str] = frozenset()
    """Ids of the problems that the job is measured on."""
    references: Sequence[Reference] = ()
    """What stages that make their own traces must look for in them."""
    results: dict[str, EvaluationResult] = field(default_factory=dict)
    """This attempt's last evaluation of each stage, by its name."""
    published: bool = False
    """This attempt has published weights, which engines that come back can be given."""

    def first_weights(self) -> Mapping[str, Tensor]:
        """The weights that the job began with, by the names of `Policy.parameters`, on the CPU.

        Raises:
            BadInputError: it began with a checkpoint that is gone.
        """
        return read_weights(self.context.model_dir) if self.fork is None else weights_of(self.fork.load())

    def check(self) -> None:
        """Do what must not wait: stop when asked to, and bring engines that came back up to date.

        Raises:
            StopRequestedError: the run was asked to stop.
        """
        if self.stop.is_set():
            raise StopRequestedError
        if not self.published:
            return
        waiting = [name for name, state in self.publisher.states().items() if state.status is EngineStatus.DIRTY]
        if waiting:
            report = self.publisher.sync_joiners(self._weights(), self.versions.current)
            joined = [name for name in waiting if name not in report.dropped]
            logger.info("engines with weight version %d now also: %s", self.versions.current, ", ".join(joined) or "none")

    def wait_for(self, future: "Future[ResultT]") -> ResultT:
        """The result of work on the event loop; raises `StopRequestedError` when asked to stop meanwhile."""
        while True:
            try:
                return future.result(POLL_SECONDS)
            except FutureTimeoutError:
                if future.done():
                    raise
            try:
                self.check()
            except StopRequestedError:
                future.cancel()
                raise

    def reserve_versions(self, next_version: int) -> None:
        """Leave out every version that the store or an engine has seen, and end what earlier attempts left in the engines."""
        self.versions.reserve(max(next_version, highest_version(self.publisher.handles()) + 1))
        if self.context.attempt > 1:
            self.publisher.abort_requests()

    def publish(self, step: int) -> PublishReport:
        """Give the engines the policy's weights as a new version, after optimizer step `step` over all stages.

        At least one engine must take them; while none does, engines that come (back) are waited for.

        Raises:
            NoEngineError: none did within `deadlines.provisioningSeconds`; a time in which no engine is wanted does not count.
            StopRequestedError: the run was asked to stop.
        """
        version = self.versions.publish(step)
        limit = self.context.job.spec.deadlines.provisioning_seconds
        deadline = time.monotonic() + limit
        with tracer().start_as_current_span(SpanName.PUBLISH_WEIGHTS, attributes={Attribute.WEIGHT_VERSION: version}):
            report = self.publisher.publish(self._weights(), version)
            self.published = True
            while not self.publisher.clean_engines():
                if not self.publisher.handles():
                    deadline = time.monotonic() + limit
                if time.monotonic() > deadline:
                    raise NoEngineError(f"no engine took weight version {version}: {_reasons(self.publisher)}; look at the engines' logs")
                time.sleep(POLL_SECONDS)
                self.check()
        self.board.update(weight_version=version)
        return report

    def evaluate(
        self, keys: StageKeys, step: int, total_step: int, plan: EvaluationPlan | None = None, ks: Sequence[int] = ()
    ) -> EvaluationResult:
        """Evaluate the current version on the held-out tasks and keep result and rollouts.

        Args:
            step: optimizer steps of the stage.
            total_step: over all stages.
            plan: other tasks than those of `spec.evaluation`.
            ks: numbers of tries to estimate pass@k for.
        """
        attempt, version, plan = self.context.attempt, self.versions.current, plan or self.evaluation
        self.board.update(message=f"evaluating on {len(plan.tasks)} held-out tasks")
        seed = self.context.job.spec.seed
        prefix = f"{self.context.job.metadata.name}/{keys.name}/{attempt}/evaluation/{step}"
        groups = self.wait_for(self.loop.submit(evaluate(self.runner, plan, prefix, seed)))
        write_groups(self.store, keys.evaluation_rollouts(step, attempt), groups)
        result = summarize_evaluation(
            groups,
            stage=keys.name,
            stage_index=keys.index,
            step=step,
            weight_version=version,
            time=datetime.now(UTC),
            attempt=attempt,
            ks=ks,
        ).model_copy(update={"branch": keys.branch})
        self.metrics.write(result)
        self.results[keys.name] = result
        self.board.update(held_out_pass_rate=result.pass_rate(), message="")
        logger.info("held-out pass rate after step %d: %s", total_step, _describe(result))
        return result

    def _weights(self) -> Mapping[str, Tensor]:
        return self.policy.published_tensors()


def _reasons(publisher: WeightPublisher) -> str:
    return "; ".join(f"{name} is {state.status} ({state.reason})" for name, state in publisher.states().items()) or "there is none"


def _describe(result: EvaluationResult) -> str:
    def describe(cell: EvaluationCell) -> str:
        tries = "".join(f", pass@{k} {found.mean:.3f} [{found.lower:.3f}, {found.upper:.3f}]" for k, found in cell.pass_at.items())
        return f"{cell.environment} level {cell.level} {cell.pass_rate:.3f}{tries}"

    return "; ".join(map(describe, result.cells)) or "no tasks"
