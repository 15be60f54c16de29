"""The learner of one stage: a batch of groups becomes one step, of one optimizer update or several.

    groups -> (penalties) -> advantages -> trees -> minibatches -> micro-batches -> loss, `training.Trainer` -> StepReport

An update's loss is a sum over tokens / the algorithm's denominator, which is known before the first micro-batch: how the update is cut
does not change the gradient. Completions that were not judged are not computed at all, nor are groups without signal unless a term of
`regularization` is about them; a batch without tokens to train changes nothing. With several minibatches, log-probs under the policy at
the start of the step are computed before the first update; the first minibatch needs none, since it trains that policy.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from rlvr_api.spec import RLVRJobSpec
from rlvr_api.stages import Rlvr
from rlvr_trainer.advantages import Outcome
from rlvr_trainer.algorithms import AlgorithmBase, LossInputs, make_algorithm
from rlvr_trainer.correction import off_policy_weights
from rlvr_trainer.critic import Critic, estimate_advantages
from rlvr_trainer.diagnostics import BatchStatistics, TokenStatistics, TokenSums, describe_batch
from rlvr_trainer.distributed.commands import Command, OpenRlvr, TakeRlvrStep
from rlvr_trainer.integrity.rewards import known_noise, learning_reward
from rlvr_trainer.losses import sequence_means
from rlvr_trainer.metrics import AgeMetrics
from rlvr_trainer.packing import Branch, PackedBatch, Tree, pack, plan_rounds
from rlvr_trainer.policy import Policy
from rlvr_trainer.regularization import Regularizer
from rlvr_trainer.rollout import Rollout, RolloutGroup
from rlvr_trainer.storage.rollouts import encode_groups
from rlvr_trainer.training import NonFiniteStepError, Resumable, Trainer, timed

__all__ = ["Learner", "NonFiniteStepError", "StepReport"]


class StepNumbers(TypedDict):
    """The fields of `metrics.StepMetrics` that the learner knows."""

    reward_mean: float | None
    pass_rate: float | None
    live_groups: int
    truncated_share: float | None
    completion_tokens_mean: float | None
    tokens_trained: int
    loss: float | None
    gradient_norm: float | None
    learning_rate: float | None
    staleness_mean: float | None
    staleness_max: float | None
    mismatch_kl: float | None
    mismatch_max: float | None
    ess: float | None
    chi2: float | None
    clip_fraction: float | None
    rejected_share: float | None
    by_age: dict[int, AgeMetrics]
    entropy: float | None
    reference_kl: float | None
    explained_variance: float | None


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did."""

    batch: BatchStatistics
    groups: int
    live_groups: int
    tokens: TokenStatistics | None = None
    """Of the trained tokens; None, like the next three, when there was none and nothing was updated."""
    loss: float | None = None
    """Normalised; the mean over updates."""
    gradient_norm: float | None = None
    """Before clipping; the largest of the updates."""
    learning_rate: float | None = None
    reference_kl: float | None = None
    """Mean over tokens of the estimator, nats; None without `referenceKl`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by phase: pack, forward, backward, optimizer; see `training.Trainer.update`."""

    @property
    def updated(self) -> bool:
        """The weights changed."""
        return self.tokens is not None

    @property
    def tokens_trained(self) -> int:
        """Completion tokens of the loss."""
        return self.tokens.tokens if self.tokens is not None else 0

    def metrics(self) -> StepNumbers:
        """For `StepMetrics`."""
        tokens = self.tokens
        return StepNumbers(
            reward_mean=self.batch.reward_mean,
            pass_rate=self.batch.pass_rate,
            live_groups=self.live_groups,
            truncated_share=self.batch.truncated_share,
            completion_tokens_mean=self.batch.completion_tokens_mean,
            tokens_trained=self.tokens_trained,
            loss=self.loss,
            gradient_norm=self.gradient_norm,
            learning_rate=self.learning_rate,
            staleness_mean=self.batch.staleness_mean,
            staleness_max=self.batch.staleness_max,
            mismatch_kl=tokens.mismatch_k3 if tokens is not None else None,
            mismatch_max=tokens.mismatch_max if tokens is not None else None,
            ess=tokens.ess if tokens is not None else None,
            chi2=tokens.chi2 if tokens is not None else None,
            clip_fraction=tokens.clip_fraction if tokens is not None else None,
            rejected_share=tokens.rejected if tokens is not None else None,
            by_age=_by_age(tokens) if tokens is not None else {},
            entropy=tokens.entropy if tokens is not None else None,
            reference_kl=self.reference_kl,
            explained_variance=tokens.explained_variance if tokens is not None else None,
        )


class Scores(NamedTuple):
    """Of N completion tokens, [N]."""

    logprobs: Tensor
    entropies: Tensor
    values: Tensor | None
    """None without a critic."""


