"""LoRA (arXiv 2106.09685): the model stays as it is, and beside each of its linear layers a product of two small matrices is trained.

    y = W0·x + s·B·(A·x),   s = alpha / rank,   A at random, B = 0 at first

    add_adapters(model) -> A and B train, W0 does not        plain_weights: W0 + s·B·A under the model's own names, for engines and export
                                                             renamed: weights under the model's own names, for the model with adapters

All linear layers but the head get one. W0 stays in float32 and is never written to, so that merging is exact however often it is done.
Engines are sent A and B, and add them as is done here (`weights.adapters`). Not covered: quantised W0.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rlvr_api.spec import Lora

BASE = "base"
A, B = "lora_a", "lora_b"


class LoraLinear(nn.Module):
    """A frozen linear layer with its adapter."""

    def __init__(self, base: nn.Linear, settings: Lora, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.scale = settings.alpha / settings.rank
        bound = 1.0 / math.sqrt(base.in_features)  # Kaiming's uniform with a = √5, as linear layers begin
        start = (torch.rand(settings.rank, base.in_features, generator=generator) * 2 - 1) * bound
        self.lora_a = nn.Parameter(start.to(base.weight))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, settings.rank))

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        output: Tensor = self.base(inputs)
        return output + self.scale * linear(linear(inputs, self.lora_a), self.lora_b)


@dataclass(frozen=True, slots=True)
class Merge:
    """W0 + s·B·A, by the names of the three parameters."""

    base: str
    a: str
    b: str
    scale: float

    def of(self, get: Callable[[str], Tensor]) -> Tensor:
        """The sum, from what `get` has under these names."""
        return torch.addmm(get(self.base), get(self.b), get(self.a), alpha=self.scale)


def is_adapter(parameter: str) -> bool:
    """Whether a parameter of this name is one of an adapter's two."""
    return parameter.rpartition(".")[2] in (A, B)


def add_adapters(model: nn.Module, head: nn.Module, settings: Lora, seed: int) -> None:
    """Freeze the model and give its linear layers adapters, the same ones for the same seed.

    Raises:
        ValueError: the model has no linear layer beside its head.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if not found:
        raise ValueError(
            "it has no linear layers beside its head, so model.lora has nothing to add to: train it whole, or take another model"
        )
    for name, module in found:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, LoraLinear(module, settings, generator))


def plain_weights(model: nn.Module) -> dict[str, str | Merge]:
    """The model's weights by the names that it has without adapters: the parameter that each is, or what it is made of."""
    layers = dict(_layers(model))
    found: dict[str, str | Merge] = {}
    for name, _ in model.named_parameters():
        layer, _, own = name.rpartition(f".{BASE}.")
        if layer in layers and own == "weight":
            found[f"{layer}.{own}"] = Merge(name, f"{layer}.{A}", f"{layer}.{B}", layers[layer].scale)
        elif layer in layers:
            found[f"{layer}.{own}"] = name
        elif not is_adapter(name):
            found[name] = name
    return found


def adapted_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Shapes of the weights that adapters are added to, by the names that the model has without them."""
    return {f"{name}.weight": layer.base.weight.shape for name, layer in _layers(model)}


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights with its adapters worked in, by the names that it has without them; only merged ones are copies."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {
        name: parameters[found] if isinstance(found, str) else found.of(parameters.__getitem__)
        for name, found in plain_weights(model).items()
    }


def renamed(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names that the model has without adapters, for the model with them, which then add nothing; others are kept."""
    found = dict(weights)
    for name, layer in _layers(model):
        for own in ("weight", "bias"):
            if f"{name}.{own}" in found:
                found[f"{name}.{BASE}.{own}"] = found.pop(f"{name}.{own}")
        if f"{name}.{BASE}.weight" in found:
            # In the dtype of the weights, which need not be the adapters' own.
            like = found[f"{name}.{BASE}.weight"]
            found |= {f"{name}.{A}": like.new_zeros(layer.lora_a.shape), f"{name}.{B}": like.new_zeros(layer.lora_b.shape)}
    return found


def _layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear))
