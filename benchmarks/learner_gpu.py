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
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.learner import ALL_TOKENS, BareTrainer, TimedLearner, make_group, make_trees, ratio, rectangle
from rlvr_api.spec import RLVRJobSpec
from rlvr_trainer.packing import Tree, pack
from rlvr_trainer.token_logprobs import score_states

LIMITS = {"step_over_bare": 1.10, "tree_over_rectangular": 0.6, "ragged_over_packed": 1.10, "peak_bytes_over_bare": 1.10}
VOCABULARY, WIDTH = 151_936, 896
GROUPS, GROUPS_PER_MICRO_BATCH, PROMPT_TOKENS = 16, 4, 512
MICRO_BATCH_TOKENS = 10_240
"""Four equal groups, or as many ragged ones as fit."""
EQUAL_LENGTHS = (256,) * 8
RAGGED_LENGTHS = (32, 64, 128, 192, 320, 384, 448, 480)
LONG_TOKENS = 32_768
BF16_PEAK_FLOPS = 989e12
"""Of an H100 or H200 (SXM), dense, NVIDIA's data sheet."""
GIB = 1 << 30


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
        seconds, peaks = time_steps(model, options.rounds)
        long = time_long_sequence(model)
    numbers = {
        "step_over_bare": ratio(seconds["ours"], seconds["bare"]),
        "ragged_over_packed": ratio(seconds["ragged"], seconds["ours"]),
        "peak_bytes_over_bare": peaks["ours"] / peaks["bare"],
        "tree_over_rectangular": ratio(seconds["ours"], seconds["rectangular"]),
    }
    tokens = sum(tree.forward_tokens for tree in make_trees(GROUPS, EQUAL_LENGTHS, 0, PROMPT_TOKENS))
    numbers["model_flops_share"] = 6 * parameters * tokens / statistics.median(seconds["ours"]) / BF16_PEAK_FLOPS
    print_table(seconds, peaks, numbers, {"loss": measure_loss(), "long": long}, tokens)
    print(json.dumps({name: round(value, 4) for name, value in numbers.items()}))


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
    spec = RLVRJobSpec.model_validate({
        "model": {"uri": f"file://{folder.resolve()}", "maxModelLen": LONG_TOKENS},
        "environments": [{"name": "sums", "arithmetic": {}}],
        "sampling": {"maxTokens": 512},
        "stages": [{"name": "climb", "rlvr": {"steps": 1000, "optimizer": {"learningRate": 1e-7}}}],
        "precision": {"learnerCompute": "bfloat16"},
        "learner": {"gpus": 1, "tokensPerMicroBatch": MICRO_BATCH_TOKENS, **learner},
    })  # fmt: skip
    return TimedLearner(folder, spec)


def time_steps(folder: Path, rounds: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each side in each round, after one round to warm up, and the most bytes that each held, but for the other's weights."""
    equal, ragged = make_trees(GROUPS, EQUAL_LENGTHS, 0, PROMPT_TOKENS), make_trees(GROUPS, RAGGED_LENGTHS, 128, PROMPT_TOKENS)
    if sum(tree.forward_tokens for tree in equal) != sum(tree.forward_tokens for tree in ragged):
        raise SystemExit("ragged and equal groups must have the same number of tokens")
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    for of_ours in (True, False):  # one after the other where memory is compared, and both where time is
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        sides = make_sides(folder, equal, ragged, ours=of_ours, bare=not of_ours)
        peaks["ours" if of_ours else "bare"] = peak_bytes(sides["ours" if of_ours else "bare"]) - before
        del sides
    sides = make_sides(folder, equal, ragged, ours=True, bare=True)
    names = list(sides)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken = time_once(sides[name])
            if number:
                seconds.setdefault(name, []).append(taken)
    return seconds, peaks


def make_sides(folder: Path, equal: list[Tree], ragged: list[Tree], *, ours: bool, bare: bool) -> dict[str, Callable[[], None]]:
    """What is measured, by name; models are loaded for those alone that are asked for."""
    sides: dict[str, Callable[[], None]] = {}
    if ours:
        learner = make_learner(folder)
        groups = {"ours": [make_group(tree) for tree in equal], "ragged": [make_group(tree) for tree in ragged]}
        sides |= {name: partial(learner.step, of) for name, of in groups.items()}
        block_tokens = learner.policy.block_tokens
    else:
        block_tokens = 1024
    if bare:
        sides |= make_bare_sides(BareTrainer(folder, "cuda", torch.bfloat16), equal, block_tokens)
    return sides


def make_bare_sides(trainer: BareTrainer, equal: list[Tree], block_tokens: int) -> dict[str, Callable[[], None]]:
    """The same groups, packed or as a rectangle, in as many micro-batches, which are on the GPU before."""
    parts = [equal[start : start + GROUPS_PER_MICRO_BATCH] for start in range(0, len(equal), GROUPS_PER_MICRO_BATCH)]
    batches = [pack(part, block_tokens).to(torch.device("cuda")) for part in parts]
    tables = [rectangle(part) for part in parts]
    rectangles = [
        (table.to("cuda"), tokens, pack(part, ALL_TOKENS).advantages.to("cuda"))
        for (table, tokens), part in zip(tables, parts, strict=True)
    ]

    def step_packed() -> None:
        for batch in batches:
            trainer.add("rlvr_tree", batch, attention_plan=batch.attention)
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


def print_table(
    seconds: dict[str, list[float]], peaks: dict[str, int], numbers: dict[str, float], alone: dict[str, tuple[float, int]], tokens: int
) -> None:
    """Everything, with the limits."""
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    title = f"Learner on {device}: {GROUPS} groups of 8 x 256 tokens, {tokens} tokens as trees"
    table = Table(title=title, min_width=110)
    for column in ("what", "median", "limit"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, values in seconds.items():
        table.add_row(f"step, {name}", f"{statistics.median(values):.3f} s", "")
    for name, size in peaks.items():
        table.add_row(f"peak memory, {name}", f"{size / GIB:.1f} GiB", "")
    table.add_section()
    for name, limit in LIMITS.items():
        table.add_row(name.replace("_", " "), f"{numbers[name]:.3f}", f"{limit:.2f}")
    table.add_row("6 x parameters x tokens over time and the GPU's peak", f"{numbers['model_flops_share']:.1%}", "")
    table.add_row("loss of 32k tokens, vocabulary of 152k", "{:.3f} s, {:.1f} GiB".format(alone["loss"][0], alone["loss"][1] / GIB), "")
    table.add_row("step on 32k tokens, checkpointing", "{:.2f} s, {:.1f} GiB".format(alone["long"][0], alone["long"][1] / GIB), "")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