class Learner(Resumable):
    """Trains `policy` for one stage; optimizer and schedule are new.

    Args:
        policy: trained in place.
        stage: algorithm, optimizer, number of steps.
        spec: temperature, correction and token budget.
        reference: weights of the policy that `referenceKl` is about; None without it.
    """

    def __init__(self, policy: Policy, stage: Rlvr, spec: RLVRJobSpec, reference: Mapping[str, Tensor] | None = None) -> None:
        policy.ranks.tell(lambda: Command(OpenRlvr(stage=stage)))
        self._algorithm: AlgorithmBase[Any] = make_algorithm(stage.algorithm, spec.sampling.max_tokens)
        wanted = self._algorithm.critic
        self._critic = Critic(policy.hidden_size, policy.device) if wanted is not None else None
        super().__init__(Trainer(policy, stage.optimizer, stage.steps, self._critic, wanted.learning_rate if wanted is not None else 0.0))
        self.off_policy = spec.off_policy
        """In force; a governor changes it between steps."""
        self._policy = policy
        self._stage = stage
        self._spec = spec
        self._regularizer = Regularizer(policy, stage, spec.sampling.temperature, reference)

    def step(self, groups: Sequence[RolloutGroup], current_step: int, step_of: Callable[[int], int]) -> StepReport:
        """Learn from a batch.

        Args:
            groups: the batch; with one minibatch the order does not change the loss, only rounding.
            current_step: optimizer step after which the policy's weights are, counted as `step_of` counts.
            step_of: optimizer step after which a weight version was published; raises for one that never was.

        Raises:
            NonFiniteStepError: the loss, the gradient or a log-prob of the sampler is not finite; the update at fault changed nothing.
            ValueError: spans do not fit the tokens, or a version is newer than the policy.
        """
        seconds: dict[str, float] = {}
        batch = describe_batch(groups, current_step, step_of)
        self._policy.ranks.tell(lambda: self._command(groups, current_step, step_of))
        advantages = self._advantages(groups, seconds)
        live = [self._algorithm.is_live(found) for found in advantages]
        with timed(seconds, "pack"):
            trees = [
                _tree(index, group, found, lambda version: current_step - step_of(version))
                for index, (group, found) in enumerate(zip(groups, advantages, strict=True))
                if live[index] or self._regularizer.adds_to_loss
            ]
        report = StepReport(batch, len(groups), sum(live), seconds=seconds)
        if any(tree.trained_tokens for tree in trees):
            report = self._train(report, groups, trees, f"step {current_step + 1}")
        self._trainer.step += 1
        return replace(report, reference_kl=self._regularizer.take_kl())

    def _command(self, groups: Sequence[RolloutGroup], current_step: int, step_of: Callable[[int], int]) -> Command:
        versions = {span.version for group in groups for rollout in group.rollouts for span in rollout.spans}
        order = TakeRlvrStep(
            current_step=current_step, version_steps={version: step_of(version) for version in versions}, off_policy=self.off_policy
        )
        return Command(order, b"".join(encode_groups(groups)))

    def _advantages(self, groups: Sequence[RolloutGroup], seconds: dict[str, float]) -> list[list[float | None]]:
        """By group and completion; None where it was not judged."""
        penalties: dict[int, list[float]] = {}
        if self._regularizer.shapes_rewards:
            judged = [[None if reward is None else 0.0 for reward in group.rewards] for group in groups]
            trees = [_tree(index, group, found) for index, (group, found) in enumerate(zip(groups, judged, strict=True))]
            with timed(seconds, "forward"):
                penalties = self._regularizer.penalties(trees, self._spec.learner.tokens_per_micro_batch)
        audit, outcomes = self._spec.integrity.audit, []
        for index, group in enumerate(groups):
            taken = iter(penalties.get(index, ()))
            outcomes.append(
                [
                    Outcome(
                        learning_reward(rollout.verdict, audit),
                        rollout.longest_turn_tokens,
                        next(taken, 0.0) if rollout.reward is not None else 0.0,
                        known_noise(rollout.verdict),
                    )
                    for rollout in group.rollouts
                ]
            )
        return self._algorithm.advantages(outcomes)

    def _train(self, report: StepReport, groups: Sequence[RolloutGroup], trees: Sequence[Tree], place: str) -> StepReport:
        sums = TokenSums(self._policy.device)
        minibatches = list(_cut(trees, self._stage.minibatches))
        plans = [self._plan(members) for members in minibatches]
        old = [self._old_scores(plan, report.seconds) if number else None for number, plan in enumerate(plans)]
        updates = []
        for members, plan, known in zip(minibatches, plans, old, strict=True):
            loss_of = self._loss_of(members, known, sums)
            updates.append(
                self._trainer.update(
                    plan, loss_of, report.seconds, place, lambda found: f"groups {[groups[index].admission.index for index in found]}"
                )
            )
        return replace(
            report,
            tokens=sums.read(self._policy.ranks),
            loss=statistics.fmean(update.loss for update in updates),
            gradient_norm=max(update.gradient_norm for update in updates),
            learning_rate=updates[-1].learning_rate,
        )

    def _plan(self, trees: Sequence[Tree]) -> list[list[list[Tree]]]:
        """Micro-batches by round and process."""
        trained = [tree for tree in trees if tree.trained_tokens]
        return plan_rounds(trained, self._spec.learner.tokens_per_micro_batch, self._policy.ranks.size)

    def _old_scores(self, plan: Sequence[Sequence[Sequence[Tree]]], seconds: dict[str, float]) -> list[Scores]:
        """Of the tokens of this process in each round, under the weights as they are now."""
        rank = self._policy.ranks.rank
        with timed(seconds, "forward"), torch.no_grad():
            return [self._score(pack(members[rank], self._policy.block_tokens).to(self._policy.device)) for members in plan]

    def _score(self, packed: PackedBatch) -> Scores:
        temperature = self._spec.sampling.temperature
        if self._critic is None:
            return Scores(*self._policy.completion_logprobs(packed, temperature), None)
        scores, states = self._policy.completion_states(packed, temperature)
        return Scores(*scores, self._critic.values(states))

    def _loss_of(self, trees: Sequence[Tree], known: Sequence[Scores] | None, sums: TokenSums) -> Callable[[int, PackedBatch], Tensor]:
        tokens = sum(tree.trained_tokens for tree in trees)
        denominator = self._algorithm.denominator(tokens, sum(len(tree.branches) for tree in trees))

        def loss_of(number: int, packed: PackedBatch) -> Tensor:
            scores = self._score(packed)
            inputs = self._inputs(packed, scores, scores if known is None else known[number])
            output = self._algorithm.loss(inputs)
            sums.add(inputs, output, scores.entropies, packed.ages)
            loss = output.total / denominator
            if self._regularizer.adds_to_loss:
                loss = loss + self._regularizer.loss(packed, inputs, scores.entropies) / tokens
            return loss

        return loss_of

    def _inputs(self, packed: PackedBatch, scores: Scores, start: Scores) -> LossInputs:
        """`start`: as at the start of the step."""
        old, sampler, sequences, advantages = start.logprobs.detach(), packed.sampler_logprobs, packed.sequences, packed.advantages
        old_values = returns = None
        of_completions = advantages
        if start.values is not None and self._algorithm.critic is not None:
            old_values = start.values.detach()
            advantages, returns = estimate_advantages(advantages, old_values, sequences, self._algorithm.critic)
            of_completions = sequence_means(advantages, sequences)
        weights = off_policy_weights(self.off_policy, scores.logprobs, old, sampler, of_completions, sequences)
        return LossInputs(scores.logprobs, old, sampler, advantages, weights, sequences, scores.values, old_values, returns)


