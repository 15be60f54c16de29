"""Micro-batches without padding, in which a group's prompt is computed once.

    groups with advantages -> trees -> plan_rounds (token budget, processes) -> pack -> tensors for one forward pass

A tree is laid out as its prompt and then the completions one after the other, each at the positions that follow the prompt. The prompt's
last token predicts the first token of every completion, and a completion's last token predicts nothing, so it is not fed to the model.
What an environment wrote between two turns of a completion is fed as all else, and is no target.
Logits are wanted at `logit_rows` only, each row once, although a prompt's last row serves all its completions.

Several processes compute in lockstep: in a round each has one micro-batch, and waits for the slowest. So micro-batches of a round are about
equally large, and a process for which none is left computes one token and learns nothing from it.

Not covered: splitting one group over micro-batches; a group larger than the budget makes a micro-batch of its own.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from rlvr_trainer.tree_attention import PROMPT, AttentionPlan, Run, copy_to, plan_attention


@dataclass(frozen=True, slots=True)
class Branch:
    """One completion that is trained on."""

    token_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    """As long as `token_ids`."""
    advantage: float = 0.0
    ages: tuple[int, ...] = ()
    """Optimizer steps since each token's weights, as long as `token_ids`; empty: 0 for all."""
    observed: tuple[tuple[int, int], ...] = ()
    """Ranges `(start, end)` of tokens that an environment wrote: they are fed to the model, and nothing is learned from them."""

    @property
    def sampled(self) -> tuple[int, ...]:
        """Places of the tokens that the model sampled, ascending."""
        places = set(range(len(self.token_ids))).difference(*(range(start, end) for start, end in self.observed))
        return tuple(sorted(places))


@dataclass(frozen=True, slots=True)
class Tree:
    """A prompt and the completions of it that are trained on."""

    index: int
    """Place of the group in the step's batch."""
    prompt_ids: tuple[int, ...]
    branches: tuple[Branch, ...]

    @property
    def forward_tokens(self) -> int:
        """Tokens that are fed to the model."""
        return len(self.prompt_ids) + sum(max(0, len(branch.token_ids) - 1) for branch in self.branches)

    @property
    def trained_tokens(self) -> int:
        """Completion tokens that the model sampled."""
        return sum(len(branch.token_ids) - sum(end - start for start, end in branch.observed) for branch in self.branches)


NOTHING = Tree(-1, (0,), ())
"""What a process without a share of a round computes."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One micro-batch of T tokens fed, U logit rows and N sampled completion tokens. Integers are int64."""

    token_ids: Tensor
    """[T]."""
    position_ids: Tensor
    """[T], each token's position within its own sequence."""
    attention: AttentionPlan
    logit_rows: Tensor
    """[U], ascending indices into T of the tokens whose logits are wanted."""
    token_rows: Tensor
    """[N], index into U of the row that predicts each completion token."""
    targets: Tensor
    """[N], the completion tokens, tree by tree and branch by branch."""
    sampler_logprobs: Tensor
    """[N], float32."""
    advantages: Tensor
    """[N], float32; that of the completion."""
    sequences: Tensor
    """[N], number of each token's completion within the micro-batch, from 0."""
    ages: Tensor
    """[N], optimizer steps since the weights that sampled each token."""
    trees: tuple[int, ...]
    """`Tree.index` of the trees inside."""

    def to(self, device: torch.device) -> "PackedBatch":
        """The batch on `device`, without waiting for what the device still does."""
        moved: dict[str, Any] = {
            field.name: copy_to(value, device) for field in fields(self) if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, attention=self.attention.to(device), **moved)


def plan_micro_batches(trees: Sequence[Tree], tokens_per_micro_batch: int) -> list[list[Tree]]:
    """First-fit decreasing by tokens: at most 11/9 of the fewest micro-batches possible, plus one (Johnson 1973).

    Deterministic. A tree beyond the budget is alone. Micro-batches and the trees in them are in the order of the step's batch.
    """
    bins: list[tuple[int, list[Tree]]] = []
    for tree in sorted(trees, key=lambda tree: (-tree.forward_tokens, tree.index)):
        size = tree.forward_tokens
        for number, (used, members) in enumerate(bins):
            if used + size <= tokens_per_micro_batch:
                members.append(tree)
                bins[number] = (used + size, members)
                break
        else:
            bins.append((size, [tree]))
    ordered = [sorted(members, key=lambda tree: tree.index) for _, members in bins]
    return sorted(ordered, key=lambda members: members[0].index)


