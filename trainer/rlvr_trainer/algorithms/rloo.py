"""RLOO (arXiv 2402.14740): REINFORCE on whole completions, with the mean reward of the others as baseline.

A_i = r_i − 1/(G − 1) Σ_{j≠i} r_j
L = −1/G Σ_i A_i Σ_t w_it · log π_θ(y_it)
"""

from collections.abc import Sequence

from rlvr_api.algorithms import Rloo
from rlvr_trainer.advantages import Outcome, leave_one_out_advantages
from rlvr_trainer.algorithms.base import AlgorithmBase, LossInputs, LossOutput, token_sum
from rlvr_trainer.losses import policy_gradient


class RlooAlgorithm(AlgorithmBase[Rloo]):
    """Policy gradient of the completion's log-prob, which is the sum over its tokens."""

    def advantages(self, groups: Sequence[Sequence[Outcome]]) -> list[list[float | None]]:
        """See `leave_one_out_advantages`."""
        return [leave_one_out_advantages(self.rewards(group)) for group in groups]

    def denominator(self, tokens: int, completions: int) -> float:
        """Completions: lengths are not divided by."""
        return completions

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Σ w·L."""
        return token_sum(inputs, policy_gradient(inputs.logprobs, inputs.advantages))
