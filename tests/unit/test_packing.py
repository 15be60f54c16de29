import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr_trainer.packing import Branch, Tree, pack, plan_micro_batches, plan_rounds
from rlvr_trainer.tree_attention import PROMPT, Run, attend_trees, plan_attention

LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 9), min_size=1, max_size=5)), min_size=1, max_size=6)


def branch(*tokens, advantage=1.0):
    return Branch(tokens, tuple(-token / 100 for token in tokens), advantage)


def make_trees(lengths):
    """Trees whose token ids are all different."""
    ids = iter(range(1, 10_000))

    def take(count):
        return tuple(next(ids) for _ in range(count))

    return [
        Tree(index, take(prompt), tuple(branch(*take(n), advantage=float(next(ids))) for n in branches))
        for index, (prompt, branches) in enumerate(lengths)
    ]


def dense_mask(plan):
    """Who sees whom among all tokens, put together from the plan's blocks; bool, [T, T]."""
    starts = [sum(block.length for block in plan.blocks[:number]) for number in range(len(plan.blocks) + 1)]
    mask = torch.zeros(starts[-1], starts[-1], dtype=torch.bool)
    for number, block in enumerate(plan.blocks):
        keys = list(range(starts[number], starts[number + 1]))
        if block.prefix is not None:
            keys = [*range(starts[block.prefix], starts[block.prefix + 1]), *keys]
        part = block.mask
        if part is None:
            part = torch.ones(block.length, len(keys), dtype=torch.bool).tril(len(keys) - block.length)
        mask[starts[number] : starts[number + 1], keys] = part
    return mask


def ancestors(packed, trees):
    """The same from the definition: each fed token with the tokens before it in its own sequence."""
    place = {token: row for row, token in enumerate(packed.token_ids.tolist())}
    mask = torch.zeros(len(place), len(place), dtype=torch.bool)
    for tree in trees:
        for one in tree.branches or (branch(),):
            rows = [place[token] for token in (*tree.prompt_ids, *one.token_ids[:-1])]
            for depth, row in enumerate(rows):
                mask[row, rows[: depth + 1]] = True
    return mask


def test_the_layout_of_a_tree_written_out():
    packed = pack([Tree(7, (11, 12, 13), (branch(21, 22, 23), branch(31), branch(), branch(41, 42, advantage=-2.0)))], 64)
    assert packed.token_ids.tolist() == [11, 12, 13, 21, 22, 41]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 3]
    assert packed.logit_rows.tolist() == [2, 3, 4, 5]
    assert packed.token_rows.tolist() == [0, 1, 2, 0, 0, 3]
    assert packed.targets.tolist() == [21, 22, 23, 31, 41, 42]
    assert packed.sampler_logprobs.tolist() == pytest.approx([-0.21, -0.22, -0.23, -0.31, -0.41, -0.42])
    assert packed.advantages.tolist() == [1.0, 1.0, 1.0, 1.0, -2.0, -2.0]
    assert packed.trees == (7,)


@given(LENGTHS.filter(lambda lengths: any(sum(branches) for _, branches in lengths)))
def test_every_completion_token_is_predicted_by_the_token_before_it_at_the_right_position(lengths):
    trees = make_trees(lengths)
    packed = pack(trees, 8)
    fed, positions = packed.token_ids.tolist(), packed.position_ids.tolist()
    predictor = {}
    for tree in trees:
        for one in tree.branches:
            sequence = (*tree.prompt_ids, *one.token_ids)
            for depth, token in enumerate(one.token_ids, len(tree.prompt_ids)):
                predictor[token] = (sequence[depth - 1], depth - 1, one.advantage)
    rows = packed.logit_rows[packed.token_rows].tolist()
    found = {
        token: (fed[row], positions[row], advantage)
        for token, row, advantage in zip(packed.targets.tolist(), rows, packed.advantages.tolist(), strict=True)
    }
    assert found == predictor
    assert len(packed.targets) == sum(tree.trained_tokens for tree in trees)
    assert len(fed) == sum(tree.forward_tokens for tree in trees) == len(set(fed))
    assert packed.logit_rows.tolist() == sorted(set(packed.logit_rows.tolist()))


@given(LENGTHS.filter(lambda lengths: any(sum(branches) for _, branches in lengths)), st.integers(1, 40))
def test_blocks_of_any_size_show_each_token_its_ancestors_and_nothing_else(lengths, block_tokens):
    trees = make_trees(lengths)
    packed = pack(trees, block_tokens)
    assert torch.equal(dense_mask(packed.attention), ancestors(packed, trees))
    assert packed.attention.depth == int(packed.position_ids.max()) + 1


def test_long_trees_are_cut_into_blocks_that_bound_the_pairs_computed():
    packed = pack(make_trees([(100, [201] * 8)]), 256)
    pairs = sum(block.length * (block.length + (100 if block.prefix is not None else 0)) for block in packed.attention.blocks)
    assert pairs == 100 * 100 + 8 * 200 * 300  # one mask over the tree would be 1700²
    assert all(block.mask is None for block in packed.attention.blocks)


