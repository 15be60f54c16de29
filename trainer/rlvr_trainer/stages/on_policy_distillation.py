"""The stage `onPolicyDistillation`: sample, ask the teacher what it thinks of each token, move towards it.

    each step: publish -> groups of N samples -> the teacher's log-probs -> Parquet and JSON -> record -> optimizer step

The record of a step names the groups and both objects, so a step that was recorded is trained again from the store after a crash, and the
teacher is asked nothing twice. Completions that the teacher cannot score are left out, counted in the metrics as masked; a group without
any is discarded.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence

import httpx
from pydantic import JsonValue, TypeAdapter

from rlvr_api.process import TEACHER_API_KEY
from rlvr_api.stages import OnPolicyDistillation, Stage
from rlvr_trainer.chat import PromptTooLongError
from rlvr_trainer.collector.curriculum import Curriculum, Outcome
from rlvr_trainer.collector.episode import Episode, SkippedError, UnjudgedError
from rlvr_trainer.collector.ledger import TOO_LONG, UNJUDGED
from rlvr_trainer.collector.schedule import Schedule
from rlvr_trainer.diagnostics import describe_batch
from rlvr_trainer.gathering import gather_all
from rlvr_trainer.metrics import Phase
from rlvr_trainer.reverse_kl_learner import ReverseKlLearner, TaughtExample
from rlvr_trainer.rollout import Admission, RolloutGroup
from rlvr_trainer.run import Run, StopRequestedError
from rlvr_trainer.stages.supervised import SupervisedLoop
from rlvr_trainer.storage.checkpoint_reader import LoadedCheckpoint
from rlvr_trainer.storage.documents import Discard, StoredBlob
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.records import StepRecord
from rlvr_trainer.storage.rollouts import read_groups, write_groups
from rlvr_trainer.teacher import TeacherClient, UnusableAnswerError
from rlvr_trainer.training import timed

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0
UNSCORED = "teacher_silent"
LEVELS, TEACHER = "curriculum", "teacher"
"""Keys of the state that records keep."""
Scores = list[list[list[float] | None]]
"""By group and completion: the teacher's log-probs; None where it had none."""
SCORES: TypeAdapter[Scores] = TypeAdapter(Scores)


class NobodyTaughtError(RuntimeError):
    """The teacher scored no completion of a step."""


