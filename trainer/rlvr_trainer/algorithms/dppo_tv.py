"""DPPO with the binary total-variation mask (arXiv 2602.04879): the trust region is round the sampler, so no other correction applies."""

from rlvr_api.algorithms import DppoTv
from rlvr_trainer.algorithms.base import AlgorithmBase, LossInputs, LossOutput
from rlvr_trainer.losses import total_variation_loss


class DppoTvAlgorithm(AlgorithmBase[DppoTv]):
    """Policy gradient on the ratio to the sampler. `LossInputs.weights` are ones by the spec's rules, and not looked at."""

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Σ L over all tokens, those outside the trust region included (their squared log-ratio counts)."""
        loss, cut = total_variation_loss(
            inputs.logprobs, inputs.sampler_logprobs, inputs.advantages, self.settings.threshold, self.settings.kl_coefficient
        )
        return LossOutput(loss.sum(), cut.sum())
