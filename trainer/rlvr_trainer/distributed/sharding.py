"""Shards a model over the processes of a learner (FSDP2), and hands its parts to those who work on plain tensors.

    model -> shard_model -> ShardedModel: forward and backward as ever, layers gathered while they compute
                              .shards: own rows as plain parameters      -> optimizer, elementwise, on what is here
                              .take_gradients: reduced gradients of them
    shards -> GatheredTensors: whole on the lead, one at a time          -> engines, checkpoints, the final model

Gradients are summed, not averaged: losses are divided by counts of all processes before. Each decoder layer is a unit, and embeddings,
final norm and head are one, which stays whole between forward and backward.
Not covered: sharding over a part of the processes (HSDP), communication in lower precision, offloading to the CPU.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from rlvr_trainer.distributed.commands import Command, Gather
from rlvr_trainer.distributed.ranks import LEAD, Ranks, Shard
from rlvr_trainer.lora import Merge
from rlvr_trainer.streamed import StreamedTensors


class ShardedModel:
    """What FSDP2 made of a model, and the own part of its trainable weights."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        """Shards `model` in place, onto the mesh's device.

        Raises:
            ValueError: the model does not say what its layers are.
        """
        units = [*reversed(_layers(model)), model]  # from the inside out
        for unit in units:
            fully_shard(unit, mesh=ranks.mesh)
        for unit in units:
            assert isinstance(unit, FSDPModule)
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
            # A process without a share of a round must meet the others in the same collectives.
            unit.set_reduce_scatter_unused_params(True, recurse=False)
        assert isinstance(model, FSDPModule)
        self._root: FSDPModule = model
        self._sharded = {name: _dtensor(parameter) for name, parameter in model.named_parameters()}
        with torch.no_grad():
            self._rows = {name: whole.to_local().detach() for name, whole in self._sharded.items()}
        self.parameters = {name: nn.Parameter(self._rows[name]) for name, whole in self._sharded.items() if whole.requires_grad}
        """The own rows of the trainable weights; changing them changes the model."""

    def shards(self, prefix: str) -> dict[str, Shard]:
        """The own rows of all weights, frozen ones included; `prefix` begins their names in checkpoints."""
        return {name: Shard(prefix + name, rows, self._sharded[name].shape) for name, rows in self._rows.items()}

    def take_gradients(self) -> None:
        """Move the gradients, which FSDP2 has summed over all processes, to `parameters`."""
        for name, own in self.parameters.items():
            gradient = self._sharded[name].grad
            own.grad = None if gradient is None else _local(gradient)
            self._sharded[name].grad = None

    def drop_gradients(self) -> None:
        """Free them where they were not taken."""
        for sharded in self._sharded.values():
            sharded.grad = None

    def forget_forward(self) -> None:
        """After a forward pass that no backward pass follows: free what it gathered, which the next change of weights makes stale."""
        self._root.reset_iter_state()


@dataclass(frozen=True, slots=True)
class MergedShards:
    """A weight with its adapter worked in."""

    merge: Merge
    shards: Mapping[str, Shard]
    """At least those that it is made of."""


class GatheredTensors(StreamedTensors):
    """Whole tensors, each gathered on the lead when it is asked for; for the lead alone.

    Args:
        parts: own rows, what is made of several such, or tensors that every process has.
    """

    def __init__(self, parts: Mapping[str, Shard | Tensor | MergedShards], ranks: Ranks, device: torch.device) -> None:
        self._parts, self._ranks, self._device = parts, ranks, device

    @property
    def device(self) -> torch.device:
        """Where they are gathered."""
        return self._device

    def outline(self) -> dict[str, Tensor]:
        """See `StreamedTensors`."""
        return {name: _outline(part) for name, part in self._parts.items()}

    def __getitem__(self, name: str) -> Tensor:
        part = self._parts[name]
        if isinstance(part, MergedShards):
            return part.merge.of(lambda of_layer: self._gather(part.shards[of_layer]))
        return self._gather(part) if isinstance(part, Shard) else part

    def _gather(self, part: Shard) -> Tensor:
        assert self._ranks.rank == LEAD
        self._ranks.tell(lambda: Command(Gather(name=part.name)))
        whole = self._ranks.gather(part)
        assert whole is not None
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _outline(part: Shard | Tensor | MergedShards) -> Tensor:
    if isinstance(part, MergedShards):
        part = part.shards[part.merge.base]
    return torch.empty(part.shape, dtype=part.local.dtype, device="meta") if isinstance(part, Shard) else part.to("meta")


def _layers(model: nn.Module) -> list[nn.Module]:
    """The parts that are gathered one at a time, as the model's own code names them."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    if not found:
        raise ValueError("it does not say what its layers are, so it cannot be sharded: set learner.processesPerNode to 1")
    return found


def _dtensor(parameter: nn.Parameter) -> DTensor:
    assert isinstance(parameter, DTensor)
    return parameter


def _local(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()
