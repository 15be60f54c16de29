"""The learner of supervised stages: a batch of examples becomes one optimizer update.

    examples -> trees of one branch -> micro-batches -> −Σ log p / N -> `training.Trainer` -> SupervisedReport

N counts the completion tokens of the batch: every token weighs the same, and how the batch is cut does not change the gradient. Examples
are packed side by side under an attention that keeps them apart. Temperature is 1: likelihood, not sampling, is what is trained.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from rlvr_api.stages import Optimizer
from rlvr_trainer.distributed.commands import Command, OpenSupervised, TakeSupervisedStep
from rlvr_trainer.packing import Branch, PackedBatch, Tree, plan_rounds
from rlvr_trainer.policy import Policy
from rlvr_trainer.traces import Example
from rlvr_trainer.training import Resumable, Trainer


@dataclass(frozen=True, slots=True)
class SupervisedReport:
    """What a step did."""

    examples: int
    tokens: int
    """Completion tokens."""
    loss: float
    """Mean negative log-likelihood of a token, nats."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    entropy: float
    """Mean, nats."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by phase, as `training.Trainer.update` counts it."""


class SupervisedLearner(Resumable):
    """Trains `policy` on examples; optimizer and schedule are new.

    Args:
        total_steps: of the schedule.
    """

    naming = "the examples "
    """Stands before the names of examples in messages."""
    towards_teacher = False
    """For `OpenSupervised`."""
    example_lists: TypeAdapter[Any] = TypeAdapter(list[Example])
    """What its steps learn from, as JSON."""

    def __init__(self, policy: Policy, optimizer: Optimizer, total_steps: int, tokens_per_micro_batch: int) -> None:
        policy.ranks.tell(
            lambda: Command(OpenSupervised(optimizer=optimizer, total_steps=total_steps, towards_teacher=self.towards_teacher))
        )
        super().__init__(Trainer(policy, optimizer, total_steps))
        self._tokens_per_micro_batch = tokens_per_micro_batch

    def step(self, examples: Sequence[Example], place: str) -> SupervisedReport:
        """Learn from a batch.

        Raises:
            NonFiniteStepError: the loss or the gradient is not finite; the weights are unchanged.
        """
        policy = self._trainer.policy
        policy.ranks.tell(lambda: Command(TakeSupervisedStep(place=place), self.example_lists.dump_json(list(examples))))
        trees = [
            Tree(index, example.prompt_ids, (Branch(example.completion_ids, self._sampler_logprobs(example)),))
            for index, example in enumerate(examples)
        ]
        tokens = sum(tree.trained_tokens for tree in trees)
        rounds = plan_rounds(trees, self._tokens_per_micro_batch, policy.ranks.size)
        entropies: list[Tensor] = []

        def loss_of(number: int, packed: PackedBatch) -> Tensor:
            scores = policy.completion_logprobs(packed, 1.0)
            entropies.append(scores.entropies.detach().double().sum())
            members = rounds[number][policy.ranks.rank]
            return self._losses(scores.logprobs, packed, [examples[tree.index] for tree in members]).sum() / tokens

        seconds: dict[str, float] = {}
        update = self._trainer.update(
            rounds, loss_of, seconds, place, lambda found: self.naming + ", ".join(examples[index].name for index in found)
        )
        self._trainer.step += 1
        entropy = math.fsum(policy.ranks.collect(torch.stack(entropies)).flatten().tolist()) / tokens
        return SupervisedReport(len(examples), tokens, update.loss, update.gradient_norm, update.learning_rate, entropy, seconds)

    def _sampler_logprobs(self, example: Example) -> tuple[float, ...]:
        """Of the completion's tokens; examples of a file have no sampler."""
        return (0.0,) * len(example.completion_ids)

    def _losses(self, logprobs: Tensor, packed: PackedBatch, examples: Sequence[Example]) -> Tensor:
        """Of each completion token of a micro-batch, [N]."""
        return -logprobs
