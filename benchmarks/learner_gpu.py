"""The learner's step on one GPU, beside bare torch and a padded batch: 0.5B random parameters, products in bfloat16, weights in float32.

All sides have the shape of Qwen2.5-0.5B and the same groups, in rounds in turns, with the GPU idle before and after each.

- `step_over_bare`: `Learner.step`, from rollouts to updated weights with all its statistics, over forward, backward and fused AdamW on the
  same micro-batches, which are on the GPU before, with the same attention in blocks and all logits at once. Ours makes them in chunks.
- `tree_over_rectangular`: over a padded batch in which each completion repeats its prompt, by torch's causal flash attention; all lengths
  are equal, so the padded batch has no padding, which favours it.
- `ragged_over_packed`: the step on ragged lengths over the step on equal ones, with equal numbers of tokens.
- `peak_bytes_over_bare`: most memory that torch holds on the GPU in a step: weights, gradients, optimizer state, activations, logits.
- without a limit: share of the GPU's peak in the step, the loss of 32k tokens with a vocabulary of 152k by itself, and a step on one
  sequence of 32k tokens with gradient checkpointing.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.learner import (
    ALL_TOKENS,
    BareTrainer,
    TimedLearner,
    check_equally_large,
    compare,
    make_group,
    make_spec,
    make_trees,
    rectangle,
    start_table,
    time_in_turns,
)
from rlvr_trainer import tree_attention
from rlvr_trainer.packing import Tree, pack
from rlvr_trainer.policy import BLOCK_TOKENS_GPU
from rlvr_trainer.token_logprobs import score_states

VOCABULARY, WIDTH = 151_936, 896
GROUPS, GROUPS_PER_MICRO_BATCH, PROMPT_TOKENS = 16, 4, 512
MICRO_BATCH_TOKENS = 10_240
"""Four equal groups, or as many ragged ones as fit."""
EQUAL_LENGTHS = (256,) * 8
RAGGED_LENGTHS = (32, 64, 128, 192, 320, 384, 448, 480)
LONG_TOKENS = 32_768
BF16_PEAK_FLOPS = 989e12
"""Of an H100 or H200 (SXM), dense, NVIDIA's data sheet."""


def main() -> None:
    """Measure, print one table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("learner_gpu needs a GPU that torch can use, and there is none here; nothing was measured\n{}")
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random-0.5b"
        parameters = write_random_model(model)
        equal, ragged = make_trees(GROUPS, EQUAL_LENGTHS, 0, PROMPT_TOKENS), make_trees(GROUPS, RAGGED_LENGTHS, 128, PROMPT_TOKENS)
        check_equally_large(equal, ragged)
        peaks = {side: [measure_peak(model, side, equal)] for side in ("ours", "bare")}
        sides = {**make_our_sides(model, equal, ragged), **make_bare_sides(model, equal)}
        seconds = time_in_turns(sides, options.rounds, torch.cuda.synchronize)
        del sides
        long = time_long_sequence(model)
    numbers, loss = compare(seconds, peaks), measure_loss()
    tokens = sum(tree.forward_tokens for tree in equal)
    flops_share = 6 * parameters * tokens / statistics.median(seconds["ours"]) / BF16_PEAK_FLOPS
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    title = f"Learner on {device}: {GROUPS} groups of 8 x 256 tokens, {tokens} tokens as trees"
    table = start_table(title, seconds, peaks, numbers)
    table.add_row("6 x parameters x tokens over time and the GPU's peak", f"{flops_share:.1%}", "")
    table.add_row("loss of 32k tokens, vocabulary of 152k", f"{loss[0]:.3f} s, {loss[1] / 1e9:.1f} GB", "")
    table.add_row("step on 32k tokens, checkpointing", f"{long[0]:.2f} s, {long[1] / 1e9:.1f} GB", "")
    Console(width=130).print(table)
    print(json.dumps({name: round(value, 4) for name, value in {**numbers, "model_flops_share": flops_share}.items()}))


def write_random_model(folder: Path) -> int:
    """A model of the shape of Qwen2.5-0.5B; how many parameters it has."""
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=LONG_TOKENS, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Qwen2ForCausalLM(config)
    model.to("cpu", torch.bfloat16).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def make_learner(folder: Path, **learner: object) -> TimedLearner:
    """With the defaults of a job on a GPU."""
    sections: dict[str, dict[str, Any]] = {
        "model": {"maxModelLen": LONG_TOKENS},
        "sampling": {"maxTokens": 512},
        "precision": {"learnerCompute": "bfloat16"},
        "learner": {"gpus": 1, "tokensPerMicroBatch": MICRO_BATCH_TOKENS, **learner},
    }
    return TimedLearner(folder, make_spec(folder, **sections))


def measure_peak(folder: Path, side: str, equal: Sequence[Tree]) -> int:
    """Most bytes that a side holds while the other is not there."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    sides = make_our_sides(folder, equal, ()) if side == "ours" else make_bare_sides(folder, equal)
    return peak_bytes(sides[side]) - before


