"""GSPO (arXiv 2507.18071, eq. 5 and 7): rewards are a completion's, so the ratio and its clipping are, too.

    s_i = (π_θ(y_i) / π_old(y_i))^(1/|y_i|);   A_i = r_i − mean(r)      (optionally over std(r))
    L = 1/G Σ_i max(−A_i·s_i, −A_i·clip(s_i, 1 − ε_low, 1 + ε_high))

Written in the paper's token form, which has the same gradient and lets each token keep its own correction weight.
"""

from rlvr_api.algorithms import Gspo
from rlvr_trainer.algorithms.base import AlgorithmBase, LossInputs, LossOutput, completion_mean_sum
from rlvr_trainer.losses import sequence_surrogate


class GspoAlgorithm(AlgorithmBase[Gspo]):
    """Clipped surrogate on the geometric mean of a completion's ratios; the mean over completions."""

    def denominator(self, tokens: int, completions: int) -> float:
        """Completions."""
        return completions

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Σ_i mean_t w·L."""
        bounds = self.settings.clip_low, self.settings.clip_high
        tokens = sequence_surrogate(inputs.logprobs, inputs.old_logprobs, inputs.advantages, inputs.sequences, *bounds)
        return completion_mean_sum(inputs, tokens)
