"""GRPO (arXiv 2402.03300, eq. 3) with clip-higher (arXiv 2503.14476), dual clip, the mean over tokens and an off-policy correction.

    A_i = r_i − mean(r)                          (optionally over std(r))
    L = 1/N Σ_i Σ_t w_it · max(−A_i·r_it, −A_i·clip(r_it, 1 − ε_low, 1 + ε_high)), at most c·|A_i| where A_i < 0
    r_it = π_θ / π_old, N tokens

In a step's first update the ratio is 1 at every token, so nothing is clipped and the gradient is −w·A·∇lp.
"""

from rlvr_api.algorithms import Grpo
from rlvr_trainer.algorithms.base import AlgorithmBase, LossInputs, LossOutput, token_sum
from rlvr_trainer.losses import clipped_surrogate


class GrpoAlgorithm(AlgorithmBase[Grpo]):
    """Clipped surrogate on the ratio to the policy at the start of the step, each token times its correction weight."""

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Σ w·L."""
        bounds = self.settings.clip_low, self.settings.clip_high, self.settings.dual_clip
        return token_sum(inputs, clipped_surrogate(inputs.logprobs, inputs.old_logprobs, inputs.advantages, *bounds))
