"""Optimizer steps on examples, for the stages that have such: recorded, measured, checkpointed and resumable as those of `rlvr`.

    restore -> (the stage trains recorded steps again) -> begin: publish, evaluate
    each step: record -> optimizer update -> metrics -> (publish, evaluate) -> (checkpoint)

Which examples a step takes is a pure function of what its record says, so a record needs no data beside it. Weights are published only
where they are evaluated.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from pydantic import JsonValue
from torch import Tensor

from rlvr_trainer.metrics import Phase, StepMetrics, seconds_by_part
from rlvr_trainer.metrics_log import evaluated_steps, measured_steps
from rlvr_trainer.run import Run
from rlvr_trainer.stages.checkpoints import StageCheckpoints
from rlvr_trainer.storage.checkpoint_reader import LoadedCheckpoint
from rlvr_trainer.storage.documents import Discard, StoredBlob
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.manifest import CheckpointState
from rlvr_trainer.storage.records import RecordLog, StepRecord, read_records
from rlvr_trainer.storage.resume import ResumePlan, plan_resume
from rlvr_trainer.supervised_learner import SupervisedReport
from rlvr_trainer.telemetry import train_step_span
from rlvr_trainer.traces import Example
from rlvr_trainer.training import timed

logger = logging.getLogger(__name__)


class ExampleLearner(Protocol):
    """What takes the steps."""

    def step(self, examples: Sequence[Example], place: str) -> SupervisedReport:
        """See `SupervisedLearner.step`."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """See `Trainer.tensors`."""
        ...

    def scalars(self) -> dict[str, JsonValue]:
        """See `Trainer.scalars`."""
        ...

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, JsonValue]) -> None:
        """See `Trainer.load`."""
        ...


class SupervisedLoop:
    """The steps of one stage.

    Args:
        before: optimizer steps of the stages before.
        last_step: the stage's last step; None while nobody knows it, and then it is to be set before it is taken.
        checkpoint: the newest checkpoint of the job when it is of this stage.
    """

    def __init__(
        self, run: Run, keys: StageKeys, before: int, last_step: int | None, learner: ExampleLearner, checkpoint: LoadedCheckpoint | None
    ) -> None:
        self.step = 0
        """Steps done."""
        self.last_step = last_step
        self.phases: dict[str, float] = {}
        """The thread's time since the last step, by `Phase`."""
        self._run, self._keys, self._before, self._learner = run, keys, before, learner
        self._checkpoint = checkpoint
        self._records = RecordLog(run.store, keys, run.claim)
        self._checkpoints = StageCheckpoints(run, keys, before)
        self._state: Mapping[str, JsonValue] = {}
        self._measured: frozenset[int] = frozenset()

    def restore(self) -> ResumePlan:
        """Load the checkpoint; the steps in the plan's `replay` are to be trained again, with `replay`."""
        self._records.read_all()
        manifest = self._checkpoint.manifest if self._checkpoint is not None else None
        plan = plan_resume(manifest, read_records(self._run.store, self._keys))
        self.step = plan.loaded_step
        self._run.reserve_versions(plan.next_weight_version)
        if self._checkpoint is not None:
            self._learner.load(self._checkpoint.tensors, self._checkpoint.manifest.state.scalars)
            self._checkpoint = None  # frees its tensors
        self._state = plan.curriculum if isinstance(plan.curriculum, dict) else {}
        self._measured = measured_steps(self._run.store, self._keys) if plan.replay else frozenset()
        return plan

    def replay(self, examples: Sequence[Example]) -> None:
        """Train the next recorded step again."""
        self._run.check()
        logger.info("training recorded step %d of stage %s again", self.step + 1, self._keys.name)
        report = self._train(examples)
        if self.step not in self._measured:
            self._run.metrics.write(self._metrics(report))
        self.phases = {}

    def begin(self) -> None:
        """Give the engines the weights, and evaluate those that no step has changed."""
        self._run.board.update(stage=self._keys.name, stage_index=self._keys.index)
        self._show()
        self.publish()
        if self._is_evaluation_due() and self.step not in evaluated_steps(self._run.store, self._keys):
            self._evaluate()
        if self.step == self.last_step:  # the attempt before trained the last step, and did not commit it
            self.save(final=True)

    def publish(self) -> None:
        """Give the engines the weights."""
        with timed(self.phases, Phase.PUBLISH):
            self._run.publish(self._before + self.step)

    def take(
        self,
        examples: Sequence[Example],
        indices: Sequence[int],
        state: Mapping[str, JsonValue],
        rollouts: tuple[StoredBlob, ...] = (),
        discarded: tuple[Discard, ...] = (),
        sampled: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """Take a step.

        Args:
            examples: what it learns from.
            indices: what it consumes first of the stage's sequence; with those of `discarded`, the next ones.
            state: what a later attempt needs to find the same examples; kept with the record.
            rollouts: objects that hold `indices`.
            sampled: fields of `StepMetrics` about these.
        """
        self._run.check()
        self._state = state
        with train_step_span(self._keys.name, self._before + self.step + 1, ()):
            with timed(self.phases, Phase.COMMIT):
                self._record(indices, rollouts, discarded)
            report = self._train(examples)
        metrics = self._metrics(report).model_copy(update={**(sampled or {})})
        self._run.metrics.write(metrics)  # now, for it would be lost if the process died in what follows
        self._show()
        self._run.board.update(reward=metrics.reward_mean, pass_rate=metrics.pass_rate, level={**metrics.levels})
        self._after_step()
        metrics = metrics.model_copy(update={"phase_seconds": dict(self.phases)})
        self._run.metrics.write(metrics)
        self._run.instruments.record(metrics)
        self._run.board.note_step(seconds_by_part(metrics), 0)
        self.phases = {}

    def save(self, *, final: bool) -> None:
        """Snapshot the state after the last step; its upload goes on in the background unless the stage or the process ends here."""
        if self.step == 0:
            return
        head = self._records.head
        state = CheckpointState(
            step=self.step,
            final=final,
            weight_version=self._run.versions.current,
            record_sha256=head.sha256,
            model=self._run.context.job.spec.model.uri,
            scalars={**self._learner.scalars(), "versions": self._run.versions.state()},
            cursor=head.cursor,
            accepted=head.cursor,
            curriculum={**self._state},
        )
        self._checkpoints.save(self._learner.tensors(), state, self.phases)

    def finish(self) -> None:
        """Wait for uploads."""
        self._checkpoints.finish()

    def _record(self, indices: Sequence[int], rollouts: tuple[StoredBlob, ...], discarded: tuple[Discard, ...]) -> None:
        cursor = self._records.head.cursor + len(indices) + len(discarded)
        self._records.commit(
            StepRecord(
                stage=self._keys.name,
                step=self.step + 1,
                attempt=self._run.context.attempt,
                groups=tuple(indices),
                rollouts=rollouts,
                discarded=discarded,
                cursor=cursor,
                accepted=cursor,
                curriculum={**self._state},
                weight_version=self._run.versions.current,
                time=datetime.now(UTC),
            )
        )

    def _train(self, examples: Sequence[Example]) -> SupervisedReport:
        with timed(self.phases, Phase.TRAIN):
            report = self._learner.step(examples, f"step {self._before + self.step + 1}")
        self.step += 1
        return report

    def _after_step(self) -> None:
        last = self.step == self.last_step
        if self._is_evaluation_due():
            self.publish()
            self._evaluate()
        if last or self.step % self._run.context.job.spec.learner.checkpoint.every_steps == 0:
            self.save(final=last)
        self._checkpoints.note_uploads()

    def _is_evaluation_due(self) -> bool:
        every = self._run.context.job.spec.evaluation.every_steps
        return self.step in (0, self.last_step) or (every is not None and self.step % every == 0)

    def _show(self) -> None:
        later = self._run.context.job.spec.stages[self._keys.index + 1 :]
        own = self.step if self.last_step is None else self.last_step
        total = self._before + own + sum(stage.planned_steps for stage in later)
        self._run.board.update(step=self._before + self.step, steps=total)

    def _evaluate(self) -> None:
        with timed(self.phases, Phase.EVALUATE):
            self._run.evaluate(self._keys, self.step, self._before + self.step)

    def _metrics(self, report: SupervisedReport) -> StepMetrics:
        return StepMetrics(
            stage=self._keys.name,
            stage_index=self._keys.index,
            step=self.step,
            attempt=self._run.context.attempt,
            time=datetime.now(UTC),
            weight_version=max(0, self._run.versions.current),
            groups=report.examples,
            live_groups=report.examples,
            rollouts=0,
            discarded={},
            levels={},
            shares={},
            by_age={},
            completion_tokens_mean=report.tokens / report.examples,
            tokens_trained=report.tokens,
            loss=report.loss,
            gradient_norm=report.gradient_norm,
            learning_rate=report.learning_rate,
            entropy=report.entropy,
            phase_seconds=dict(self.phases),
            engines=len(self._run.publisher.clean_engines()),
        )


def steps_of(examples: int, epochs: int, examples_per_step: int) -> int:
    """Optimizer steps of some passes over some examples; the last one may be smaller."""
    return math.ceil(examples * epochs / examples_per_step)
