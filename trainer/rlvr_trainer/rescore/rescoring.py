"""Reads stored rollouts, and asks the verifier of today about them.

    records of the chosen steps -> Parquet -> each group: its task once more, by seed -> same problem? -> verdicts -> Comparer

A task is made anew from the seed in its admission. Where that gives another problem (a dataset or a generator has changed), a new verdict
would be about another question, so the group is skipped and counted. Nothing is written to the store.
Not covered: held-out evaluations, and answers of a teacher.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import httpx

from rlvr_api.cli import UserError
from rlvr_api.wire import ScoreItem, TaskRequest
from rlvr_trainer.collector.http import RequestRefusedError
from rlvr_trainer.collector.verifiers import VerifierClient
from rlvr_trainer.gathering import gather_all
from rlvr_trainer.report.records import stages_of
from rlvr_trainer.report.source import RunSource
from rlvr_trainer.rescore.comparison import Comparer, Comparison, Rescored
from rlvr_trainer.rescore.service import rescoring_job, serving_verifier
from rlvr_trainer.rollout import RolloutGroup
from rlvr_trainer.storage.records import StepRecord, read_records
from rlvr_trainer.storage.rollback import newest_branch
from rlvr_trainer.storage.rollouts import read_groups

Places = Sequence[tuple[StepRecord, frozenset[int]]]
GROUPS_AT_ONCE = 32
OTHER_PROBLEM = "the environment makes another problem of this seed today"
NO_TASK = "the environment has no such task today"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rollouts of a run."""

    stage: str | None = None
    """None: all stages."""
    step: int | None = None
    """None: all steps."""
    environment: str | None = None
    """None: all environments."""
    groups: int | None = None
    """At most so many, drawn at random over all environments; None: all."""


def rescore(source: RunSource, choice: Choice, examples: int, note: Callable[[str], None]) -> Comparison:
    """Judge stored rollouts again.

    Args:
        examples: kept of each kind of change.
        note: told what is done, a line at a time.

    Raises:
        UserError: nothing is chosen, or the verifier of today refuses the job.
        UnreachableError: the verifier stopped answering.
    """
    places = choose(source, choice)
    job = rescoring_job(source.job, source.store.endpoint)
    comparer = Comparer(source.job.metadata.name, examples)
    with serving_verifier(job) as url:
        asyncio.run(_rescore_all(source, places, choice.environment, url, comparer, note))
    return comparer.result()


def choose(source: RunSource, choice: Choice) -> Places:
    """The records of the chosen steps in order, and the indices of their chosen groups.

    Raises:
        UserError: there are none; the message says what there is.
    """
    job = source.job
    stages = [stage for stage in stages_of(job) if choice.stage in (None, stage.name)]
    if not stages:
        known = ", ".join(stage.name for stage in job.spec.stages)
        raise UserError(f"job {job.metadata.name} has no stage '{choice.stage}'; it has {known}")
    names = [environment.name for environment in job.spec.environments]
    if choice.environment is not None and choice.environment not in names:
        raise UserError(f"job {job.metadata.name} has no environment '{choice.environment}'; it has {', '.join(names)}")
    records = [
        committed.record
        for stage in stages
        for branch in range(newest_branch(source.store, stage).branch + 1)
        for committed in read_records(source.store, replace(stage, branch=branch))
    ]
    every = [
        (place, group)
        for place, record in enumerate(records)
        if record.rollouts and choice.step in (None, record.step)
        for group in record.groups
    ]
    if not every:
        of = "" if choice.step is None else f" of step {choice.step}"
        ends = dict.fromkeys(f"{record.stage} {record.step}" for record in (*records[:1], *records[-1:]))
        raise UserError(f"run {job.metadata.name} has no stored rollouts{of}; its records are of {' to '.join(ends) or 'no step'}")
    if choice.groups is not None and choice.groups < len(every):
        every = random.Random(0).sample(every, choice.groups)  # noqa: S311 - the same ones each time
    chosen: dict[int, set[int]] = defaultdict(set)
    for place, group in sorted(every):
        chosen[place].add(group)
    return [(records[place], frozenset(groups)) for place, groups in chosen.items()]


async def _rescore_all(
    source: RunSource, places: Places, environment: str | None, url: str, comparer: Comparer, note: Callable[[str], None]
) -> None:
    slots = asyncio.Semaphore(GROUPS_AT_ONCE)
    limits = httpx.Limits(max_connections=GROUPS_AT_ONCE)
    async with httpx.AsyncClient(timeout=source.job.spec.deadlines.stall_seconds, limits=limits, trust_env=False) as client:
        verifiers = VerifierClient(url, client, source.job.spec.deadlines.stall_seconds)

        async def judge(record: StepRecord, group: RolloutGroup) -> list[Rescored] | str:
            async with slots:
                return await _judge(verifiers, record, group)

        for number, (record, wanted) in enumerate(places, 1):
            groups = [
                group
                for blob in record.rollouts
                for group in read_groups(source.store, blob)
                if group.admission.index in wanted and environment in (None, group.admission.environment)
            ]
            found = await gather_all(judge(record, group) for group in groups)
            for group, outcome in zip(groups, found, strict=True):
                if isinstance(outcome, str):
                    comparer.skip(outcome, len(group.rollouts))
                else:
                    comparer.add(outcome)
            note(f"{number} of {len(places)} steps: {record.stage} {record.step}, {len(groups)} groups")


async def _judge(verifiers: VerifierClient, record: StepRecord, group: RolloutGroup) -> list[Rescored] | str:
    """The group with new verdicts, or why it has none."""
    admission = group.admission
    request = TaskRequest(environment=admission.environment, split="train", seed=admission.task_seed, level=admission.level)
    try:
        task = await verifiers.sample(request)
    except RequestRefusedError:
        return NO_TASK
    if task.problem_id != group.problem_id:
        return OTHER_PROBLEM
    items = [
        ScoreItem(
            id=f"rescore/{record.stage}/{record.step}/{admission.index}/{sample}",
            environment=admission.environment,
            task_key=task.task_key,
            completion=rollout.text,
            truncated=rollout.finish_reason == "length",
        )
        for sample, rollout in enumerate(group.rollouts)
    ]
    verdicts = await verifiers.score(items, request)
    return [
        Rescored(
            record.stage, record.step, admission.index, sample, admission.environment, group.problem_id, group.prompt, rollout.text,
            rollout.verdict, verdict,
        )
        for sample, (rollout, verdict) in enumerate(zip(group.rollouts, verdicts, strict=True))
    ]  # fmt: skip
