"""PPO (arXiv 1707.06347, eq. 7 and 9) with a critic, so that a token is compared with what was to be expected there, and not with a group.

    A_it by GAE from V, R_it the discounted reward      (`critic.estimate_advantages`)
    L = 1/N Σ_i Σ_t w_it · max(−A_it·r_it, −A_it·clip(r_it, 1 − ε_low, 1 + ε_high))
                    + c · [w_it > 0] · ½·max((V − R)², (clip(V, V_old ± ε_V) − R)²)

Every judged completion teaches, those of solved and hopeless groups too: V learns from them. With a critic that predicts the reward they
have no advantage left.
"""

from collections.abc import Sequence

import torch

from rlvr_api.algorithms import Ppo
from rlvr_trainer.advantages import Outcome
from rlvr_trainer.algorithms.base import AlgorithmBase, LossInputs, LossOutput, token_sum
from rlvr_trainer.critic import CriticSettings
from rlvr_trainer.losses import clipped_surrogate, clipped_value_loss


class PpoAlgorithm(AlgorithmBase[Ppo]):
    """Clipped surrogate on GAE's advantages, and the clipped value loss."""

    @property
    def critic(self) -> CriticSettings:
        """As the job says."""
        return CriticSettings(self.settings.critic_learning_rate, self.settings.discount, self.settings.gae_lambda)

    def advantages(self, groups: Sequence[Sequence[Outcome]]) -> list[list[float | None]]:
        """The rewards themselves: what a completion is compared with is the critic's, token by token."""
        return [self.rewards(group) for group in groups]

    def is_live(self, advantages: Sequence[float | None]) -> bool:
        """Any completion that was judged."""
        return any(advantage is not None for advantage in advantages)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Σ w·L."""
        assert inputs.values is not None
        assert inputs.old_values is not None
        assert inputs.returns is not None
        settings = self.settings
        policy = clipped_surrogate(inputs.logprobs, inputs.old_logprobs, inputs.advantages, settings.clip_low, settings.clip_high)
        output = token_sum(inputs, policy)
        value = clipped_value_loss(inputs.values, inputs.old_values, inputs.returns, settings.value_clip)
        kept = torch.where(inputs.weights > 0, value, 0.0)
        return LossOutput(output.total + settings.value_coefficient * kept.sum(), output.cut)