def _tree(index: int, group: RolloutGroup, advantages: Sequence[float | None], age_of: Callable[[int], int] | None = None) -> Tree:
    """The group's judged completions; without `age_of` their tokens' ages are left out.

    Raises:
        NonFiniteStepError: a log-prob of the sampler is not finite.
    """
    trained = [(rollout, advantage) for rollout, advantage in zip(group.rollouts, advantages, strict=True) if advantage is not None]
    for rollout, _ in trained:
        if not all(map(math.isfinite, rollout.logprobs)):
            raise NonFiniteStepError(
                f"group {group.admission.index} has a log-prob of the sampler that is not finite; look at engine {group.engine}"
            )
    branches = (
        Branch(
            rollout.token_ids, rollout.logprobs, advantage, tuple(_ages(rollout, age_of)) if age_of is not None else (), rollout.observed
        )
        for rollout, advantage in trained
    )
    return Tree(index, group.prompt_ids, tuple(branches))


def _cut(trees: Sequence[Tree], parts: int) -> Iterator[Sequence[Tree]]:
    """At most `parts` runs of about as many trees, each with tokens to train."""
    trained = [tree for tree in trees if tree.trained_tokens]
    parts = min(parts, len(trained))
    if parts == 1:
        yield trees
        return
    bounds = [len(trained) * number // parts for number in range(parts + 1)]
    yield from (trained[start:end] for start, end in itertools.pairwise(bounds))


def _ages(rollout: Rollout, age_of: Callable[[int], int]) -> Iterator[int]:
    for span in rollout.spans:
        yield from [age_of(span.version)] * (span.end - span.start)


def _by_age(tokens: TokenStatistics) -> dict[int, AgeMetrics]:
    return {
        age: AgeMetrics(
            tokens=found.tokens,
            mismatch_kl=found.mismatch_k3,
            chi2=found.chi2,
            ess=found.ess,
            clip_fraction=found.clip_fraction,
            rejected_share=found.rejected,
        )
        for age, found in tokens.by_age.items()
    }
