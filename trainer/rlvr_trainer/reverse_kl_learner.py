"""The learner of on-policy distillation: sampled completions and a teacher's log-probs of them become one optimizer update.

The reverse KL at a position, KL(π ‖ T) = Σ_y π(y)·(log π(y) − log T(y)), has the gradient E_{y~π}[(log π(y) − log T(y))·∇ log π(y)], since
E[∇ log π] = 0. With tokens y_t that a sampler μ drew, equal to π but for rounding and what an update changed meanwhile,

    loss = 1/N Σ_t min(π(y_t)/μ(y_t), 2) · (log π(y_t) − log T(y_t)) · log π(y_t),      weights and differences detached

over all N completion tokens of the batch. A token answers for its own position alone (discount 0), as in arXiv 2306.13649 with λ = 1 and
the reverse KL; later consequences are what MiniLLM (arXiv 2306.08543) adds and this does not. The value that is reported is the mean of
log π − log T, which estimates the reverse KL in nats a token and can be below 0 by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import TypeAdapter
from torch import Tensor

from rlvr_trainer.packing import PackedBatch
from rlvr_trainer.supervised_learner import SupervisedLearner
from rlvr_trainer.traces import Example

MAX_WEIGHT = 2.0


@dataclass(frozen=True, slots=True)
class TaughtExample(Example):
    """A completion of the model's own, and what both say of it; log-probs are as long as `completion_ids`."""

    sampler_logprobs: tuple[float, ...]
    teacher_logprobs: tuple[float, ...]


class ReverseKlLearner(SupervisedLearner):
    """Trains `policy` towards a teacher, on batches of `TaughtExample`."""

    naming = ""
    towards_teacher = True
    example_lists = TypeAdapter(list[TaughtExample])

    def _sampler_logprobs(self, example: Example) -> tuple[float, ...]:
        assert isinstance(example, TaughtExample)
        return example.sampler_logprobs

    def _losses(self, logprobs: Tensor, packed: PackedBatch, examples: Sequence[Example]) -> Tensor:
        said = [value for example in examples if isinstance(example, TaughtExample) for value in example.teacher_logprobs]
        teacher = torch.tensor(said, dtype=logprobs.dtype, device=logprobs.device)
        return reverse_kl(logprobs, packed.sampler_logprobs, teacher)


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
