"""Attention over trees: a prompt is computed once, and each of its completions sees the prompt and itself.

    trees, as runs of tokens -> plan_attention -> blocks of queries, each with its keys and a small mask -> attend_trees in every layer

One mask over all tokens of a micro-batch would cost time and memory quadratic in it, although trees never look at each other. Instead the
tokens are cut into blocks. Small trees share a block; of a large tree the prompt is a block, and its completions are further blocks whose
keys are the prompt's and their own. A block that is a single sequence needs no mask, which is what fast kernels want.

Not covered: sliding windows shorter than a sequence, soft-capped scores, attention sinks, layers that are no attention at all. The first
three are refused here; `policy` compares with the model's own attention when it is loaded, which finds the last.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "rlvr_tree"
"""Under which transformers finds it. It makes no mask of its own for a name that it does not know."""
PROMPT = -1
"""`Run.branch` of a prompt."""
UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""What some models ask of attention and this one cannot do."""

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens that follow each other: a tree's prompt, or one completion as far as it is fed to the model."""

    tree: int
    branch: int
    """Number of the completion within its tree, or `PROMPT`."""
    start: int
    """Position of the first token within its sequence."""
    length: int


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Consecutive tokens that are computed together."""

    length: int
    """Queries; the same tokens are keys."""
    prefix: int | None
    """Number of the block whose keys come before the own ones."""
    mask: Tensor | None
    """bool, [length, keys], True where a query sees a key. None: one sequence, causal."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Blocks in the order of the tokens; they cover them all."""

    blocks: tuple[AttentionBlock, ...]
    depth: int
    """Longest sequence, in tokens."""

    def to(self, device: torch.device) -> "AttentionPlan":
        """The plan with its masks on `device`."""
        moved = (AttentionBlock(b.length, b.prefix, None if b.mask is None else copy_to(b.mask, device)) for b in self.blocks)
        return AttentionPlan(tuple(moved), self.depth)


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; a copy to a GPU is queued there, behind what it still does, from memory that it can read by itself."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and not tensor.is_cuda else tensor.to(device)


def plan_attention(trees: Sequence[Sequence[Run]], block_tokens: int) -> AttentionPlan:
    """Cut trees into blocks of at most `block_tokens` tokens, where a prompt or a completion is not longer by itself.

    Args:
        trees: of each the prompt first, then its branches; all of these runs have tokens.
        block_tokens: small blocks waste less on pairs that do not see each other, large ones start fewer kernels.
    """
    blocks: list[AttentionBlock] = []
    root = 0
    for members, prompt in _cut(trees, block_tokens):
        if prompt is None:
            root = len(blocks)
        length = sum(run.length for run in members)
        blocks.append(AttentionBlock(length, None if prompt is None else root, _mask(members, prompt)))
    return AttentionPlan(tuple(blocks), max(run.start + run.length for tree in trees for run in tree))


