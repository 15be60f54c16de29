"""Dr. GRPO (arXiv 2503.20783, section 3.2): GRPO without the two divisors that bias it.

    A_i = r_i − mean(r)
    L = 1/(G·C) Σ_i Σ_t w_it · max(−A_i·r_it, −A_i·clip(r_it, 1 − ε_low, 1 + ε_high))

C is a constant of the job. A division by the completion's own length would favour short right and long wrong answers, one by std(r)
questions that are nearly solved or nearly hopeless.
"""

from rlvr_api.algorithms import DrGrpo
from rlvr_trainer.algorithms.base import AlgorithmBase, LossInputs, LossOutput, token_sum
from rlvr_trainer.losses import clipped_surrogate


class DrGrpoAlgorithm(AlgorithmBase[DrGrpo]):
    """Clipped surrogate, summed over tokens and divided by completions and the constant."""

    def denominator(self, tokens: int, completions: int) -> float:
        """G·C, over all groups of the update."""
        return completions * self.settings.normalizer_tokens

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Σ w·L."""
        bounds = self.settings.clip_low, self.settings.clip_high
        return token_sum(inputs, clipped_surrogate(inputs.logprobs, inputs.old_logprobs, inputs.advantages, *bounds))
