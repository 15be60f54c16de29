"""What an algorithm is: how rewards become advantages, and how log-probs and advantages become a loss.

    batch -> advantages -> (learner: packing) -> loss of each micro-batch, a sum -> over `denominator` of the update

An algorithm is pure: it holds its settings and nothing else. What is common to all of them, the packing, the corrections against the
sampler, the optimizer, is the learner's.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from rlvr_api.algorithms import GroupRelative
from rlvr_api.model import ApiModel
from rlvr_trainer.advantages import Outcome, group_advantages, is_live
from rlvr_trainer.critic import CriticSettings
from rlvr_trainer.integrity.rewards import noise_corrected_advantages
from rlvr_trainer.losses import TokenLoss, sequence_lengths

SettingsT = TypeVar("SettingsT", bound=ApiModel)


@dataclass(frozen=True, slots=True)
class LossInputs:
    """N completion tokens of a micro-batch; every tensor is [N] and float32 unless it says otherwise."""

    logprobs: Tensor
    """Under the weights that are trained; the only one with a gradient."""
    old_logprobs: Tensor
    """Under the policy at the start of the step; in a step's first update the same values, detached."""
    sampler_logprobs: Tensor
    """As the engine returned them."""
    advantages: Tensor
    """Of the token's completion."""
    weights: Tensor
    """Off-policy correction, detached; 0 drops a token."""
    sequences: Tensor
    """int64: number of the token's completion within the micro-batch."""
    values: Tensor | None = None
    """The critic's of the state from which the token was drawn, with a gradient; None, like the next two, without a critic."""
    old_values: Tensor | None = None
    """The same at the start of the step."""
    returns: Tensor | None = None
    """What `values` are fitted to."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a micro-batch adds to the update."""

    total: Tensor
    """Scalar, differentiable: a sum, not normalised."""
    cut: Tensor
    """[N], bool: the trust region acts on the token."""


class AlgorithmBase(ABC, Generic[SettingsT]):
    """One algorithm with its settings of the job.

    Args:
        max_tokens: longest completion, in tokens.
    """

    def __init__(self, settings: SettingsT, max_tokens: int) -> None:
        self.settings = settings
        self.max_tokens = max_tokens

    @property
    def critic(self) -> CriticSettings | None:
        """Of the critic that it needs: `LossInputs` then have values, their advantages are GAE's, and `advantages` gives rewards."""
        return None

    def advantages(self, groups: Sequence[Sequence[Outcome]]) -> list[list[float | None]]:
        """Advantage of each completion of a batch, by group; None where masked, all 0.0 where a group has no signal."""
        return [self._of_group(group) for group in groups]

    def _of_group(self, group: Sequence[Outcome]) -> list[float | None]:
        normalize = isinstance(self.settings, GroupRelative) and self.settings.normalize_by_std
        noise = next((outcome.noise for outcome in group if outcome.noise is not None), None)
        if normalize and noise is not None:
            return noise_corrected_advantages(self.rewards(group), *noise)
        return group_advantages(self.rewards(group), normalize_by_std=normalize)

    def rewards(self, group: Sequence[Outcome]) -> list[float | None]:
        """What advantages compare: the verifiers' scores less penalties, unless the algorithm shapes them."""
        return [outcome.shaped for outcome in group]

    def is_live(self, advantages: Sequence[float | None]) -> bool:
        """Whether a group with these advantages teaches something, so that it is computed."""
        return is_live(advantages)

    def denominator(self, tokens: int, completions: int) -> float:
        """What an update's sum is divided by; known before its first micro-batch, so that masks do not inflate what is left.

        Args:
            tokens: completion tokens of the update's live groups.
            completions: judged completions of these groups, empty ones included.
        """
        return tokens

    @abstractmethod
    def loss(self, inputs: LossInputs) -> LossOutput:
        """The loss of a micro-batch."""


def token_sum(inputs: LossInputs, token: TokenLoss) -> LossOutput:
    """Σ w·L over tokens; with `denominator` the mean over tokens."""
    return LossOutput((inputs.weights * token.loss).sum(), token.cut)


def completion_mean_sum(inputs: LossInputs, token: TokenLoss) -> LossOutput:
    """Σ over completions of the mean over their tokens of w·L; divided by completions, every completion counts the same."""
    return LossOutput((inputs.weights * token.loss / sequence_lengths(token.loss.detach(), inputs.sequences)).sum(), token.cut)
