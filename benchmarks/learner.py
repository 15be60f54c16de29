"""The learner's step beside bare torch, beside a padded batch, and with ragged lengths, for SmolLM2-135M in float32.

All sides train the same weights on the same groups, in rounds in turns; a ratio is the median of the rounds' ratios, so that a busy machine
falls on both of its sides.

- `step_over_bare`: `Learner.step`, from rollouts to updated weights with all its statistics, over forward, backward and fused AdamW of
  plain torch and transformers on the same packed tokens, with one dense mask and logits at completion positions only. The table's last row
  gives the bare step our attention in blocks as well: what is left is the price of everything else.
- `tree_over_rectangular`: the same step over a padded batch in which each completion repeats its prompt; all lengths are equal, so the
  padded batch has no padding, which favours it.
- `ragged_over_packed`: the step on ragged lengths over the step on equal ones, with equal numbers of tokens.
- `peak_bytes_over_bare`: peak resident memory of a process that takes one step, less what it has before it loads the model, which holds
  weights, gradients, optimizer state and activations.
- what settings add, without a limit: the step with `referenceKl` in the loss or the reward, with an entropy bonus, with the critic of `ppo`
  or with two minibatches, over the step without, on the same groups in turns.
- `two_processes_over_one`, without a limit: the step of a learner of two processes, one after the other with that of one. With as many
  threads each, half would be best on two idle cores; what is above is communication, and cores that the machine does not have.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from rlvr_api.spec import RLVRJobSpec
from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.distributed.lead import open_ranks
from rlvr_trainer.distributed.ranks import ALONE, Ranks
from rlvr_trainer.learner import Learner
from rlvr_trainer.packing import Branch, PackedBatch, Tree, pack
from rlvr_trainer.policy import Policy
from rlvr_trainer.pretrained import write_smollm2
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan

LIMITS = {"step_over_bare": 1.10, "tree_over_rectangular": 0.6, "ragged_over_packed": 1.10, "peak_bytes_over_bare": 1.10}
ADDITIONS: Mapping[str, Mapping[str, Any]] = {
    "reference_in_loss": {"referenceKl": {"coefficient": 1e-3}},
    "reference_in_reward": {"referenceKl": {"coefficient": 1e-3, "placement": "reward", "estimator": "k1"}},
    "entropy_bonus": {"entropyBonus": 1e-3},
    "critic": {"algorithm": {"ppo": {}}},
    "minibatches": {"minibatches": 2},
}
"""Settings of `rlvr` by what they add."""
PROMPT_TOKENS = 37
EQUAL_LENGTHS = (8,) * 8
RAGGED_LENGTHS = (1, 2, 4, 6, 9, 12, 14, 16)
ALL_TOKENS = 1 << 30
"""Attention block that holds everything: its mask is the dense one."""
LEARNING_RATE = 1e-7


def main() -> None:
    """Measure, print one table, and one JSON object as the last line."""
    options = _options()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    write_smollm2(options.model)
    if options.processes is not None:
        print(json.dumps(step_seconds(options.model, options.groups, options.rounds, options.processes)))
        return
    if options.peak_of is not None:
        print(peak_bytes(options.model, options.peak_of, options.groups))
        return
    seconds = time_steps(options.model, options.groups, options.rounds)
    peaks = {side: [_peak_in_child(options, side) for _ in range(options.rounds)] for side in ("ours", "bare")}
    numbers = compare(seconds, peaks)
    added = {name: time_addition(options, changes) for name, changes in ADDITIONS.items()}
    of_processes = {processes: time_processes(options, processes) for processes in (1, 2)}
    seconds |= {f"{processes} process{'es' * (processes - 1)}": found for processes, found in of_processes.items()}
    _print_table(seconds, peaks, numbers, added, options)
    numbers |= {f"{name}_over_plain": ratio for name, ratio in added.items()}
    numbers["two_processes_over_one"] = statistics.median(of_processes[2]) / statistics.median(of_processes[1])
    print(json.dumps({name: round(value, 4) for name, value in numbers.items()}))


def time_steps(folder: Path, groups: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round, after one round to warm up."""
    equal, ragged = make_trees(groups, EQUAL_LENGTHS, spread=0), make_trees(groups, RAGGED_LENGTHS, spread=12)
    check_equally_large(equal, ragged)
    learner = make_learner(folder)
    bare = BareTrainer(folder)
    batch = pack(equal, ALL_TOKENS)
    mask = batch.attention.blocks[0].mask
    assert mask is not None
    blocks = pack(equal, learner.policy.block_tokens)
    table, completion_tokens = rectangle(equal)
    equal_groups, ragged_groups = [make_group(tree) for tree in equal], [make_group(tree) for tree in ragged]
    sides: dict[str, Callable[[], None]] = {
        "ours": lambda: learner.step(equal_groups),
        "bare": lambda: bare.step("sdpa", batch, attention_mask=mask[None, None]),
        "bare, our attention": lambda: bare.step("rlvr_tree", blocks, attention_plan=blocks.attention),
        "rectangular": lambda: bare.step_rectangle(table, completion_tokens, batch.advantages),
        "ragged": lambda: learner.step(ragged_groups),
    }
    return time_in_turns(sides, rounds)


