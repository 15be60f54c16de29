"""Held-out evaluation: the same fixed tasks each time, sampled by one weight version.

Tasks are the first held-out seeds of each environment at every level of its curriculum, so that two evaluations can be compared task
by task. Nothing is published meanwhile, which pins the version. An episode that could not be judged is left out and counted.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.spec import Evaluation
from rlvr_api.stages import Evaluate
from rlvr_api.wire import EnvironmentInfo
from rlvr_trainer.collector.episode import Episode, EpisodeRunner, UnjudgedError
from rlvr_trainer.gathering import gather_all
from rlvr_trainer.rollout import Admission, RolloutGroup

logger = logging.getLogger(__name__)


class ContaminatedVersionError(RuntimeError):
    """An evaluation sampled from more than one weight version."""


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """Which held-out tasks exist, and how often each is sampled."""

    tasks: tuple[Admission, ...]
    samples: int


def plan_evaluation(
    spec: Evaluation | Evaluate, environments: Sequence[EnvironmentSpec], known: Sequence[EnvironmentInfo]
) -> EvaluationPlan:
    """The tasks of every evaluation that `spec` asks for."""
    held_out = {info.name: info.held_out_tasks for info in known}
    tasks: list[Admission] = []
    for environment in environments:
        for level in range(environment.levels.start, environment.levels.maximum + 1):
            count = min(spec.tasks_per_environment, held_out[environment.name].get(level, 0))
            tasks += [Admission(len(tasks) + seed, environment.name, level, seed) for seed in range(count)]
    return EvaluationPlan(tuple(tasks), spec.samples_per_task)


async def evaluate(runner: EpisodeRunner, plan: EvaluationPlan, prefix: str, seed: int) -> tuple[RolloutGroup, ...]:
    """Sample and judge every task of the plan.

    Args:
        prefix: unique name of this evaluation in the run.
        seed: of the samplers; the same for every evaluation of a run, which pairs their noise.

    Raises:
        ContaminatedVersionError: the weights changed while it ran.
    """

    async def run(task: Admission) -> RolloutGroup | None:
        episode = Episode(f"{prefix}/{task.index}", task, "heldOut", plan.samples, (seed + 7919 * task.index) % 2**31)
        try:
            return await runner.run(episode)
        except UnjudgedError as error:
            logger.warning("held-out task left out: %s", error)
            return None

    groups = tuple(group for group in await gather_all(map(run, plan.tasks)) if group is not None)
    versions = {span.version for group in groups for rollout in group.rollouts for span in rollout.spans}
    if len(versions) > 1:
        raise ContaminatedVersionError(f"evaluation {prefix} sampled from weight versions {sorted(versions)}, not one")
    return groups
