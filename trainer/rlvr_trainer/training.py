"""One update of the weights from packed trees, whatever the loss: what RLVR and supervised stages have in common.

    micro-batches -> pack -> loss_of -> backward, each -> norm finite? -> clip, AdamW

An update whose loss or gradient is not finite is refused before the optimizer sees it. With one thread on a CPU, equal inputs give equal
bits. Several processes (`distributed`) do all of this at once, each with its own micro-batches: losses, gradients and the decision are
those of all.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pydantic import JsonValue
from torch import Tensor

from rlvr_api.stages import Optimizer
from rlvr_trainer.critic import Critic
from rlvr_trainer.distributed.commands import Command, Load
from rlvr_trainer.distributed.ranks import Shard
from rlvr_trainer.distributed.sharding import GatheredTensors
from rlvr_trainer.optimizer import MOMENTS, PREFIX, AdamWOptimizer
from rlvr_trainer.packing import PackedBatch, Tree, pack
from rlvr_trainer.policy import PREFIX as MODEL_PREFIX
from rlvr_trainer.policy import Policy

STEP_KEY = "learner_step"
"""Of the stage's step among a checkpoint's scalars."""
GENERATOR_KEYS = {"cpu": "generator/cpu", "cuda": "generator/cuda"}
"""Of torch's random generators among a checkpoint's tensors."""


class NonFiniteStepError(RuntimeError):
    """A loss or gradient is not finite; the weights are those before the update."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one update did."""

    loss: float
    gradient_norm: float
    """Before clipping."""
    learning_rate: float


