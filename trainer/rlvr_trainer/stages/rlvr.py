"""The stage `rlvr`: collect, record, learn, publish, and now and then evaluate and checkpoint.

    restore -> retrain recorded steps -> publish -> (evaluate)
    each step:  batch -> Parquet -> record -> optimizer step -> publish -> (evaluate) -> (checkpoint)

The record is written before the step is trained, and the same batch is trained again after a crash, so every admitted index is consumed
once, discarded with a reason, or pending (`storage/resume.py`). What the crash kept from being measured is measured then, too.
Staleness counts optimizer steps over all stages; a step without a live group changes no weights and does not count.
"""

import logging
import time
from collections import Counter
from datetime import UTC, datetime

from rlvr_api.stages import Rlvr, Stage
from rlvr_api.status import RollbackProgress
from rlvr_trainer.collector.collector import Collector
from rlvr_trainer.collector.curriculum import Curriculum, levels_in
from rlvr_trainer.collector.diversity import effective_environments, environment_shares
from rlvr_trainer.collector.ledger import Batch, GroupLedger
from rlvr_trainer.collector.schedule import Schedule
from rlvr_trainer.integrity.enforcement import RewardMonitor
from rlvr_trainer.integrity.evidence import gather_evidence
from rlvr_trainer.learner import Learner, StepReport
from rlvr_trainer.metrics import Phase, StepMetrics, seconds_by_part
from rlvr_trainer.metrics_log import evaluated_steps, measured_steps
from rlvr_trainer.promotion import is_reached
from rlvr_trainer.rollout import RolloutGroup
from rlvr_trainer.run import POLL_SECONDS, Run, StopRequestedError, UntrustworthyRewardError
from rlvr_trainer.stages.checkpoints import StageCheckpoints
from rlvr_trainer.stages.governing import STATE_KEY, StageGovernor
from rlvr_trainer.stages.reference import reference_weights
from rlvr_trainer.stages.rollback import as_error, roll_back
from rlvr_trainer.storage.checkpoint_reader import LoadedCheckpoint
from rlvr_trainer.storage.documents import Discard
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.manifest import CheckpointState
from rlvr_trainer.storage.records import RecordLog, StepRecord, read_history
from rlvr_trainer.storage.resume import ResumePlan, plan_resume
from rlvr_trainer.storage.rollback import CommittedRollback, RollbackRecord, newest_branch
from rlvr_trainer.storage.rollouts import read_groups, write_groups
from rlvr_trainer.telemetry import train_step_span
from rlvr_trainer.training import timed
from rlvr_trainer.weights.report import PublishReport

logger = logging.getLogger(__name__)


