"""What a stage adds to the policy's loss: a penalty on the distance from a frozen policy, and a bonus for entropy.

    in the reward:  judged groups -> log-probs under policy and reference -> coefficient · Σ_t k1 of each completion, before advantages
    in the loss:    micro-batch -> (coefficient · Σ_t w·KL_t − bonus · Σ_t H_t) / tokens of the update

w = min(π_θ / π_sampler, 2), detached, and 0 for tokens that correction or rejection dropped: the KL is an expectation over the policy, and
the tokens are the sampler's. The entropy of a token is that of the whole distribution it was drawn from, so it needs no weight of its own.
The reference is computed with the policy's own module and other weights: one copy of the weights, no second model, no second code path.
Where the policy is sharded, it is a second one, sharded alike, with as much memory.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlvr_api.stages import Rlvr
from rlvr_trainer.algorithms.base import LossInputs
from rlvr_trainer.correction import importance_weights
from rlvr_trainer.distributed.ranks import LEAD, Ranks
from rlvr_trainer.lora import is_adapter
from rlvr_trainer.losses import kl_penalty
from rlvr_trainer.packing import PackedBatch, Tree, pack, plan_rounds
from rlvr_trainer.policy import Policy

LARGEST_WEIGHT = 2.0
"""Of a token's KL against the sampler."""


class Regularizer:
    """Penalty and bonus of one stage.

    Args:
        policy: that is trained.
        temperature: divides the logits of both.
        reference: weights by the names of `Policy.parameters`, on any device; None where the stage has no `referenceKl`, and on followers.

    Raises:
        ValueError: there is a reference and no `referenceKl`, or the other way round.
    """

    def __init__(self, policy: Policy, stage: Rlvr, temperature: float, reference: Mapping[str, Tensor] | None) -> None:
        if policy.ranks.rank == LEAD and (reference is None) != (stage.reference_kl is None):
            raise ValueError("a reference belongs to `referenceKl`, and nothing else needs one")
        self._policy = policy
        self._kl = stage.reference_kl
        self._entropy_bonus = stage.entropy_bonus
        self._temperature = temperature
        self._frozen = _sharded_reference(policy, reference) if self._kl is not None and policy.ranks.size > 1 else None
        kept = reference if reference is not None and self._frozen is None else {}
        self._reference = {name: tensor.detach().to(policy.device, copy=True) for name, tensor in kept.items()}
        self._measured: list[tuple[Tensor, int]] = []

    @property
    def shapes_rewards(self) -> bool:
        """Completions lose some of their reward."""
        return self._kl is not None and self._kl.placement == "reward"

    @property
    def adds_to_loss(self) -> bool:
        """The loss has a term of every judged completion, whether its group carries a signal or not."""
        return self._entropy_bonus > 0 or (self._kl is not None and self._kl.placement == "loss")

    def penalties(self, trees: Sequence[Tree], tokens_per_micro_batch: int) -> dict[int, list[float]]:
        """What each branch loses of its reward, by the index of its tree: coefficient · Σ_t (lp − lp_ref), detached."""
        assert self._kl is not None
        found: dict[int, list[float]] = {tree.index: [0.0] * len(tree.branches) for tree in trees}
        ranks = self._policy.ranks
        for shares in plan_rounds([tree for tree in trees if tree.trained_tokens], tokens_per_micro_batch, ranks.size):
            members = shares[ranks.rank]
            batch = pack(members, self._policy.block_tokens).to(self._policy.device)
            with torch.no_grad():
                logprobs = self._policy.completion_logprobs(batch, self._temperature).logprobs
                values = kl_penalty(logprobs, self._reference_logprobs(batch), self._kl.estimator).double()
            self._measured.append((values.sum(), len(values)))
            places = [(tree.index, number) for tree in members for number, branch in enumerate(tree.branches) if branch.token_ids]
            sums: list[float] = values.new_zeros(len(places)).index_add(0, batch.sequences, values).tolist()
            for (index, number), value in zip(places, sums, strict=True):
                found[index][number] = self._kl.coefficient * value
        return found if ranks.size == 1 else _join(found, ranks, self._policy.device)

    def loss(self, batch: PackedBatch, inputs: LossInputs, entropies: Tensor) -> Tensor:
        """The term of a micro-batch, a differentiable sum over its tokens; `entropies` is [N]."""
        total = -self._entropy_bonus * entropies.sum() if self._entropy_bonus else inputs.logprobs.new_zeros(())
        if self._kl is not None and self._kl.placement == "loss":
            values = kl_penalty(inputs.logprobs, self._reference_logprobs(batch), self._kl.estimator)
            self._measured.append((values.detach().double().sum(), len(values)))
            weights = importance_weights(inputs.logprobs, inputs.sampler_logprobs).clamp(max=LARGEST_WEIGHT)
            total = total + self._kl.coefficient * torch.where(inputs.weights > 0, weights * values, 0.0).sum()
        return total

    def take_kl(self) -> float | None:
        """Mean over the tokens seen since the last call of what the estimator gave, in nats; None when there were none."""
        measured, self._measured = self._measured, []
        if not measured:
            return None
        ranks, device = self._policy.ranks, self._policy.device
        sums: list[float] = ranks.collect(torch.stack([total for total, _ in measured])).flatten().tolist()
        count = ranks.add(torch.tensor(sum(count for _, count in measured), device=device))
        return math.fsum(sums) / int(count)

    def _reference_logprobs(self, batch: PackedBatch) -> Tensor:
        with torch.no_grad():
            if self._frozen is not None:
                return self._frozen.completion_logprobs(batch, self._temperature).logprobs
            return self._policy.completion_logprobs(batch, self._temperature, self._reference).logprobs


def _sharded_reference(policy: Policy, reference: Mapping[str, Tensor] | None) -> Policy:
    """The reference as a policy of its own, on all processes at once; its weights are the lead's to know."""
    frozen = policy.load_again()
    wholes = None
    if reference is not None:
        # A base model has no adapters, and those of zeros add nothing to it.
        wholes = {
            shard.name: torch.zeros(shard.shape) if name not in reference and is_adapter(name) else reference[name]
            for name, shard in zip(frozen.parameters(), frozen.shards(), strict=True)
        }
    frozen.take_tensors(wholes)
    return frozen


def _join(found: Mapping[int, Sequence[float]], ranks: Ranks, device: torch.device) -> dict[int, list[float]]:
    """What each process found of its own trees, and 0 of the others', as what all found of all."""
    flat = torch.tensor([value for values in found.values() for value in values], dtype=torch.float64, device=device)
    joined = iter(ranks.add(flat).tolist())
    return {index: [next(joined) for _ in values] for index, values in found.items()}
