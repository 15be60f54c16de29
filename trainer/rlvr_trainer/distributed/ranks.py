"""The processes that compute a learner's steps in lockstep, as one of them sees them: which one it is, and what they have together.

    one process:  every function gives back what it is given, and nothing is sent
    several:      torch.distributed, gloo between CPUs, NCCL between GPUs; every function is a collective, called by all in the same order

A whole tensor is cut along its first dimension as FSDP2 does it: into equal runs of rows, of which the last may be shorter or empty.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from rlvr_trainer.distributed.commands import Command

LEAD = 0
"""Rank of the process that collects, records, publishes and commits."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows of a tensor that this process holds."""

    name: str
    """Of the whole, as a checkpoint names it."""
    local: Tensor
    """[own rows, ...]; may be empty."""
    shape: torch.Size
    """Of the whole."""


def _nobody(command: Callable[[], Command]) -> None:
    """There is nobody to tell."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all of a learner."""

    rank: int = LEAD
    size: int = 1
    mesh: DeviceMesh | None = None
    """Over all processes; None when there is one."""
    tell: Callable[[Callable[[], Command]], None] = _nobody
    """On the lead: have the others do the same now. What it does not need to say is not made."""

    def add(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place of `tensor`."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.SUM)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest of all processes' values, element by element, in place of `tensor`."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def collect(self, tensor: Tensor) -> Tensor:
        """Every process's `tensor`, by rank: [processes, ...]."""
        if self.size == 1:
            return tensor[None]
        found = tensor.new_empty((self.size, *tensor.shape))
        dist.all_gather(list(found), tensor)
        return found

    def gather(self, shard: Shard) -> Tensor | None:
        """The whole tensor, on the lead alone."""
        rows = self.rows(shard.shape)
        padded = self._padded(shard.local, rows)
        whole = padded.new_empty((rows * self.size, *shard.shape[1:])) if self.rank == LEAD else None
        dist.gather(padded, None if whole is None else list(whole.chunk(self.size)), dst=LEAD)
        return None if whole is None else whole[: shard.shape[0]]

    def scatter(self, whole: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor:
        """This process's rows of a float32 tensor that the lead has, on any device; what others pass is not looked at."""
        rows = self.rows(shape)
        own = torch.empty((rows, *shape[1:]), device=device)
        pieces = None
        if self.rank == LEAD:
            assert whole is not None
            source = whole.to(device, torch.float32)
            pieces = [self._padded(source[rows * rank : rows * (rank + 1)], rows) for rank in range(self.size)]
        dist.scatter(own, pieces, src=LEAD)
        return own[: max(0, min(rows, shape[0] - rows * self.rank))]

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The lead's values, in place of `tensor`."""
        if self.size > 1:
            dist.broadcast(tensor, LEAD)
        return tensor

    def rows(self, shape: torch.Size) -> int:
        """Rows of every process but the last ones."""
        return -(-shape[0] // self.size)

    @staticmethod
    def _padded(tensor: Tensor, rows: int) -> Tensor:
        if len(tensor) == rows:
            return tensor.contiguous()
        padded = tensor.new_zeros((rows, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        return padded


ALONE = Ranks()
"""A learner of one process."""