class Trainer:
    """Weights, optimizer and generators of one stage; optimizer and schedule are new.

    Args:
        policy: trained in place.
        total_steps: of the schedule.
        critic: trained with it.
        critic_learning_rate: its peak.
    """

    def __init__(
        self, policy: Policy, optimizer: Optimizer, total_steps: int, critic: Critic | None = None, critic_learning_rate: float = 0.0
    ) -> None:
        self.policy = policy
        self.critic = critic
        self.step = 0
        """Steps done; the schedule's clock. A step may have several updates, or none."""
        added = critic.parameters() if critic is not None else {}
        multipliers = dict.fromkeys(added, critic_learning_rate / optimizer.learning_rate)
        parameters = {**policy.parameters(), **added}
        self._optimizer = AdamWOptimizer(parameters, optimizer, total_steps, multipliers, policy.ranks, added.keys())
        self._moments = {
            f"{PREFIX}{shard.name.removeprefix(MODEL_PREFIX)}/{key}": shard.shape for shard in policy.shards() for key in MOMENTS
        }
        """Shapes of the optimizer's tensors of which each process has its own rows."""

    def update(
        self,
        rounds: Sequence[Sequence[Sequence[Tree]]],
        loss_of: Callable[[int, PackedBatch], Tensor],
        seconds: dict[str, float],
        place: str,
        describe: Callable[[Sequence[int]], str],
    ) -> Update:
        """Update the weights once.

        Args:
            rounds: micro-batches by round and process, those with trees with at least one trained token.
            loss_of: from the number of a round and the tensors of this process's micro-batch, on the policy's device, its part of the
                normalised loss.
            seconds: gets the wall time by phase added. On a GPU, what is queued counts where it is waited for: in `optimizer`.
            place: of an update that is refused, for the message.
            describe: names trees by their `index`, for the same.

        Raises:
            NonFiniteStepError: nothing was changed.
        """
        try:
            rank = self.policy.ranks.rank
            losses = [self._accumulate(number, members[rank], loss_of, seconds) for number, members in enumerate(rounds)]
            with timed(seconds, "optimizer"):
                self._take_gradients()
                norm = self._optimizer.gradient_norm()
                table: list[list[float]] = self.policy.ranks.collect(torch.stack(losses)).T.tolist()
                values = list(itertools.chain.from_iterable(table))
                suspects = _suspects(list(itertools.chain.from_iterable(rounds)), values, norm)
                if suspects:
                    raise NonFiniteStepError(
                        f"{place} is refused: its loss is {sum(values)} and its gradient norm {norm}, and the fault is in "
                        f"{describe(suspects)}; the weights are those before it. Lower the learning rate, or look at what it trained on"
                    )
                rate = self._optimizer.apply(norm, self.step)
        finally:
            self.policy.drop_gradients()
            self._optimizer.drop_gradients()
        return Update(math.fsum(values), norm, rate)

    def tensors(self) -> Mapping[str, Tensor]:
        """Weights, optimizer state and generator states for a checkpoint, by name; no copies of weights and optimizer state.

        Those of a sharded model are gathered one by one, with the lead's generator states.
        """
        generators = {GENERATOR_KEYS["cpu"]: torch.get_rng_state()}
        if self.policy.device.type == "cuda":
            generators[GENERATOR_KEYS["cuda"]] = torch.cuda.get_rng_state(self.policy.device)
        parts = {**self.parts(), **generators}
        if self.policy.ranks.size > 1:
            return GatheredTensors(parts, self.policy.ranks, self.policy.device)
        return {name: part for name, part in parts.items() if isinstance(part, Tensor)}

    def parts(self) -> dict[str, Shard | Tensor]:
        """Weights and optimizer state by name, as far as they are here."""
        state = {
            name: Shard(name, tensor, self._moments[name]) if name in self._moments else tensor
            for name, tensor in self._optimizer.tensors().items()
        }
        return {**self.policy.tensors(), **self._critic_tensors(), **state}

    def scalars(self) -> dict[str, JsonValue]:
        """The rest of the state, as JSON."""
        return {STEP_KEY: self.step}

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, JsonValue]) -> None:
        """Go on from what `tensors` and `scalars` gave; other keys are ignored.

        Raises:
            ValueError: the state of another model or program version.
        """
        step, generator = scalars.get(STEP_KEY), tensors.get(GENERATOR_KEYS["cpu"])
        if not isinstance(step, int) or generator is None:
            raise ValueError(f"the checkpoint lacks '{STEP_KEY}' or '{GENERATOR_KEYS['cpu']}': it is of another program version")
        if self.critic is not None:
            self.critic.load_tensors(tensors)
        self.policy.check_tensors(tensors)
        state = {name: tensor.shape for name, tensor in tensors.items() if name.startswith(PREFIX)}
        self.policy.ranks.tell(lambda: Command(Load(step=step, optimizer={name: [*shape] for name, shape in state.items()})))
        self.take_tensors(tensors, state, step)
        torch.set_rng_state(generator)
        on_gpu = tensors.get(GENERATOR_KEYS["cuda"])
        if on_gpu is not None and self.policy.device.type == "cuda":
            torch.cuda.set_rng_state(on_gpu, self.policy.device)

    def take_tensors(self, tensors: Mapping[str, Tensor] | None, state: Mapping[str, Sequence[int]], step: int) -> None:
        """Go on from a checkpoint whose weights have been checked. On all processes at once; those of the lead are dealt out.

        Args:
            state: names and shapes of the optimizer's.
        """
        self.policy.take_tensors(tensors)
        for parameter in self.critic.parameters().values() if self.critic is not None else ():
            self.policy.ranks.broadcast(parameter.data)
        self._optimizer.load_tensors({name: self._own(name, shape, tensors) for name, shape in state.items()})
        self.step = step

    def _own(self, name: str, shape: Sequence[int], tensors: Mapping[str, Tensor] | None) -> Tensor:
        """What this process keeps of a tensor of the optimizer's."""
        ranks, device = self.policy.ranks, self.policy.device
        whole = None if tensors is None else tensors[name]
        if name in self._moments:
            return ranks.scatter(whole, torch.Size(shape), device)
        return ranks.broadcast(torch.empty([*shape], device=device) if whole is None else whole.to(device))

    def _critic_tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.critic.parameters().items()} if self.critic is not None else {}

    def _take_gradients(self) -> None:
        self.policy.take_gradients()
        for parameter in self.critic.parameters().values() if self.critic is not None else ():
            if parameter.grad is not None:
                self.policy.ranks.add(parameter.grad)

    def _accumulate(
        self, number: int, members: Sequence[Tree], loss_of: Callable[[int, PackedBatch], Tensor], seconds: dict[str, float]
    ) -> Tensor:
        """Add a micro-batch's gradient; returns its part of the loss, detached."""
        with timed(seconds, "pack"):
            packed = pack(members, self.policy.block_tokens).to(self.policy.device)
        with timed(seconds, "forward"):
            loss = loss_of(number, packed)
        with timed(seconds, "backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


class Resumable:
    """A learner around a trainer: what a checkpoint keeps of it is the trainer's state."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    @property
    def trainer(self) -> Trainer:
        """What it steers."""
        return self._trainer

    def tensors(self) -> Mapping[str, Tensor]:
        """See `Trainer.tensors`."""
        return self._trainer.tensors()

    def scalars(self) -> dict[str, JsonValue]:
        """See `Trainer.scalars`."""
        return self._trainer.scalars()

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, JsonValue]) -> None:
        """See `Trainer.load`."""
        self._trainer.load(tensors, scalars)


def _suspects(micro_batches: Sequence[Sequence[Tree]], losses: Sequence[float], norm: float) -> list[int]:
    """Trees that may have made loss or gradient not finite: those whose loss is not, else all; none when all is well."""
    found = [members for members, loss in zip(micro_batches, losses, strict=True) if not math.isfinite(loss)]
    if not found and not math.isfinite(norm):
        found = list(micro_batches)
    return sorted(tree.index for members in found for tree in members)


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the block's wall time to `seconds[phase]`."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.monotonic() - started
