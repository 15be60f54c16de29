"""The critic of PPO: a linear head on the policy's last hidden states, and the advantages that come of it.

    hidden state from which a token was drawn -> V of the state before it        rewards, V -> returns, GAE -> advantages

The head shares the policy's trunk, so it costs a vector and no forward pass, and its loss also shapes the trunk, by its coefficient
(arXiv 1707.06347, eq. 9). It is in checkpoints and never goes to engines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

PREFIX = "critic/"
"""Of its weights among a checkpoint's tensors."""


@dataclass(frozen=True, slots=True)
class CriticSettings:
    """What an algorithm wants of its critic."""

    learning_rate: float
    """Peak."""
    discount: float
    """γ."""
    gae_lambda: float
    """λ."""


class Critic:
    """V(s) = w·x/H + b with x the normalised hidden state and H its size; 0 at first.

    The normalisation and the division keep a step of AdamW about as large in V as the learning rate, whatever the model's width.
    """

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        self._weight = nn.Parameter(torch.zeros(hidden_size, device=device))
        self._bias = nn.Parameter(torch.zeros((), device=device))

    def values(self, states: Tensor) -> Tensor:
        """V of each of N states, float32 [N], differentiable; `states` is [N, H] of any floating-point dtype."""
        normal = layer_norm(states.float(), states.shape[-1:])
        return normal @ self._weight / states.shape[-1] + self._bias

    def parameters(self) -> dict[str, nn.Parameter]:
        """By name."""
        return {f"{PREFIX}weight": self._weight, f"{PREFIX}bias": self._bias}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take its weights out of a checkpoint's tensors; others are ignored.

        Raises:
            ValueError: they are missing or of another model; nothing is changed.
        """
        for name, parameter in self.parameters().items():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise ValueError(f"the checkpoint has no '{name}' of this model: it is of another algorithm; give the job another name")
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(tensors[name])


class Estimates(NamedTuple):
    """Of N tokens, float32, detached."""

    advantages: Tensor
    returns: Tensor
    """What V is fitted to."""


def estimate_advantages(rewards: Tensor, values: Tensor, sequences: Tensor, settings: CriticSettings) -> Estimates:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16) where a completion is rewarded at its end alone.

    δ_t = γ·V_{t+1} − V_t, at the last token r − V_t;   A_t = Σ_l (γλ)^l·δ_{t+l};   R_t = γ^(T−1−t)·r

    The critic is fitted to the discounted reward itself, λ = 1, whatever λ the policy takes (arXiv 2503.01491): its target then does not
    lean on its own errors.

    Args:
        rewards: [N], that of the token's completion.
        values: [N], V of the state from which each token was drawn.
        sequences: [N], int64, number of the token's completion; the tokens of one follow each other.
    """
    advantages: list[float] = []
    returns: list[float] = []
    triples = zip(sequences.tolist(), rewards.tolist(), values.tolist(), strict=True)
    for _, tokens in groupby(triples, key=lambda triple: triple[0]):
        of_one = _of_completion([(reward, value) for _, reward, value in tokens], settings)
        advantages += [advantage for advantage, _ in of_one]
        returns += [target for _, target in of_one]
    return Estimates(torch.tensor(advantages, device=values.device), torch.tensor(returns, device=values.device))


def _of_completion(tokens: Sequence[tuple[float, float]], settings: CriticSettings) -> list[tuple[float, float]]:
    """Advantage and return of each token, from its reward and value; in float64, from the end."""
    found: list[tuple[float, float]] = []
    reward, advantage, following = tokens[-1][0], 0.0, 0.0
    target = reward
    for number, (_, value) in enumerate(reversed(tokens)):
        delta = (reward if number == 0 else settings.discount * following) - value
        advantage = delta + settings.discount * settings.gae_lambda * advantage
        target = reward if number == 0 else settings.discount * target
        following = value
        found.append((advantage, target))
    return found[::-1]