def plan_rounds(trees: Sequence[Tree], tokens_per_micro_batch: int, processes: int) -> list[list[list[Tree]]]:
    """Micro-batches by round and process; with one process those of `plan_micro_batches`.

    With several, trees go to as many micro-batches as the budget needs, rounded up to whole rounds: each, largest first, to the emptiest
    (longest processing time first: at most 4/3 of the best makespan, Graham 1969). Rounds go from large micro-batches to small ones, and
    the last may have empty ones. Deterministic, so that every process finds the same plan.
    """
    fewest = plan_micro_batches(trees, tokens_per_micro_batch)
    if processes == 1:
        return [[members] for members in fewest]
    count = -(-len(fewest) // processes) * processes
    while not _fits(bins := _spread(trees, count), tokens_per_micro_batch):
        count += processes
    bins.sort(key=lambda members: -_forward_tokens(members))  # stable
    return [bins[start : start + processes] for start in range(0, count, processes)]


def _spread(trees: Sequence[Tree], count: int) -> list[list[Tree]]:
    bins: list[list[Tree]] = [[] for _ in range(count)]
    emptiest = [(0, number) for number in range(count)]
    for tree in sorted(trees, key=lambda tree: (-tree.forward_tokens, tree.index)):
        used, number = heapq.heappop(emptiest)
        bins[number].append(tree)
        heapq.heappush(emptiest, (used + tree.forward_tokens, number))
    return [sorted(members, key=lambda tree: tree.index) for members in bins]


def _fits(bins: Sequence[Sequence[Tree]], tokens_per_micro_batch: int) -> bool:
    return all(len(members) == 1 or _forward_tokens(members) <= tokens_per_micro_batch for members in bins)


def _forward_tokens(trees: Sequence[Tree]) -> int:
    return sum(tree.forward_tokens for tree in trees)


def pack(trees: Sequence[Tree], block_tokens: int) -> PackedBatch:
    """The tensors of one micro-batch, on the CPU.

    Args:
        trees: with at least one completion token among them; or none, for a token from which nothing is learned.
        block_tokens: for `plan_attention`.

    Raises:
        ValueError: a prompt is empty, or a completion has not as many log-probs as tokens.
    """
    layout = _Layout()
    for tree in trees or (NOTHING,):
        layout.add(tree)
    return PackedBatch(
        token_ids=torch.tensor(layout.token_ids),
        position_ids=torch.cat([torch.arange(run.start, run.start + run.length) for runs in layout.runs for run in runs]),
        attention=plan_attention(layout.runs, block_tokens),
        logit_rows=torch.tensor(layout.logit_rows, dtype=torch.int64),
        token_rows=torch.tensor(layout.token_rows, dtype=torch.int64),
        targets=torch.tensor(layout.targets, dtype=torch.int64),
        sampler_logprobs=torch.tensor(layout.sampler_logprobs, dtype=torch.float32),
        advantages=torch.tensor(layout.advantages, dtype=torch.float32),
        sequences=torch.tensor(layout.sequences, dtype=torch.int64),
        ages=torch.tensor(layout.ages, dtype=torch.int64),
        trees=tuple(tree.index for tree in trees),
    )


class _Layout:
    """Grows token by token."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.runs: list[list[Run]] = []
        self.logit_rows: list[int] = []
        self.token_rows: list[int] = []
        self.targets: list[int] = []
        self.sampler_logprobs: list[float] = []
        self.advantages: list[float] = []
        self.sequences: list[int] = []
        self.ages: list[int] = []

    def add(self, tree: Tree) -> None:
        if not tree.prompt_ids:
            raise ValueError(f"group {tree.index} of the batch has an empty prompt: nothing predicts the first token")
        self.runs.append([Run(tree.index, PROMPT, 0, len(tree.prompt_ids))])
        self.token_ids += tree.prompt_ids
        root = len(self.logit_rows)
        if tree.trained_tokens:
            self.logit_rows.append(len(self.token_ids) - 1)
        for number, branch in enumerate(tree.branches):
            if len(branch.sampler_logprobs) != len(branch.token_ids):
                counts = f"{len(branch.token_ids)} tokens and {len(branch.sampler_logprobs)} log-probs"
                raise ValueError(f"completion {number} of group {tree.index} of the batch has {counts}; each token needs its own")
            if any(not 0 < start <= end <= len(branch.token_ids) for start, end in branch.observed):
                raise ValueError(f"completion {number} of group {tree.index} of the batch has no room for observations {branch.observed}")
            self._add_branch(tree, number, branch, root)

    def _add_branch(self, tree: Tree, number: int, branch: Branch, root: int) -> None:
        fed, sampled = branch.token_ids[:-1], branch.sampled
        if fed:
            self.runs[-1].append(Run(tree.index, number, len(tree.prompt_ids), len(fed)))
        if sampled:
            self.token_rows += (root, *range(len(self.logit_rows), len(self.logit_rows) + len(sampled) - 1))
        self.logit_rows += (len(self.token_ids) + place - 1 for place in sampled[1:])
        self.token_ids += fed
        self.targets += (branch.token_ids[place] for place in sampled)
        self.sampler_logprobs += (branch.sampler_logprobs[place] for place in sampled)
        self.advantages += [branch.advantage] * len(sampled)
        self.sequences += [self.sequences[-1] + 1 if self.sequences else 0] * len(sampled)
        self.ages += (branch.ages[place] if branch.ages else 0 for place in sampled)
