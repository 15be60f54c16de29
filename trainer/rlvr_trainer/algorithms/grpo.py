"""GRPO (arXiv 2402.03300) with clip-higher (arXiv 2503.14476), dual clip and an off-policy correction.

With one optimizer step a batch the ratio is 1 at every token, so no token is ever clipped and the gradient is −w·A·∇lp. The bounds matter
to whoever takes several steps a batch.
"""

from collections.abc import Sequence

from rlvr_api.algorithms import Grpo
from rlvr_trainer.advantages import group_advantages
from rlvr_trainer.algorithms.base import AlgorithmBase, LossInputs, LossOutput
from rlvr_trainer.losses import clipped_surrogate


class GrpoAlgorithm(AlgorithmBase[Grpo]):
    """Clipped surrogate on the ratio to the policy at the start of the update, each token times its correction weight."""

    def advantages(self, rewards: Sequence[float | None]) -> list[float | None]:
        """See `AlgorithmBase.advantages`; divided by the group's standard deviation if the settings say so."""
        return group_advantages(rewards, normalize_by_std=self.settings.normalize_by_std)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Σ w·L."""
        settings = self.settings
        loss, cut = clipped_surrogate(
            inputs.logprobs, inputs.old_logprobs, inputs.advantages, settings.clip_low, settings.clip_high, settings.dual_clip
        )
        return LossOutput((inputs.weights * loss).sum(), cut.sum())
