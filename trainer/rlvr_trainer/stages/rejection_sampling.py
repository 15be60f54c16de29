"""The stage `rejectionSampling`: sample, keep what passed, learn from it, again.

    each round: publish -> groups of N samples -> Parquet -> kept examples -> steps of `sft`, the first of which records the round

The record of a round's first step names its groups and their Parquet object; that of each step names the round. Which completions are kept
and in which order they are trained is a pure function of the groups, so a round survives a crash once its first step is recorded; before
that it is sampled again, for the same tasks.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from rlvr_api.integrity import Audit
from rlvr_api.stages import RejectionSampling, Stage
from rlvr_trainer.chat import PromptTooLongError
from rlvr_trainer.collector.curriculum import Curriculum, Outcome
from rlvr_trainer.collector.episode import Episode, SkippedError, UnjudgedError
from rlvr_trainer.collector.ledger import TOO_LONG, UNJUDGED
from rlvr_trainer.collector.schedule import Schedule
from rlvr_trainer.diagnostics import describe_batch
from rlvr_trainer.gathering import gather_all
from rlvr_trainer.integrity.rewards import is_learnable
from rlvr_trainer.metrics import Phase
from rlvr_trainer.rollout import Admission, RolloutGroup
from rlvr_trainer.run import Run, StopRequestedError
from rlvr_trainer.stages.sft import example_order
from rlvr_trainer.stages.supervised import SupervisedLoop, steps_of
from rlvr_trainer.storage.checkpoint_reader import LoadedCheckpoint
from rlvr_trainer.storage.documents import Discard, StoredBlob
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.records import StepRecord, read_records
from rlvr_trainer.storage.rollouts import read_groups, write_groups
from rlvr_trainer.supervised_learner import SupervisedLearner
from rlvr_trainer.traces import Example
from rlvr_trainer.training import timed

logger = logging.getLogger(__name__)

GROUPS_IN_FLIGHT = 256
"""Groups that engines are asked for at once."""
ROUND, FIRST_STEP, LEVELS = "round", "firstStep", "curriculum"
"""Keys of the state that records keep."""


class NothingPassedError(RuntimeError):
    """A round kept nothing to learn from."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round learns from."""

    number: int
    """From 0."""
    first_step: int
    examples: tuple[Example, ...]
    """In the order of training, all epochs one after the other."""
    examples_per_step: int
    levels: Mapping[str, JsonValue]
    """State of the curriculum after it."""
    groups: tuple[RolloutGroup, ...]
    discarded: tuple[Discard, ...] = ()

    @property
    def last_step(self) -> int:
        """The stage's step that ends it."""
        return self.first_step - 1 + steps_of(len(self.examples), 1, self.examples_per_step)

    def batch(self, step: int) -> Sequence[Example]:
        """What a step of the stage learns from."""
        return self.examples[(step - self.first_step) * self.examples_per_step :][: self.examples_per_step]

    def state(self) -> dict[str, JsonValue]:
        """For records."""
        return {ROUND: self.number, FIRST_STEP: self.first_step, LEVELS: {**self.levels}}