class OnPolicyDistillationStage:
    """Runs one stage from where the store says it stands to its end; see `RlvrStage`."""

    def __init__(self, run: Run, index: int, stage: Stage, checkpoint: LoadedCheckpoint | None, steps_before: int) -> None:
        assert stage.on_policy_distillation is not None
        spec = run.context.job.spec
        self._run, self._keys, self._before = run, StageKeys(index, stage.name), steps_before
        self._spec: OnPolicyDistillation = stage.on_policy_distillation
        self._schedule = Schedule(spec.seed, stage.name, spec.environments)
        learner = ReverseKlLearner(run.policy, self._spec.optimizer, self._spec.steps, spec.learner.tokens_per_micro_batch)
        limits = httpx.Limits(max_connections=self._spec.teacher.requests_in_flight)
        self._http = httpx.AsyncClient(timeout=self._spec.teacher.timeout_seconds, limits=limits, follow_redirects=False)
        self._teacher = TeacherClient(self._spec.teacher, os.environ.get(TEACHER_API_KEY), self._http, spec.deadlines.stall_seconds)
        self._loop = SupervisedLoop(run, self._keys, steps_before, self._spec.steps, learner, checkpoint)

    def execute(self) -> int:
        """Run to the last step; returns it.

        Raises:
            BadInputError: key, address or model of the teacher are wrong.
            TeacherUnreachableError, NobodyTaughtError: another attempt may fare better.
            StopRequestedError: asked to stop; a checkpoint of the last step is committed.
        """
        loop = self._loop
        plan = loop.restore()
        state = plan.curriculum if isinstance(plan.curriculum, dict) else {}
        levels, cursor = state.get(LEVELS), plan.cursor
        try:
            for record in plan.replay:
                loop.replay(self._load(record))
            loop.begin()
            while loop.step < self._spec.steps:
                levels, cursor = self._take_step(levels if isinstance(levels, dict) else {}, cursor)
        except StopRequestedError:
            loop.save(final=False)
            raise
        finally:
            self._run.loop.submit(self._http.aclose()).result(CLOSE_SECONDS)
        loop.finish()
        return loop.step

    def _take_step(self, levels: Mapping[str, JsonValue], cursor: int) -> tuple[JsonValue, int]:
        run, loop, spec = self._run, self._loop, self._run.context.job.spec
        step, attempt = loop.step + 1, run.context.attempt
        if loop.step:
            loop.publish()
        curriculum = Curriculum(spec.environments, mixing=spec.mixing, held_out=run.held_out_problems, state=levels)
        indices = range(cursor, cursor + self._spec.prompts_per_step)
        with timed(loop.phases, Phase.WAIT):
            found = run.wait_for(run.loop.submit(self._collect(indices, curriculum)))
        groups = [item for item, _ in found if isinstance(item, RolloutGroup)]
        scores: Scores = [scored for item, scored in found if isinstance(item, RolloutGroup)]
        discarded = tuple(item for item, _ in found if isinstance(item, Discard))
        examples = make_examples(groups, scores)
        if not examples:
            reasons = dict(Counter(discard.reason for discard in discarded))
            raise NobodyTaughtError(
                f"the teacher at {self._spec.teacher.endpoint} scored no completion of step {step} ({reasons}); look at the learner's log"
            )
        for group in groups:
            curriculum.observe(Outcome.of(group))
        blobs = (
            write_groups(run.store, self._keys.rollouts(step, attempt), groups),
            run.store.put(self._keys.teacher_logprobs(step, attempt), SCORES.dump_json(scores)),
        )
        state: dict[str, JsonValue] = {LEVELS: curriculum.state(), TEACHER: blobs[1].model_dump(mode="json")}
        sampled = self._describe(groups, scores, discarded)
        loop.take(examples, tuple(group.admission.index for group in groups), state, blobs[:1], discarded, sampled)
        return state[LEVELS], indices.stop

    def _describe(self, groups: Sequence[RolloutGroup], scores: Scores, discarded: Sequence[Discard]) -> dict[str, JsonValue]:
        step = self._before + self._loop.step
        found = describe_batch(groups, step, lambda _: step)
        return {
            "groups": len(groups),
            "rollouts": sum(len(group.rollouts) for group in groups),
            "reward_mean": found.reward_mean,
            "pass_rate": found.pass_rate,
            "masked": sum(one is None for group in scores for one in group),
            "truncated_share": found.truncated_share,
            "discarded": dict(Counter(discard.reason for discard in discarded)),
        }

    def _load(self, record: StepRecord) -> list[TaughtExample]:
        """What a recorded step learns from."""
        groups = [group for blob in record.rollouts for group in read_groups(self._run.store, blob)]
        assert isinstance(record.curriculum, dict)
        blob = StoredBlob.model_validate(record.curriculum[TEACHER])
        return make_examples(groups, SCORES.validate_json(bytes(self._run.store.read(blob))))

    async def _collect(
        self, indices: Sequence[int], curriculum: Curriculum
    ) -> list[tuple[RolloutGroup | Discard, list[list[float] | None]]]:
        shares, levels = curriculum.shares, curriculum.levels
        slots = asyncio.Semaphore(self._spec.teacher.requests_in_flight)

        async def score(group: RolloutGroup, number: int) -> list[float] | None:
            async with slots:
                try:
                    return [*await self._teacher.logprobs(group.prompt_ids, group.rollouts[number].token_ids)]
                except UnusableAnswerError as error:
                    logger.warning("completion %d of group %d is left out: %s", number, group.admission.index, error)
                    return None

        async def collect(index: int) -> tuple[RolloutGroup | Discard, list[list[float] | None]]:
            found = await self._sample(index, shares, levels, curriculum)
            if isinstance(found, Discard):
                return found, []
            scored = await gather_all(score(found, number) for number in range(len(found.rollouts)))
            return (found, scored) if any(scored) else (Discard(index=index, reason=UNSCORED), [])

        return await gather_all(map(collect, indices))

    async def _sample(
        self, index: int, shares: Mapping[str, float], levels: Mapping[str, int], curriculum: Curriculum
    ) -> RolloutGroup | Discard:
        attempt, name = self._run.context.attempt, self._run.context.job.metadata.name
        environment = self._schedule.environment(index, shares)
        admission = Admission(index, environment, levels[environment], self._schedule.task_seed(index))
        episode = Episode(
            f"{name}/{self._keys.name}/{attempt}/{index}", admission, "train", self._spec.samples_per_prompt,
            self._schedule.sampling_seed(index, attempt), lambda problem_id: curriculum.reason_to_skip(problem_id, index),
        )  # fmt: skip
        try:
            return await self._run.runner.run(episode)
        except SkippedError as error:
            return Discard(index=index, reason=error.reason)
        except (PromptTooLongError, UnjudgedError) as error:
            logger.warning("group %d of %s is discarded: %s", index, self._keys.name, error)
            return Discard(index=index, reason=TOO_LONG if isinstance(error, PromptTooLongError) else UNJUDGED)


def make_examples(groups: Sequence[RolloutGroup], scores: Scores) -> list[TaughtExample]:
    """The completions that the teacher has scored, in the order of the groups."""
    return [
        TaughtExample(
            f"sample {number} of group {group.admission.index}", group.prompt_ids, rollout.token_ids, rollout.logprobs, tuple(values)
        )
        for group, scored in zip(groups, scores, strict=True)
        for number, (rollout, values) in enumerate(zip(group.rollouts, scored, strict=True))
        if values is not None
    ]
