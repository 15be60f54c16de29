"""SAPO (arXiv 2511.20347): a gate that fades with the distance of the ratio from 1, where PPO clips at once.

A_i = r_i − mean(r)      (optionally over std(r))
L = −1/G Σ_i 1/|y_i| Σ_t w_it · A_i · (4/τ)·σ(τ·(r_it − 1)),   τ = τ_pos where A_i > 0, else τ_neg
"""

from rlvr_api.algorithms import Sapo
from rlvr_trainer.algorithms.base import AlgorithmBase, LossInputs, LossOutput, completion_mean_sum
from rlvr_trainer.losses import soft_gate


class SapoAlgorithm(AlgorithmBase[Sapo]):
    """Soft-gated policy gradient; the mean over completions of the mean over their tokens."""

    def denominator(self, tokens: int, completions: int) -> float:
        """Completions."""
        return completions

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Σ_i mean_t w·L."""
        temperatures = self.settings.temperature_positive, self.settings.temperature_negative
        return completion_mean_sum(inputs, soft_gate(inputs.logprobs, inputs.old_logprobs, inputs.advantages, *temperatures))
