"""The learner of on-policy distillation: sampled completions and a teacher's log-probs of them become one optimizer update.

The reverse KL at a position, KL(π ‖ T) = Σ_y π(y)·(log π(y) − log T(y)), has the gradient E_{y~π}[(log π(y) − log T(y))·∇ log π(y)], since
E[∇ log π] = 0. With tokens y_t that a sampler μ drew, equal to π but for rounding and what an update changed meanwhile,

    loss = 1/N Σ_t min(π(y_t)/μ(y_t), 2) · (log π(y_t) − log T(y_t)) · log π(y_t),      weights and differences detached

over all N completion tokens of the batch. A token answers for its own position alone (discount 0), as in arXiv 2306.13649 with λ = 1 and
the reverse KL; later consequences are what MiniLLM (arXiv 2306.08543) adds and this does not. The value that is reported is the mean of
log π − log T, which estimates the reverse KL in nats a token and can be below 0 by chance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvr_api.stages import Optimizer
from rlvr_trainer.packing import Branch, PackedBatch, Tree, plan_micro_batches
from rlvr_trainer.policy import Policy
from rlvr_trainer.supervised_learner import SupervisedReport
from rlvr_trainer.traces import Example
from rlvr_trainer.training import Resumable, Trainer

MAX_WEIGHT = 2.0


@dataclass(frozen=True, slots=True)
class TaughtExample(Example):
    """A completion of the model's own, and what both say of it; log-probs are as long as `completion_ids`."""

    sampler_logprobs: tuple[float, ...]
    teacher_logprobs: tuple[float, ...]


class ReverseKlLearner(Resumable):
    """Trains `policy` towards a teacher; optimizer and schedule are new.

    Args:
        total_steps: of the schedule.
    """

    def __init__(self, policy: Policy, optimizer: Optimizer, total_steps: int, tokens_per_micro_batch: int) -> None:
        super().__init__(Trainer(policy, optimizer, total_steps))
        self._tokens_per_micro_batch = tokens_per_micro_batch

    def step(self, examples: Sequence[Example], place: str) -> SupervisedReport:
        """Learn from a batch of `TaughtExample`.

        Raises:
            NonFiniteStepError: the loss or the gradient is not finite; the weights are unchanged.
        """
        taught = [example for example in examples if isinstance(example, TaughtExample)]
        assert len(taught) == len(examples)
        trees = [Tree(index, one.prompt_ids, (Branch(one.completion_ids, one.sampler_logprobs),)) for index, one in enumerate(taught)]
        tokens = sum(tree.trained_tokens for tree in trees)
        plan = plan_micro_batches(trees, self._tokens_per_micro_batch)
        entropies: list[Tensor] = []
        policy = self._trainer.policy

        def loss_of(number: int, packed: PackedBatch) -> Tensor:
            scores = policy.completion_logprobs(packed, 1.0)
            entropies.append(scores.entropies.detach().double().sum())
            said = [value for tree in plan[number] for value in taught[tree.index].teacher_logprobs]
            teacher = torch.tensor(said, dtype=scores.logprobs.dtype, device=scores.logprobs.device)
            return reverse_kl(scores.logprobs, packed.sampler_logprobs, teacher).sum() / tokens

        seconds: dict[str, float] = {}
        update = self._trainer.update(plan, loss_of, seconds, place, lambda found: ", ".join(taught[index].name for index in found))
        self._trainer.step += 1
        entropy = math.fsum(torch.stack(entropies).tolist()) / tokens
        return SupervisedReport(len(examples), tokens, update.loss, update.gradient_norm, update.learning_rate, entropy, seconds)


def reverse_kl(logprobs: Tensor, sampler_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """log π − log T of each token, with the gradient of the module's docstring.

    Args:
        logprobs: of the sampled tokens under the policy, [N], differentiable.
        sampler_logprobs, teacher_logprobs: [N].
    """
    current = logprobs.detach()
    gap = current - teacher_logprobs
    weight = (current - sampler_logprobs).exp().clamp(max=MAX_WEIGHT)
    return gap + weight * gap * (logprobs - current)  # the last factor is 0, and has the gradient of the log-prob
