"""DPPO with the binary total-variation mask (arXiv 2602.04879): the trust region is round the sampler, so no other weight applies.

    ρ_it = π_θ / π_sampler;   A_i = r_i − mean(r)
    L = 1/N Σ_i Σ_t −[kept]·A_i·ρ_it + k·(log ρ_it)²

A token is kept unless its probability has moved by more than the threshold in the direction that A pushes it.
"""

import torch

from rlvr_api.algorithms import DppoTv
from rlvr_trainer.algorithms.base import AlgorithmBase, LossInputs, LossOutput, token_sum
from rlvr_trainer.losses import total_variation_loss


class DppoTvAlgorithm(AlgorithmBase[DppoTv]):
    """Policy gradient on the ratio to the sampler. `LossInputs.weights` are 1, or 0 for tokens that `offPolicy.rejection` drops."""

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Σ L over all tokens, those outside the trust region included (their squared log-ratio counts)."""
        # A dropped token may have a ratio that overflows, and 0 · ∞ is not 0.
        sampler = torch.where(inputs.weights > 0, inputs.sampler_logprobs, inputs.logprobs.detach())
        settings = self.settings
        return token_sum(
            inputs, total_variation_loss(inputs.logprobs, sampler, inputs.advantages, settings.threshold, settings.kl_coefficient)
        )
