"""Everything the page shows, read once: metrics, evaluations, and a few rollouts.

RunSource -> load_run_data -> RunData
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rlvr_api.cli import UserError
from rlvr_api.spec import RLVRJob
from rlvr_api.status import RLVRJobStatus
from rlvr_trainer.lineage_view import find_lineage
from rlvr_trainer.metrics import EvaluationResult, StepMetrics
from rlvr_trainer.metrics_log import read_evaluations, read_steps
from rlvr_trainer.report.records import RolloutView, StepRollouts, load_step, recorded_steps, stages_of
from rlvr_trainer.report.source import RunSource
from rlvr_trainer.storage.lineage import Lineage
from rlvr_trainer.storage.rollback import RollbackRecord, read_rollbacks


@dataclass(frozen=True, slots=True)
class Sample:
    """A rollout, and why it is on the page."""

    when: str
    """`early` or `late`."""
    why: str
    """`best`, `worst` or `random`."""
    view: RolloutView


@dataclass(frozen=True)
class RunData:
    """A run, as far as it has come."""

    job: RLVRJob
    steps: Sequence[StepMetrics]
    evaluations: Sequence[EvaluationResult]
    samples: Sequence[Sample]
    status: RLVRJobStatus | None = None
    lineage: Lineage | None = None
    """Of its newest model or checkpoint; None while there is none."""
    rollbacks: Sequence[RollbackRecord] = ()
    """In the order in which they were made."""

    @property
    def planned_steps(self) -> int:
        """Optimizer steps of all stages; of those that are over or depend on data, as many as were taken."""
        return sum(map(self._steps_of, range(len(self.job.spec.stages))))

    def offsets(self) -> Mapping[int, int]:
        """What to add to a stage's step numbers so that they count the whole job's steps, by stage index."""
        found: dict[int, int] = {}
        before = 0
        for index in range(len(self.job.spec.stages)):
            found[index] = before
            before += self._steps_of(index)
        return found

    def _steps_of(self, index: int) -> int:
        taken = max((step.step for step in self.steps if step.stage_index == index), default=0)
        reached = max((record.stage_index for records in (self.steps, self.evaluations) for record in records), default=0)
        over = reached > index  # a gate may have ended it early
        return taken if over else max(self.job.spec.stages[index].planned_steps, taken)

    def position(self, record: StepMetrics | EvaluationResult) -> int:
        """Place of a record on the horizontal axis: optimizer steps of the whole job."""
        return self.offsets().get(record.stage_index, 0) + record.step


def load_run_data(source: RunSource) -> RunData:
    """Read a run.

    Raises:
        StorageError: the store cannot be read.
        MetricsUnreadableError: a metrics record is damaged.
    """
    return RunData(
        job=source.job,
        steps=read_steps(source.store),
        evaluations=read_evaluations(source.store),
        samples=tuple(_samples(source)),
        status=source.status,
        lineage=_lineage(source),
        rollbacks=tuple(found.record for stage in stages_of(source.job) for found in read_rollbacks(source.store, stage)),
    )


def choose_samples(when: str, step: StepRollouts, seed: str) -> list[Sample]:
    """The best, the worst and a random rollout of a step, each from another group where there are enough.

    Among equals the one that the model was surest of is shown: a sure mistake says most. Rollouts that were not judged are not ranked.
    """
    judged = [view for view in step.views if view.rollout.reward is not None]
    if not judged:
        return []
    chosen: dict[str, RolloutView] = {}
    for why, sign in (("best", 1.0), ("worst", -1.0)):
        unused = _of_other_groups(judged, chosen.values())
        chosen[why] = max(unused, key=lambda view: (sign * (view.rollout.reward or 0.0), view.logprob_mean))
    rest = sorted(_of_other_groups(list(step.views), chosen.values()), key=lambda view: (view.group.admission.index, view.sample))
    chosen["random"] = random.Random(seed).choice(rest)  # noqa: S311 - the same page each time
    return [Sample(when, why, view) for why, view in chosen.items()]


def _samples(source: RunSource) -> list[Sample]:
    sampled = [stage for stage in stages_of(source.job) if source.job.spec.stages[stage.index].rlvr is not None]
    recorded = [(stage, step) for stage in sampled for step in recorded_steps(source.store, stage)]
    wanted = {"early": recorded[:1], "late": recorded[-1:] if len(recorded) > 1 else []}
    return [
        sample
        for when, places in wanted.items()
        for stage, step in places
        for sample in choose_samples(when, load_step(source.store, stage, step), f"{source.job.metadata.name}/{stage.folder}/{step}")
    ]


def _lineage(source: RunSource) -> Lineage | None:
    try:
        return find_lineage(source.store)[1]
    except UserError:
        return None


def _of_other_groups(views: Sequence[RolloutView], used: Iterable[RolloutView]) -> Sequence[RolloutView]:
    taken = {view.group.admission.index for view in used}
    return [view for view in views if view.group.admission.index not in taken] or views
