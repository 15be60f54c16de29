"""Every algorithm trains the tiny model from the same start, three seeds each: pass rate before and after.

Sums up to 4 + 4, a model of 0.1M parameters that a short cold start leaves right a third of the time, 32 prompts x 8 samples a step, two
updates a step so that ratios, clipping and gates act (one for `rloo`, which has no ratio), AdamW at one learning rate for all, otherwise a
job's defaults. The pass rate is over all problems, 40 samples each, at temperature 1. A limit of 0.8 holds for every seed.

This asks whether an algorithm learns, not which one learns best: one small task at one learning rate cannot say that. Not covered: problems
that were not trained on.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from benchmarks._tiny_climb import Climb, make_spec, write_start
from rlvr_api.algorithms import ALGORITHM_KINDS

LIMIT = 0.8
SETTINGS = {"dr_grpo": {"normalizer_tokens": 3}}
EVALUATION_SAMPLES = 40


def main() -> None:
    """Measure, print one table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("algorithms", nargs="*", default=ALGORITHM_KINDS, help=f"of {', '.join(ALGORITHM_KINDS)}; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        write_start(Path(folder))
        measure(Path(folder) / "start", options)


def measure(start: Path, options: argparse.Namespace) -> None:
    """Run every algorithm, and print what came of it."""
    table = Table(
        title=f"Pass rate of the tiny model before and after {options.steps} steps, learning rate {options.learning_rate:g}", min_width=110
    )
    for column in ("algorithm", "before", *(f"seed {seed}" for seed in range(1, options.seeds + 1)), "mean", "seconds a step"):
        table.add_column(column, justify="left" if column == "algorithm" else "right")
    lowest = {}
    for kind in options.algorithms:
        rlvr = {
            "algorithm": {kind: SETTINGS.get(kind, {})}, "minibatches": 1 if kind == "rloo" else 2, "promptsPerStep": 32, "groupSize": 8,
            "optimizer": {"learningRate": options.learning_rate},
        }  # fmt: skip
        spec = make_spec(start, rlvr, {"correction": {"none": {}}} if kind == "dppo_tv" else None)
        before, after, seconds = 0.0, [], []
        for seed in range(1, options.seeds + 1):
            climb = Climb(start, spec, seed)
            before = climb.pass_rate(EVALUATION_SAMPLES)
            began = time.monotonic()
            for _ in climb.steps(options.steps):
                pass
            seconds.append((time.monotonic() - began) / options.steps)
            after.append(climb.pass_rate(EVALUATION_SAMPLES))
        lowest[kind] = min(after)
        rates = [f"{rate:.3f}" for rate in after]
        table.add_row(kind, f"{before:.3f}", *rates, f"{statistics.fmean(after):.3f}", f"{statistics.median(seconds):.3f}")
    table.caption = f"limit: at least {LIMIT} for every seed"
    Console(width=120).print(table)
    print(json.dumps({**{kind: round(rate, 4) for kind, rate in lowest.items()}, "lowest": round(min(lowest.values()), 4)}))


if __name__ == "__main__":
    main()