class RejectionSamplingStage:
    """Runs one stage from where the store says it stands to its end; see `RlvrStage`."""

    def __init__(self, run: Run, index: int, stage: Stage, checkpoint: LoadedCheckpoint | None, steps_before: int) -> None:
        assert stage.rejection_sampling is not None
        spec = run.context.job.spec
        self._run, self._before, self._keys = run, steps_before, StageKeys(index, stage.name)
        self._spec: RejectionSampling = stage.rejection_sampling
        self._schedule = Schedule(spec.seed, stage.name, spec.environments)
        # The schedule is constant, so the number of steps does not matter to the learner.
        learner = SupervisedLearner(run.policy, self._spec.optimizer, 1, spec.learner.tokens_per_micro_batch)
        self._loop = SupervisedLoop(run, self._keys, steps_before, None, learner, checkpoint)

    def execute(self) -> int:
        """Run to the last step of the last round; returns it.

        Raises:
            NothingPassedError: no completion of a round passed.
            StopRequestedError: asked to stop; a checkpoint of the last step is committed.
        """
        loop = self._loop
        plan = loop.restore()
        records = {committed.record.step: committed.record for committed in read_records(self._run.store, self._keys)}
        try:
            current: Round | None = None
            if plan.loaded_step:
                current = self._load(records, records[plan.loaded_step])
            for record in plan.replay:
                if current is None or record.step > current.last_step:
                    current = self._load(records, record)
                loop.replay(current.batch(record.step))
            self._set_end(current)
            loop.begin()
            while (following := self._train(current)) is not None:
                current = following
        except StopRequestedError:
            loop.save(final=False)
            raise
        loop.finish()
        return loop.step

    def _train(self, current: Round | None) -> Round | None:
        """Finish a round, then collect the next one; None when that was the last."""
        loop = self._loop
        while current is not None and loop.step < current.last_step:
            if loop.step == current.first_step - 1:
                blob = write_groups(self._run.store, self._keys.rollouts(loop.step + 1, self._run.context.attempt), current.groups)
                self._take_first(current, blob)
            else:
                loop.take(current.batch(loop.step + 1), (), current.state())
        number = 0 if current is None else current.number + 1
        if number == self._spec.rounds:
            return None
        if current is not None:
            loop.publish()
        following = self._collect(number, current.levels if current is not None else {})
        self._set_end(following)
        return following

    def _take_first(self, current: Round, blob: StoredBlob) -> None:
        step = self._before + self._loop.step
        sampled = describe_batch(current.groups, step, lambda _: step)
        self._loop.take(
            current.batch(current.first_step),
            tuple(group.admission.index for group in current.groups),
            current.state(),
            (blob,),
            current.discarded,
            {
                "rollouts": sum(len(group.rollouts) for group in current.groups),
                "reward_mean": sampled.reward_mean,
                "pass_rate": sampled.pass_rate,
                "masked": sampled.masked,
                "truncated_share": sampled.truncated_share,
                "discarded": dict(Counter(discard.reason for discard in current.discarded)),
            },
        )

    def _set_end(self, current: Round | None) -> None:
        if current is not None and current.number == self._spec.rounds - 1:
            self._loop.last_step = current.last_step

    def _load(self, records: Mapping[int, StepRecord], record: StepRecord) -> Round:
        """The round that a recorded step is of."""
        state = record.curriculum
        assert isinstance(state, dict)
        number, first_step, levels = state[ROUND], state[FIRST_STEP], state[LEVELS]
        assert isinstance(number, int)
        assert isinstance(first_step, int)
        assert isinstance(levels, dict)
        groups = tuple(group for blob in records[first_step].rollouts for group in read_groups(self._run.store, blob))
        return self._round(number, first_step, levels, groups)

    def _round(
        self, number: int, first_step: int, levels: Mapping[str, JsonValue], groups: tuple[RolloutGroup, ...], *discarded: Discard
    ) -> Round:
        seed = f"{self._run.context.job.spec.seed}/{self._keys.name}/{number}"
        kept = keep_passed(groups, self._spec.keep_per_prompt, seed, self._run.context.job.spec.integrity.audit)
        ordered = tuple(kept[place] for place in example_order(len(kept), self._spec.epochs, seed))
        return Round(number, first_step, ordered, self._spec.examples_per_step, levels, groups, discarded)

    def _collect(self, number: int, levels: Mapping[str, JsonValue]) -> Round:
        run, spec = self._run, self._run.context.job.spec
        run.board.update(message=f"sampling round {number + 1} of {self._spec.rounds}")
        curriculum = Curriculum(spec.environments, mixing=spec.mixing, held_out=run.held_out_problems, state=levels)
        indices = range(number * self._spec.prompts_per_round, (number + 1) * self._spec.prompts_per_round)
        with timed(self._loop.phases, Phase.WAIT):
            found = run.wait_for(run.loop.submit(self._sample(indices, curriculum)))
        groups = tuple(group for group in found if isinstance(group, RolloutGroup))
        discarded = tuple(discard for discard in found if isinstance(discard, Discard))
        for group in groups:
            curriculum.observe(Outcome.of(group))
        made = self._round(number, self._loop.step + 1, curriculum.state(), groups, *discarded)
        run.board.update(message="")
        if not made.examples:
            raise NothingPassedError(
                f"round {number + 1} of stage {self._keys.name} keeps none of {sum(len(group.rollouts) for group in groups)} completions: "
                "none passed and ended by itself; begin with an sft stage or easier levels, or raise samplesPerPrompt or sampling.maxTokens"
            )
        logger.info("round %d keeps %d completions of %d tasks", number + 1, len(made.examples) // self._spec.epochs, len(groups))
        return made

    async def _sample(self, indices: Sequence[int], curriculum: Curriculum) -> list[RolloutGroup | Discard]:
        attempt, name = self._run.context.attempt, self._run.context.job.metadata.name
        slots, shares, levels = asyncio.Semaphore(GROUPS_IN_FLIGHT), curriculum.shares, curriculum.levels

        async def sample(index: int) -> RolloutGroup | Discard:
            environment = self._schedule.environment(index, shares)
            admission = Admission(index, environment, levels[environment], self._schedule.task_seed(index))
            seed = self._schedule.sampling_seed(index, attempt)
            episode = Episode(
                f"{name}/{self._keys.name}/{attempt}/{index}", admission, "train", self._spec.samples_per_prompt, seed,
                lambda problem_id: curriculum.reason_to_skip(problem_id, index), audited=True,
            )  # fmt: skip
            async with slots:
                try:
                    return await self._run.runner.run(episode)
                except SkippedError as error:
                    return Discard(index=index, reason=error.reason)
                except (PromptTooLongError, UnjudgedError) as error:
                    logger.warning("group %d of %s is discarded: %s", index, self._keys.name, error)
                    return Discard(index=index, reason=TOO_LONG if isinstance(error, PromptTooLongError) else UNJUDGED)

        return await gather_all(map(sample, indices))


def keep_passed(groups: Sequence[RolloutGroup], keep_per_prompt: int, seed: str, audit: Audit | None = None) -> list[Example]:
    """Different completions that passed, ended by themselves and were not refuted, at most `keep_per_prompt` of a problem, drawn at random.

    A problem that was sampled twice counts as one prompt. The shortest or likeliest ones are not preferred: that would narrow the model.
    """
    found: dict[tuple[int, ...], dict[tuple[int, ...], Example]] = {}
    for group in groups:
        passed = found.setdefault(group.prompt_ids, {})
        for number, rollout in enumerate(group.rollouts):
            if is_learnable(rollout.verdict, audit) and rollout.finish_reason == "stop":
                name = f"sample {number} of group {group.admission.index}"
                passed.setdefault(rollout.token_ids, Example(name, group.prompt_ids, rollout.token_ids))
    kept: list[Example] = []
    for place, passed in enumerate(found.values()):
        chosen = list(passed.values())
        random.Random(f"{seed}/{place}").shuffle(chosen)  # noqa: S311 - a choice, not a secret
        kept += chosen[:keep_per_prompt]
    return kept
