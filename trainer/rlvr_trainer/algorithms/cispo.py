"""CISPO (arXiv 2506.13585, eq. 4 and 5): clip the importance weight and not the update, so that no token loses its gradient.

A_i = r_i − mean(r)      (optionally over std(r))
L = −1/N Σ_i Σ_t w_it · sg(min(r_it, cap)) · A_i · log π_θ(y_it)
"""

from rlvr_api.algorithms import Cispo
from rlvr_trainer.algorithms.base import AlgorithmBase, LossInputs, LossOutput, token_sum
from rlvr_trainer.losses import capped_policy_gradient


class CispoAlgorithm(AlgorithmBase[Cispo]):
    """Policy gradient with a capped weight; `cut` counts the capped tokens."""

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Σ w·L."""
        return token_sum(inputs, capped_policy_gradient(inputs.logprobs, inputs.old_logprobs, inputs.advantages, self.settings.max_ratio))