class RlvrStage:
    """Runs one stage from where the store says it stands to its end.

    Args:
        checkpoint: the newest checkpoint of the job when it is of this stage.
        steps_before: optimizer steps of the stages before.
    """

    def __init__(self, run: Run, index: int, stage: Stage, checkpoint: LoadedCheckpoint | None, steps_before: int) -> None:
        assert stage.rlvr is not None
        self._run = run
        self._spec: Rlvr = stage.rlvr
        self._keys = newest_branch(run.store, StageKeys(index, stage.name))
        self._checkpoint = checkpoint
        self._before = steps_before
        self._records = RecordLog(run.store, self._keys, run.claim)
        self._checkpoints = StageCheckpoints(run, self._keys, steps_before)
        self._learner = Learner(run.policy, self._spec, run.context.job.spec, reference_weights(run, self._spec, index))
        self._governor = StageGovernor(run.context.job.spec.off_policy, run.board)
        self._gate = stage.promote_when
        self._promoted = False
        self._trust = RewardMonitor(run.context.job.spec)
        self._step = 0
        self._phases: dict[str, float] = {}

    def execute(self) -> int:
        """Run to the last step; returns it.

        Raises:
            StopRequestedError: asked to stop; a checkpoint of the last step is committed.
        """
        plan = self._restore()
        self._run.board.update(stage=self._keys.name, stage_index=self._keys.index, step=self._before + self._step)
        collector = None
        try:
            if self._step < self._spec.steps:
                self._enforce_trust()
            self._run.publish(self._before + self._step)
            if self._is_evaluation_due() and self._step not in evaluated_steps(self._run.store, self._keys):
                self._evaluate()
            collector = self._start_collector(plan)
            if self._step == self._spec.steps:  # the attempt before trained the last step, and did not commit it
                self._save(collector, final=True)
            while self._step < self._spec.steps and not self._promoted:
                self._enforce_trust()
                self._take_step(collector)
        except StopRequestedError as error:
            self._save(collector, final=False)
            self._checkpoints.finish()
            if isinstance(error, UntrustworthyRewardError) and self._trust.rolls_back:
                raise self._roll_back() from error
            raise
        finally:
            if collector is not None:
                collector.close()
        self._checkpoints.finish()
        return self._step

    def _enforce_trust(self) -> None:
        self._show_trust()
        self._trust.enforce()

    def _roll_back(self) -> UntrustworthyRewardError:
        record = roll_back(self._run, self._keys, self._records, self._trust.assessment, self._trust.steps)
        step = self._before + record.to_step
        self._run.board.update(step=step, checkpoint_step=step)
        self._show_rollback(record)
        return as_error(record, self._before)

    def _show_rollback(self, record: RollbackRecord) -> None:
        shown = RollbackProgress(number=record.branch, from_step=self._before + record.from_step, to_step=self._before + record.to_step)
        self._run.board.update(rollback=shown.model_dump(mode="json", by_alias=True))

    def _show_trust(self) -> None:
        self._run.board.update(reward_trust=self._trust.assessment.progress().model_dump(mode="json", by_alias=True))

    def _restore(self) -> ResumePlan:
        """Load the checkpoint and train the recorded steps after it."""
        self._trust.restore([record.evidence for record in self._records.read_all()])
        manifest = self._checkpoint.manifest if self._checkpoint is not None else None
        history = read_history(self._run.store, self._keys)
        plan = plan_resume(manifest, history)
        for committed in history:
            if isinstance(committed, CommittedRollback):
                self._show_rollback(committed.record)
        self._step = plan.loaded_step
        self._run.reserve_versions(plan.next_weight_version)
        if self._checkpoint is not None:
            scalars = self._checkpoint.manifest.state.scalars
            self._learner.load(self._checkpoint.tensors, scalars)
            self._governor.restore(scalars.get(STATE_KEY))
        measured = measured_steps(self._run.store, self._keys) if plan.replay else frozenset()
        for record in plan.replay:
            self._replay(record, measure=record.step not in measured)
        return plan

    def _replay(self, record: StepRecord, *, measure: bool) -> None:
        self._run.check()
        logger.info("training recorded step %d of stage %s again", record.step, self._keys.name)
        self._run.board.update(message=f"training recorded step {record.step} again")
        self._run.versions.note(record.weight_version, self._before + record.step - 1)
        groups = tuple(group for blob in record.rollouts for group in read_groups(self._run.store, blob))
        self._governor.restore(record.governor)
        report = self._train(groups)
        if measure:
            curriculum = record.curriculum if isinstance(record.curriculum, dict) else {}
            discarded = tuple((discard.index, discard.reason) for discard in record.discarded)
            batch = Batch(groups, discarded, record.pending, record.cursor, curriculum)
            # The version that the lost attempt would have published: `plan_resume` sets it aside.
            made = record.weight_version + int(report.updated)
            metrics = self._step_metrics(batch, report, made)
            self._run.metrics.write(metrics.model_copy(update={"evidence": record.evidence}))
        self._phases = {}

    def _train(self, groups: tuple[RolloutGroup, ...]) -> StepReport:
        with timed(self._phases, Phase.TRAIN):
            self._learner.off_policy = self._governor.in_force
            report = self._learner.step(groups, self._before + self._step, self._run.versions.step_of)
        self._step += 1
        self._governor.observe(report, self._before + self._step)
        if not report.updated:
            self._run.versions.skip_step()
        return report

    def _start_collector(self, plan: ResumePlan) -> Collector:
        spec = self._run.context.job.spec
        state = plan.curriculum if isinstance(plan.curriculum, dict) else None
        held_out = self._run.held_out_problems
        curriculum = Curriculum(spec.environments, mixing=spec.mixing, revisit=self._spec.revisit, held_out=held_out, state=state)
        ledger = GroupLedger(
            self._spec,
            self._governor.in_force,
            Schedule(spec.seed, self._keys.name, spec.environments),
            curriculum,
            step=self._step,
            consumed=plan.accepted - len(plan.pending),
            cursor=plan.cursor,
            outstanding={admission.index: admission for admission in plan.pending},
            discarded=[(discard.index, discard.reason) for discard in plan.discarded],
        )
        if self._checkpoint is not None:
            ledger.restore(self._checkpoint.groups)
        finished = {group.admission.index for group in ledger.finished}
        self._checkpoint = None  # frees its tensors
        return Collector(
            ledger,
            self._run.runner,
            self._run.loop,
            prefix=f"{self._run.context.job.metadata.name}/{self._keys.name}",
            attempt=self._run.context.attempt,
            stall_seconds=spec.deadlines.stall_seconds,
            audit=spec.integrity.audit,
            restored=[admission for admission in plan.pending if admission.index not in finished],
        )

    def _take_step(self, collector: Collector) -> None:
        started = time.monotonic()
        tokens_before = collector.times.tokens
        batch = self._wait_for_batch(collector)
        with train_step_span(self._keys.name, self._before + self._step + 1, [group.traceparent for group in batch.groups]):
            with timed(self._phases, Phase.COMMIT):
                self._record(batch)
            report = self._train(batch.groups)
            with timed(self._phases, Phase.PUBLISH):
                published = self._run.publish(self._before + self._step) if report.updated else None
                if self._governor.began_pause:
                    self._run.publisher.abort_requests()  # they begin anew, from the new weights
        collector.govern(self._governor.in_force)
        collector.step_done()
        seconds, tokens = time.monotonic() - started, collector.times.tokens - tokens_before
        metrics = self._measure(batch, report, published, seconds)
        self._show(metrics)
        self._run.metrics.write(metrics)  # now, for it would be lost if the process died in what follows
        self._after_step(collector)
        metrics = metrics.model_copy(update={"phase_seconds": self._phases})
        self._run.metrics.write(metrics)
        self._run.instruments.record(metrics)
        self._run.board.note_step(seconds_by_part(metrics), tokens)
        self._phases = {}

    def _wait_for_batch(self, collector: Collector) -> Batch:
        step = self._before + self._step
        with timed(self._phases, Phase.WAIT):
            while True:
                self._run.check()
                batch = collector.poll_batch(lambda group: self._run.versions.staleness(group, step), POLL_SECONDS)
                if batch is not None:
                    return batch

    def _record(self, batch: Batch) -> None:
        """Fix, once and for all, what the next step consumes."""
        step, attempt = self._step + 1, self._run.context.attempt
        evidence = gather_evidence(batch.groups, self._run.runner.verifiers.take_canaries())
        blob = write_groups(self._run.store, self._keys.rollouts(step, attempt), batch.groups)
        self._records.commit(
            StepRecord(
                stage=self._keys.name,
                step=step,
                attempt=attempt,
                groups=tuple(group.admission.index for group in batch.groups),
                rollouts=(blob,),
                discarded=tuple(Discard(index=index, reason=reason) for index, reason in sorted(batch.discarded)),
                pending=batch.pending,
                cursor=batch.cursor,
                accepted=step * self._spec.prompts_per_step + len(batch.pending),
                curriculum=batch.curriculum,
                governor=self._governor.state(),
                weight_version=self._run.versions.current,
                evidence=evidence,
                time=datetime.now(UTC),
            )
        )
        self._trust.add(evidence)

    def _after_step(self, collector: Collector) -> None:
        if self._is_evaluation_due():
            self._evaluate()
        last = self._step == self._spec.steps or self._promoted
        if last or self._step % self._run.context.job.spec.learner.checkpoint.every_steps == 0:
            self._save(collector, final=last)
        self._checkpoints.note_uploads()

    def _is_evaluation_due(self) -> bool:
        every = self._run.context.job.spec.evaluation.every_steps
        return self._step in (0, self._spec.steps) or (every is not None and self._step % every == 0)

    def _evaluate(self) -> None:
        with timed(self._phases, Phase.EVALUATE):
            result = self._run.evaluate(self._keys, self._step, self._before + self._step)
        self._promoted = self._step > 0 and self._gate is not None and is_reached(self._gate, result)

    def _save(self, collector: Collector | None, *, final: bool) -> None:
        """Snapshot the state after the last step; its upload goes on in the background unless the stage ends here."""
        if collector is None or self._step == 0:
            return  # nothing is trained that the store does not have
        ledger = collector.snapshot()
        state = CheckpointState(
            step=self._step,
            final=final,
            weight_version=self._run.versions.current,
            record_sha256=self._records.head.sha256,
            model=self._run.context.job.spec.model.uri,
            scalars={**self._learner.scalars(), "versions": self._run.versions.state(), STATE_KEY: self._governor.state()},
            cursor=ledger.cursor,
            accepted=self._step * self._spec.prompts_per_step + len(ledger.pending),
            curriculum=ledger.curriculum,
            pending=ledger.pending,
            discarded=tuple(Discard(index=index, reason=reason) for index, reason in sorted(ledger.discarded)),
        )
        self._checkpoints.save(self._learner.tensors(), state, self._phases, ledger.finished)

    def _measure(self, batch: Batch, report: StepReport, published: PublishReport | None, seconds: float) -> StepMetrics:
        metrics = self._step_metrics(batch, report, self._run.versions.current)
        return metrics.model_copy(
            update={
                "evidence": self._trust.latest,
                "phase_seconds": dict(self._phases),
                "tokens_per_second": sum(rollout.sampled_tokens for group in batch.groups for rollout in group.rollouts) / seconds,
                "paused_seconds": max(published.paused_seconds.values(), default=None) if published is not None else None,
                "engines": len(self._run.publisher.clean_engines()),
            }
        )

    def _step_metrics(self, batch: Batch, report: StepReport, weight_version: int) -> StepMetrics:
        groups = batch.groups
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        statuses = Counter(rollout.verdict.status.value for rollout in rollouts)
        return StepMetrics(
            stage=self._keys.name,
            stage_index=self._keys.index,
            branch=self._keys.branch,
            step=self._step,
            attempt=self._run.context.attempt,
            time=datetime.now(UTC),
            weight_version=weight_version,
            groups=len(groups),
            rollouts=len(rollouts),
            masked=statuses["infra_error"],
            invalid=statuses["invalid"],
            timeouts=statuses["timeout"],
            discarded=dict(Counter(reason for _, reason in batch.discarded)),
            levels=levels_in(batch.curriculum),
            shares=environment_shares(groups),
            effective_environments=effective_environments(groups),
            generate_seconds=_mean(groups, "generate_seconds"),
            score_seconds=_mean(groups, "score_seconds"),
            phase_seconds={},
            governor=self._governor.metrics(),
            **report.metrics(),
        )

    def _show(self, metrics: StepMetrics) -> None:
        self._show_trust()
        self._run.board.update(
            step=self._before + self._step,
            reward=metrics.reward_mean,
            pass_rate=metrics.pass_rate,
            staleness=metrics.staleness_mean,
            level={**metrics.levels},
        )


def _mean(groups: tuple[RolloutGroup, ...], name: str) -> float:
    return float(sum(getattr(group, name) for group in groups)) / len(groups)