@given(st.lists(st.integers(1, 120), min_size=1, max_size=40), st.integers(16, 100))
def test_micro_batches_hold_every_tree_once_within_the_budget(sizes, budget):
    trees = make_trees([(size, [1]) for size in sizes])
    plan = plan_micro_batches(trees, budget)
    assert sorted(tree.index for members in plan for tree in members) == list(range(len(trees)))
    for members in plan:
        assert sum(tree.forward_tokens for tree in members) <= budget or len(members) == 1
        assert [tree.index for tree in members] == sorted(tree.index for tree in members)
    loads = [sum(tree.forward_tokens for tree in members) for members in plan if sum(tree.forward_tokens for tree in members) <= budget]
    assert sum(load <= budget / 2 for load in loads) <= 1  # two half-empty ones would have been one
    assert plan == plan_micro_batches(trees[::-1], budget)


def test_an_empty_prompt_and_missing_logprobs_are_refused():
    with pytest.raises(ValueError, match="group 3 of the batch has an empty prompt"):
        pack([Tree(3, (), (branch(1),))], 8)
    with pytest.raises(ValueError, match="completion 1 of group 0 of the batch has 2 tokens and 1 log-probs"):
        pack([Tree(0, (1,), (branch(1), Branch((1, 2), (0.0,), 1.0)))], 8)


@pytest.mark.parametrize("option", ["softcap", "s_aux", "position_bias"])
def test_attention_of_other_kinds_is_refused(option):
    heads, plan = torch.zeros(1, 2, 4, 8), pack(make_trees([(3, [2])]), 8).attention
    with pytest.raises(ValueError, match=f"needs {option}"):
        attend_trees(torch.nn.Identity(), heads, heads, heads, None, attention_plan=plan, **{option: 1.0})
    with pytest.raises(ValueError, match=r"attends over 3 tokens only, and a sequence may have 4: set model\.maxModelLen to at most 3"):
        attend_trees(torch.nn.Identity(), heads, heads, heads, None, attention_plan=plan, sliding_window=3)
    with pytest.raises(ValueError, match="needs `attention_plan`"):
        attend_trees(torch.nn.Identity(), heads, heads, heads, None)


@given(LENGTHS.filter(lambda lengths: any(sum(branches) for _, branches in lengths)), st.integers(1, 40), st.integers(0, 99))
def test_attention_in_blocks_equals_one_masked_attention(lengths, block_tokens, seed):
    packed = pack(make_trees(lengths), block_tokens)
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, heads, len(packed.token_ids), 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    found, _ = attend_trees(torch.nn.Identity(), query, key, value, None, scaling=0.3, attention_plan=packed.attention)
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key.repeat_interleave(2, 1)) * 0.3
    weights = scores.masked_fill(~dense_mask(packed.attention), -torch.inf).softmax(-1)
    wanted = torch.einsum("bhqk,bhkd->bqhd", weights, value.repeat_interleave(2, 1))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_plan_moves_with_its_masks():
    plan = plan_attention([[Run(0, PROMPT, 0, 3), Run(0, 0, 3, 2), Run(0, 1, 3, 1)]], 64)
    moved = plan.to(torch.device("meta"))
    assert [block.mask.device.type for block in moved.blocks] == ["meta"]
    assert moved.depth == plan.depth == 5


@given(LENGTHS, st.integers(1, 60), st.integers(1, 5))
def test_rounds_have_every_tree_once_and_keep_to_the_budget(lengths, budget, processes):
    trees = make_trees(lengths)
    rounds = plan_rounds(trees, budget, processes)
    assert all(len(members) == processes for members in rounds)
    micro_batches = [members for shares in rounds for members in shares]
    assert sorted(tree.index for members in micro_batches for tree in members) == [tree.index for tree in trees]
    sizes = [sum(tree.forward_tokens for tree in members) for members in micro_batches]
    assert all(size <= budget or len(members) == 1 for size, members in zip(sizes, micro_batches, strict=True))
    if processes == 1:
        assert rounds == [[members] for members in plan_micro_batches(trees, budget)]
    else:
        assert sizes == sorted(sizes, reverse=True)
        # Somebody has nothing only where there are fewer trees than micro-batches.
        assert all(sizes) or len(trees) < len(sizes)


def test_processes_share_what_would_fit_one_micro_batch():
    trees = make_trees([(4, [5, 5]), (4, [9]), (2, [3, 3]), (3, [6])])
    assert len(plan_micro_batches(trees, 1000)) == 1
    ((one, other),) = plan_rounds(trees, 1000, 2)
    assert [tree.index for tree in one] == [0, 3]
    assert [tree.index for tree in other] == [1, 2]


def test_a_micro_batch_of_nothing_is_one_token_without_a_row():
    packed = pack([], 16)
    assert packed.token_ids.tolist() == packed.position_ids.tolist() == [0]
    assert packed.trees == ()
    for empty in (packed.logit_rows, packed.token_rows, packed.targets, packed.sequences, packed.ages):
        assert empty.dtype == torch.int64
        assert not len(empty)
