"""The rollouts of one step, with what is known about each: verdict, weight versions, log-probs and age.

stage, step -> step record -> its Parquet objects -> groups -> RolloutView for each completion
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rlvr_api.cli import UserError
from rlvr_api.spec import RLVRJob
from rlvr_trainer.report.source import RunSource
from rlvr_trainer.rollout import Rollout, RolloutGroup
from rlvr_trainer.storage.client import ObjectStore
from rlvr_trainer.storage.errors import ObjectMissingError
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.records import StepRecord, parse_record
from rlvr_trainer.storage.rollback import Segment, newest_branch, segment_of, segments
from rlvr_trainer.storage.rollouts import read_groups


@dataclass(frozen=True, slots=True)
class RolloutView:
    """One completion of a step, for people."""

    stage: str
    step: int
    group: RolloutGroup
    sample: int
    """Its place in the group, from 0."""
    rollout: Rollout
    staleness: int
    """Optimizer steps between the weights of its oldest token and those that the step trained."""

    @property
    def logprob_mean(self) -> float:
        """Mean log-prob of its sampled tokens under the sampler, in nats."""
        return math.fsum(self.rollout.logprobs) / self.rollout.sampled_tokens if self.rollout.sampled_tokens else 0.0

    @property
    def versions(self) -> str:
        """Weight versions by token, for example `v3 (0-12), v4 (12-20)`."""
        spans = self.rollout.spans
        if len(spans) == 1:
            return f"v{spans[0].version}"
        return ", ".join(f"v{span.version} ({span.start}-{span.end})" for span in spans)


@dataclass(frozen=True, slots=True)
class StepRollouts:
    """Everything that one step consumed."""

    record: StepRecord
    groups: tuple[RolloutGroup, ...]
    views: tuple[RolloutView, ...]


def stages_of(job: RLVRJob) -> tuple[StageKeys, ...]:
    """The job's stages, as the store names them."""
    return tuple(StageKeys(index, stage.name) for index, stage in enumerate(job.spec.stages))


def recorded_steps(store: ObjectStore, stage: StageKeys, branch: int | None = None) -> list[int]:
    """Steps of a stage that count and have a record, in order.

    Args:
        branch: as it was at the end of this branch; None: as it is now.
    """
    return [
        step
        for segment in segments(store, stage, branch)
        for key in store.list(segment.keys.records)
        if (step := segment.keys.record_step(key)) is not None and segment.holds(step)
    ]


def read_step(source: RunSource, step: int, stage_name: str | None = None, branch: int | None = None) -> StepRollouts:
    """The rollouts that a step consumed.

    Args:
        stage_name: needed when several stages have this step.
        branch: as it was before the rollback after this branch; None: as it is now.

    Raises:
        UserError: no such stage or step; the message says which exist.
    """
    stages = stages_of(source.job)
    if stage_name is not None:
        stages = tuple(stage for stage in stages if stage.name == stage_name)
        if not stages:
            known = ", ".join(stage.name for stage in source.job.spec.stages)
            raise UserError(f"job {source.job.metadata.name} has no stage '{stage_name}'; it has {known}")
    if branch is not None:
        stages = tuple(stage for stage in stages if branch <= newest_branch(source.store, stage).branch)
    if not stages:
        raise UserError(f"run {source.job.metadata.name} has no branch {branch}: each rollback of a stage begins one, from 1")
    found = [stage for stage in stages if step in recorded_steps(source.store, stage, branch)]
    if not found:
        raise UserError(f"run {source.job.metadata.name} has no step {step}; {_known_steps(source.store, stages, branch)}")
    if len(found) > 1:
        raise UserError(f"stages {', '.join(stage.name for stage in found)} each have a step {step}; choose one with --stage")
    return load_step(source.store, found[0], step, branch)


def load_step(store: ObjectStore, stage: StageKeys, step: int, branch: int | None = None) -> StepRollouts:
    """As `read_step`, for a step that is known to have a record."""
    parts = segments(store, stage, branch)
    record = _record(store, parts, step)
    groups = tuple(group for blob in record.rollouts for group in read_groups(store, blob))
    age = _age(store, parts, record, min((group.oldest_version for group in groups), default=record.weight_version))
    return StepRollouts(record, groups, tuple(_views(record, groups, age)))


def _views(record: StepRecord, groups: Sequence[RolloutGroup], age: Callable[[int], int]) -> Iterator[RolloutView]:
    for group in groups:
        for sample, rollout in enumerate(group.rollouts):
            yield RolloutView(record.stage, record.step, group, sample, rollout, age(rollout.oldest_version))


def _age(store: ObjectStore, parts: Sequence[Segment], record: StepRecord, oldest_version: int) -> Callable[[int], int]:
    """Age of a weight version in optimizer steps. Versions skip numbers when a run resumes, so they cannot just be subtracted.

    Record k trains from the version that step k − 1 made; earlier records are read back to the one of `oldest_version`.
    """
    made: list[tuple[int, int]] = [(record.weight_version, record.step)]
    while made[-1][0] > oldest_version and made[-1][1] > 1:
        earlier = _record(store, parts, made[-1][1] - 1)
        made.append((earlier.weight_version, earlier.step))

    def age(version: int) -> int:
        trained = next((step for first_version, step in made if first_version <= version), made[-1][1])
        return record.step - trained

    return age


def _record(store: ObjectStore, parts: Sequence[Segment], step: int) -> StepRecord:
    stage = segment_of(parts, step)
    key = stage.record(step)
    try:
        return parse_record(store.get(key), store.uri(key)).record
    except ObjectMissingError as error:
        raise UserError(f"the record of step {step} of stage {stage.name} is missing from the store: {error}") from error


def _known_steps(store: ObjectStore, stages: Sequence[StageKeys], branch: int | None) -> str:
    spans = []
    for stage in stages:
        steps = recorded_steps(store, stage, branch)
        if steps:
            spans.append(f"stage {stage.name} has steps {steps[0]} to {steps[-1]}")
    return "; ".join(spans) or "no step has been recorded yet"
