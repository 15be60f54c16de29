"""DAPO (arXiv 2503.14476, eq. 8 to 13): clip-higher, the mean over tokens, soft punishment of length.

    r'_i = r_i − factor·min(max(len_i − (L_max − buffer), 0), buffer)/buffer;   A_i = r'_i − mean(r')      (optionally over std(r'))
    L = 1/N Σ_i Σ_t w_it · max(−A_i·r_it, −A_i·clip(r_it, 1 − ε_low, 1 + ε_high))

Dynamic sampling, which draws more groups in place of those whose verdicts are all equal, is the stage's `zeroVariance: resample`. It
looks at verdicts alone, as in the paper: lengths do not make a solved group worth keeping.
"""

from collections.abc import Sequence

from rlvr_api.algorithms import Dapo
from rlvr_trainer.advantages import Outcome, overlong_penalty
from rlvr_trainer.algorithms.base import AlgorithmBase, LossInputs, LossOutput, token_sum
from rlvr_trainer.losses import clipped_surrogate


class DapoAlgorithm(AlgorithmBase[Dapo]):
    """Clipped surrogate on rewards that long completions lose some of."""

    def rewards(self, group: Sequence[Outcome]) -> list[float | None]:
        """Scores less the penalty; in [−factor, 1]."""
        overlong = self.settings.overlong
        if overlong is None:
            return super().rewards(group)
        return [
            None if shaped is None else shaped - overlong_penalty(outcome.tokens, self.max_tokens, overlong.buffer_tokens, overlong.factor)
            for outcome, shaped in zip(group, super().rewards(group), strict=True)
        ]

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Σ w·L."""
        bounds = self.settings.clip_low, self.settings.clip_high
        return token_sum(inputs, clipped_surrogate(inputs.logprobs, inputs.old_logprobs, inputs.advantages, *bounds))
