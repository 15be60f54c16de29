"""What an algorithm is: how rewards become advantages, and how log-probs and advantages become a loss.

An algorithm is pure: it holds its settings and nothing else. What is common to all of them, the packing, the normalisation by the number
of tokens, the optimizer, is the learner's.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from rlvr_api.model import ApiModel
from rlvr_trainer.advantages import group_advantages

SettingsT = TypeVar("SettingsT", bound=ApiModel)


@dataclass(frozen=True, slots=True)
class LossInputs:
    """N completion tokens of a micro-batch; every tensor is [N] and float32."""

    logprobs: Tensor
    """Under the weights that are trained; the only one with a gradient."""
    old_logprobs: Tensor
    """Under the policy at the start of the update: the same values, detached, as there is one optimizer step a batch."""
    sampler_logprobs: Tensor
    """As the engine returned them."""
    advantages: Tensor
    """Of the token's completion."""
    weights: Tensor
    """Off-policy correction, detached."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a micro-batch adds to the step."""

    total: Tensor
    """Scalar, differentiable: the sum over tokens, not normalised."""
    cut_tokens: Tensor
    """Scalar, detached: tokens whose policy gradient the trust region made zero."""


class AlgorithmBase(ABC, Generic[SettingsT]):
    """One algorithm with its settings of the job."""

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    def advantages(self, rewards: Sequence[float | None]) -> list[float | None]:
        """Advantage of each completion of a group; None where masked, all 0.0 where the group has no signal."""
        return group_advantages(rewards)

    @abstractmethod
    def loss(self, inputs: LossInputs) -> LossOutput:
        """The loss of a micro-batch."""