def check_equally_large(equal: Sequence[Tree], ragged: Sequence[Tree]) -> None:
    """Exits where the two do not compare."""
    if sum(tree.forward_tokens for tree in equal) != sum(tree.forward_tokens for tree in ragged):
        raise SystemExit("ragged and equal groups must have the same number of tokens")


def time_in_turns(
    sides: Mapping[str, Callable[[], None]], rounds: int, finish: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each side in each round, after one round to warm up.

    Args:
        finish: waits until nothing is at work any more.
    """
    found: dict[str, list[float]] = {side: [] for side in sides}
    names = list(sides)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            finish()
            began = time.perf_counter()
            sides[name]()
            finish()
            if number:
                found[name].append(time.perf_counter() - began)
    return found


def time_addition(options: argparse.Namespace, changes: Mapping[str, Any]) -> float:
    """The step with these settings over the step without."""
    groups = [make_group(tree) for tree in make_trees(options.groups, EQUAL_LENGTHS, spread=0)]
    plain, changed = make_learner(options.model), make_learner(options.model, changes)
    seconds = time_in_turns({"changed": lambda: changed.step(groups), "plain": lambda: plain.step(groups)}, options.rounds)
    return ratio(seconds["changed"], seconds["plain"])


class TimedLearner:
    """A `Learner` that is asked the same again and again."""

    def __init__(self, folder: Path, spec: RLVRJobSpec, ranks: Ranks = ALONE) -> None:
        stage = spec.stages[0].rlvr
        assert stage is not None
        self.policy = Policy.load(folder, spec, ranks)
        reference = self.policy.engine_named_tensors() if stage.reference_kl is not None else None
        self._learner = Learner(self.policy, stage, spec, reference)

    def step(self, groups: Sequence[RolloutGroup]) -> None:
        """One step."""
        if not self._learner.step(groups, 0, lambda version: 0).updated:
            raise SystemExit("the learner had nothing to train on")


def make_learner(folder: Path, changes: Mapping[str, Any] | None = None) -> TimedLearner:
    """With the defaults of a job, and changes of its stage."""
    return TimedLearner(folder, make_spec(folder, changes))


def make_spec(folder: Path, changes: Mapping[str, Any] | None = None, **sections: Mapping[str, Any]) -> RLVRJobSpec:
    """The job of a learner, with changes of its stage, and further settings of other sections."""
    job: dict[str, Any] = {
        "model": {"uri": f"file://{folder.resolve()}", "maxModelLen": 256},
        "environments": [{"name": "sums", "arithmetic": {}}],
        "sampling": {"maxTokens": 16},
        "stages": [{"name": "climb", "rlvr": {"steps": 1000, "optimizer": {"learningRate": LEARNING_RATE}, **(changes or {})}}],
    }
    return RLVRJobSpec.model_validate(job | {name: {**job.get(name, {}), **more} for name, more in sections.items()})


def time_processes(options: argparse.Namespace, processes: int) -> list[float]:
    """Seconds of each step of a learner of some processes, of which this is none."""
    command = [sys.executable, __file__, "--processes", str(processes), "--groups", str(options.groups), "--rounds", str(options.rounds)]
    command += ["--threads", str(options.threads), "--model", str(options.model)]
    environ = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600, env=environ)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def step_seconds(folder: Path, groups: int, rounds: int, processes: int) -> list[float]:
    """The same, with this process as the lead."""
    spec, batch = (
        make_spec(folder, learner={"processesPerNode": processes}),
        [make_group(tree) for tree in make_trees(groups, EQUAL_LENGTHS, spread=0)],
    )
    with open_ranks(spec, folder) as ranks:
        learner = TimedLearner(folder, spec, ranks)
        found = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            learner.step(batch)
            found.append(time.perf_counter() - began)
    return found[1:]


class BareTrainer:
    """The least that trains: model, log-softmax, backward, fused AdamW; float32 weights, and matrix products in `compute_dtype`."""

    def __init__(self, folder: Path, device: str = "cpu", compute_dtype: torch.dtype = torch.float32) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").to(device)
        self._model.train()
        self._autocast = torch.autocast(device, compute_dtype, enabled=compute_dtype != torch.float32)
        self._adamw = torch.optim.AdamW(self._model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(self, attention: str, batch: PackedBatch, **arguments: Any) -> None:
        """On packed tokens."""
        self.add(attention, batch, **arguments)
        self.update()

    def add(self, attention: str, batch: PackedBatch, **arguments: Any) -> None:
        """The gradient of a micro-batch of packed tokens."""
        self._model.set_attn_implementation(attention)
        places = {"position_ids": batch.position_ids[None], "logits_to_keep": batch.logit_rows}
        with self._autocast:
            logits = self._model(input_ids=batch.token_ids[None], use_cache=False, **places, **arguments).logits.squeeze(0)
        self._backward(log_softmax(logits.float(), -1)[batch.token_rows, batch.targets], batch.advantages)

    def step_rectangle(self, table: Tensor, completion_tokens: int, advantages: Tensor) -> None:
        """On sequences of equal length, [samples, tokens]; `advantages` is [samples · completion tokens]."""
        self.add_rectangle(table, completion_tokens, advantages)
        self.update()

    def add_rectangle(self, table: Tensor, completion_tokens: int, advantages: Tensor) -> None:
        """The gradient of a micro-batch of such sequences."""
        self._model.set_attn_implementation("sdpa")
        with self._autocast:
            logits = self._model(input_ids=table[:, :-1], logits_to_keep=completion_tokens, use_cache=False).logits
        logprobs = log_softmax(logits.float(), -1).gather(-1, table[:, -completion_tokens:, None])
        self._backward(logprobs.flatten(), advantages)

    def update(self) -> None:
        """Change the weights by the gradients so far."""
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def _backward(self, logprobs: Tensor, advantages: Tensor) -> None:
        loss = -(advantages * logprobs).sum() / len(logprobs)
        loss.backward()  # type: ignore[no-untyped-call]


def make_trees(groups: int, lengths: Sequence[int], spread: int, prompt_tokens: int = PROMPT_TOKENS) -> list[Tree]:
    """Groups of random tokens; prompts have `prompt_tokens` ± `spread`, and `prompt_tokens` on average."""
    source = random.Random(0)
    offsets = [round(spread * (2 * number / max(1, groups - 1) - 1)) for number in range(groups)]

    def branch(number: int, length: int) -> Branch:
        ids = tuple(source.randrange(1000, 40_000) for _ in range(length))
        return Branch(ids, (-10.0,) * length, 0.5 if number % 2 else -0.5)

    return [
        Tree(
            index,
            tuple(source.randrange(1000, 40_000) for _ in range(prompt_tokens + offset)),
            tuple(branch(number, length) for number, length in enumerate(lengths)),
        )
        for index, offset in enumerate(offsets)
    ]


def make_group(tree: Tree) -> RolloutGroup:
    """The rollouts whose tree this is: every second completion is right."""

    def rollout(branch: Branch) -> Rollout:
        right = branch.advantage > 0
        verdict = Verdict(
            id="0", status=VerdictStatus.PASS if right else VerdictStatus.FAIL, score=float(right), verifier="none", verifier_version="1"
        )
        return Rollout(branch.token_ids, branch.sampler_logprobs, (VersionSpan(0, 0, len(branch.token_ids)),), "stop", "", verdict)

    admission = Admission(tree.index, "sums", 0, tree.index)
    rollouts = tuple(map(rollout, tree.branches))
    return RolloutGroup(admission, f"{tree.index:016x}", tree.prompt_ids, "", rollouts, "rollout-0", "", 1.0, 0.1)


def rectangle(trees: Sequence[Tree]) -> tuple[Tensor, int]:
    """Every completion after its own copy of the prompt, [samples, tokens], and the length of a completion."""
    rows = [[*tree.prompt_ids, *branch.token_ids] for tree in trees for branch in tree.branches]
    return torch.tensor(rows), len(trees[0].branches[0].token_ids)


def peak_bytes(folder: Path, side: str, groups: int) -> int:
    """Peak resident memory of two steps in this process, less what it has now."""
    trees = make_trees(groups, EQUAL_LENGTHS, spread=0)
    batch = pack(trees, ALL_TOKENS)
    rollouts = [make_group(tree) for tree in trees]
    mask = batch.attention.blocks[0].mask
    assert mask is not None
    before = _resident("VmRSS")
    if side == "ours":
        learner = make_learner(folder)
        for _ in range(2):
            learner.step(rollouts)
    else:
        bare = BareTrainer(folder)
        for _ in range(2):
            bare.step("sdpa", batch, attention_mask=mask[None, None])
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """`VmRSS`, now, or `VmHWM`, its peak. `ru_maxrss` would be the parent's peak, which a child inherits."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def _peak_in_child(options: argparse.Namespace, side: str) -> float:
    command = [sys.executable, __file__, "--peak-of", side, "--groups", str(options.groups), "--threads", str(options.threads)]
    done = subprocess.run([*command, "--model", str(options.model)], check=True, capture_output=True, text=True, timeout=600)
    return float(done.stdout.split()[-1])


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def compare(seconds: Mapping[str, Sequence[float]], peaks: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """What `LIMITS` limits."""
    return {
        "step_over_bare": ratio(seconds["ours"], seconds["bare"]),
        "ragged_over_packed": ratio(seconds["ragged"], seconds["ours"]),
        "peak_bytes_over_bare": ratio(peaks["ours"], peaks["bare"]),
        "tree_over_rectangular": ratio(seconds["ours"], seconds["rectangular"]),
    }


def start_table(
    title: str, seconds: Mapping[str, Sequence[float]], peaks: Mapping[str, Sequence[float]], numbers: Mapping[str, float]
) -> Table:
    """Medians of seconds and bytes by side, and what has a limit."""
    table = Table(title=title, min_width=110)
    for column in ("what", "median", "limit"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, values in seconds.items():
        table.add_row(f"step, {name}", f"{statistics.median(values):#.3g} s", "")
    for name, sizes in peaks.items():
        table.add_row(f"peak memory, {name}", f"{statistics.median(sizes) / 1e9:#.3g} GB", "")
    table.add_section()
    for name, value in numbers.items():
        table.add_row(name.replace("_", " "), f"{value:.3f}", f"{LIMITS[name]:.2f}")
    return table


def _print_table(
    seconds: dict[str, list[float]],
    peaks: dict[str, list[float]],
    numbers: dict[str, float],
    added: dict[str, float],
    options: argparse.Namespace,
) -> None:
    tokens = sum(tree.forward_tokens for tree in make_trees(options.groups, EQUAL_LENGTHS, spread=0))
    title = (
        f"Learner: {options.groups} groups of 8 completions of 8 tokens, {tokens} tokens as trees, SmolLM2-135M fp32, "
        f"{options.threads} of {os.cpu_count()} cores, {options.rounds} rounds"
    )
    table = start_table(title, seconds, peaks, numbers)
    for name, value in added.items():
        table.add_row(f"step with {name.replace('_', ' ')} over plain", f"{value:.3f}", "")
    two, one = seconds["2 processes"], seconds["1 process"]
    table.add_row("step of two processes over one", f"{statistics.median(two) / statistics.median(one):.3f}", "")
    table.add_row("step over bare with our attention", f"{ratio(seconds['ours'], seconds['bare, our attention']):.3f}", "")
    Console(width=120).print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"), help="folder of SmolLM2; made when missing")
    parser.add_argument("--groups", type=int, default=5, help="groups in a step")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up")
    parser.add_argument("--threads", type=int, default=1, help="compute threads")
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peak-of", choices=("ours", "bare"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