def make_our_sides(folder: Path, equal: Sequence[Tree], ragged: Sequence[Tree]) -> dict[str, Callable[[], None]]:
    """Steps of one learner."""
    learner = make_learner(folder)
    groups = {"ours": [make_group(tree) for tree in equal], "ragged": [make_group(tree) for tree in ragged]}
    return {name: partial(learner.step, of) for name, of in groups.items()}


def make_bare_sides(folder: Path, equal: Sequence[Tree]) -> dict[str, Callable[[], None]]:
    """The same groups, packed or as a rectangle, in as many micro-batches, which are on the GPU before."""
    tree_attention.register()
    trainer = BareTrainer(folder, "cuda", torch.bfloat16)
    parts = [equal[start : start + GROUPS_PER_MICRO_BATCH] for start in range(0, len(equal), GROUPS_PER_MICRO_BATCH)]
    batches = [pack(part, BLOCK_TOKENS_GPU).to(torch.device("cuda")) for part in parts]
    tables = [rectangle(part) for part in parts]
    rectangles = [
        (table.to("cuda"), tokens, pack(part, ALL_TOKENS).advantages.to("cuda"))
        for (table, tokens), part in zip(tables, parts, strict=True)
    ]

    def step_packed() -> None:
        for batch in batches:
            trainer.add(tree_attention.NAME, batch, attention_plan=batch.attention)
        trainer.update()

    def step_rectangular() -> None:
        for table, completion_tokens, advantages in rectangles:
            trainer.add_rectangle(table, completion_tokens, advantages)
        trainer.update()

    return {"bare": step_packed, "rectangular": step_rectangular}


def time_once(step: Callable[[], None]) -> float:
    """Seconds until the GPU is idle again."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_bytes(step: Callable[[], None]) -> int:
    """Most bytes of the second step, which has the optimizer's state."""
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


def measure_loss() -> tuple[float, int]:
    """Seconds and bytes, forward and backward, of the loss of 32k tokens from their last hidden states; gradients included."""
    states = torch.randn(LONG_TOKENS, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    head = torch.randn(VOCABULARY, WIDTH, device="cuda", requires_grad=True)
    rows, targets = torch.arange(LONG_TOKENS, device="cuda"), torch.randint(VOCABULARY, (LONG_TOKENS,), device="cuda")

    def step() -> None:
        states.grad = head.grad = None
        score_states(states, head, rows, targets, 1.0).logprobs.mean().backward()  # type: ignore[no-untyped-call]

    before = torch.cuda.memory_allocated()
    peak = peak_bytes(step) - before
    return time_once(step), peak


def time_long_sequence(folder: Path) -> tuple[float, int]:
    """Seconds and bytes of a step on a group of one sequence of 32k tokens beside a short one."""
    torch.cuda.empty_cache()
    learner = make_learner(folder, gradientCheckpointing=True)  # a tree beyond the budget is a micro-batch of its own
    groups = [make_group(tree) for tree in make_trees(1, (LONG_TOKENS - 1024, 8), 0, PROMPT_TOKENS)]
    peak = peak_bytes(lambda: learner.step(groups))
    return time_once(lambda: learner.step(groups)), peak


if __name__ == "__main__":
    main()
