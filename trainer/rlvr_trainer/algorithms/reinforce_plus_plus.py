"""REINFORCE++ (arXiv 2501.03262, section 3): PPO's surrogate without a critic, on advantages normalised over the whole batch.

a_i = r_i − mean of its group (the baseline variant), or r_i
A_i = (a_i − mean(a)) / std(a), over the batch
L = 1/N Σ_i Σ_t w_it · max(−A_i·r_it, −A_i·clip(r_it, 1 − ε_low, 1 + ε_high))
"""

from collections.abc import Sequence

from rlvr_api.algorithms import ReinforcePlusPlus
from rlvr_trainer.advantages import Outcome, batch_advantages
from rlvr_trainer.algorithms.base import AlgorithmBase, LossInputs, LossOutput, token_sum
from rlvr_trainer.losses import clipped_surrogate


class ReinforcePlusPlusAlgorithm(AlgorithmBase[ReinforcePlusPlus]):
    """Clipped surrogate on batch-normalised advantages."""

    def advantages(self, groups: Sequence[Sequence[Outcome]]) -> list[list[float | None]]:
        """See `batch_advantages`."""
        return batch_advantages([self.rewards(group) for group in groups], group_baseline=self.settings.group_baseline)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Σ w·L."""
        bounds = self.settings.clip_low, self.settings.clip_high
        return token_sum(inputs, clipped_surrogate(inputs.logprobs, inputs.old_logprobs, inputs.advantages, *bounds))