def attend_trees(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    attention_plan: AttentionPlan | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention of one layer, as transformers calls it.

    Args:
        query: [1, heads, tokens, head size]; `key` and `value` the same with the heads of keys and values.
        attention_plan: who sees whom.

    Returns:
        [1, tokens, heads, head size].

    Raises:
        ValueError: the model's attention is of a kind that is not covered.
    """
    if attention_plan is None or attention_mask is not None:
        raise ValueError("tree attention needs `attention_plan`, and no mask: call the model through `Policy`")
    _refuse_unsupported(attention_plan.depth, sliding_window, options)
    # Under autocast, rotated queries and keys are float32 and values are not; kernels want one dtype.
    query, key = query.to(value.dtype), key.to(value.dtype)
    lengths = [block.length for block in attention_plan.blocks]
    repeats = query.shape[1] // key.shape[1]
    # split, not slices: the gradient of a split is one concatenation, that of each slice would be as large as the whole tensor
    queries, keys, values = (torch.split(heads, lengths, 2) for heads in (query, _repeat(key, repeats), _repeat(value, repeats)))
    outputs = [
        _attend(block, queries[number], _keys_of(block, number, keys), _keys_of(block, number, values), scaling)
        for number, block in enumerate(attention_plan.blocks)
    ]
    return torch.cat(outputs, 2).transpose(1, 2), None


def register() -> None:
    """Make `attend_trees` known to transformers."""
    AttentionInterface.register(NAME, attend_trees)


def _refuse_unsupported(depth: int, sliding_window: int | None, options: Mapping[str, Any]) -> None:
    if sliding_window is not None and depth > sliding_window:
        raise ValueError(
            f"the model attends over {sliding_window} tokens only, and a sequence may have {depth}: "
            f"set model.maxModelLen to at most {sliding_window}"
        )
    wanted = [name for name in UNSUPPORTED if options.get(name) is not None]
    if wanted:
        raise ValueError(f"the model's attention needs {', '.join(wanted)}, which training on trees does not support: take another model")


def _repeat(heads: Tensor, repeats: int) -> Tensor:
    return heads.repeat_interleave(repeats, 1) if repeats > 1 else heads


def _keys_of(block: AttentionBlock, number: int, pieces: Sequence[Tensor]) -> Tensor:
    return pieces[number] if block.prefix is None else torch.cat((pieces[block.prefix], pieces[number]), 2)


def _attend(block: AttentionBlock, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    if block.mask is not None:
        return scaled_dot_product_attention(query, key, value, attn_mask=block.mask, scale=scaling)
    if block.prefix is None:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    causal = causal_lower_right(query.shape[2], key.shape[2])
    return scaled_dot_product_attention(query, key, value, attn_mask=causal, scale=scaling)


def _cut(trees: Sequence[Sequence[Run]], block_tokens: int) -> Iterator[tuple[list[Run], Run | None]]:
    """The runs of each block, and the prompt of an earlier block that they need as well."""
    for cluster in _fill(trees, _tokens_of, block_tokens):
        if _tokens_of(cluster[0]) > block_tokens and len(cluster[0]) > 2:
            prompt, *branches = cluster[0]
            yield [prompt], None
            for chunk in _fill(branches, lambda run: run.length, block_tokens):
                yield chunk, prompt
        else:
            yield [run for tree in cluster for run in tree], None


def _fill(items: Iterable[ItemT], size: Callable[[ItemT], int], limit: int) -> Iterator[list[ItemT]]:
    """Consecutive items, as many at a time as fit; one that is larger by itself is alone."""
    chunk: list[ItemT] = []
    total = 0
    for item in items:
        if chunk and total + size(item) > limit:
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += size(item)
    if chunk:
        yield chunk


def _tokens_of(tree: Sequence[Run]) -> int:
    return sum(run.length for run in tree)


def _mask(members: Sequence[Run], prompt: Run | None) -> Tensor | None:
    """Who sees whom: a token sees its tree's prompt and its own branch, up to itself."""
    if len({run.tree for run in members}) == 1 and sum(run.branch != PROMPT for run in members) <= 1:
        return None
    tree, branch, position = _coordinates(members)
    if prompt is None:
        key_tree, key_branch, key_position = tree, branch, position
    else:
        key_tree, key_branch, key_position = _coordinates((prompt, *members))
    related = (branch[:, None] == key_branch) | (key_branch == PROMPT)
    return (tree[:, None] == key_tree) & related & (position[:, None] >= key_position)


def _coordinates(runs: Sequence[Run]) -> tuple[Tensor, Tensor, Tensor]:
    """Tree, branch and position of each token; int64, [tokens]."""
    lengths = torch.tensor([run.length for run in runs])
    tree = torch.tensor([run.tree for run in runs]).repeat_interleave(lengths)
    branch = torch.tensor([run.branch for run in runs]).repeat_interleave(lengths)
    return tree, branch, torch.cat([torch.arange(run.start, run.start + run.length) for run in runs])
