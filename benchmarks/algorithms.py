"""Every algorithm trains the tiny model from the same start, three seeds each: pass rate before and after.

Sums up to 4 + 4, a model of 0.1M parameters that a short cold start leaves right a third of the time, 32 prompts x 8 samples a step, two
updates a step so that ratios, clipping and gates act (one for `rloo`, which has no ratio), AdamW with one cosine schedule for all,
otherwise a job's defaults. The pass rate is over all problems, 40 samples each, at temperature 1. A limit of 0.8 holds for every seed.

This asks whether an algorithm learns, not which one learns best: one small task at one learning rate cannot say that. Not covered: problems
that were not trained on.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks._tiny_climb import Climb, make_spec, run_all, write_start
from rlvr_api.algorithms import ALGORITHM_KINDS

LIMIT = 0.8
SETTINGS = {"dr_grpo": {"normalizer_tokens": 3}}
EVALUATION_SAMPLES = 40


class Setting(NamedTuple):
    """Of one run."""

    start: str
    """Folder of the model."""
    algorithm: str
    seed: int
    steps: int
    learning_rate: float


class Outcome(NamedTuple):
    """Of one run."""

    before: float
    after: float
    seconds_per_step: float


def main() -> None:
    """Measure, print one table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("algorithms", nargs="*", default=ALGORITHM_KINDS, help=f"of {', '.join(ALGORITHM_KINDS)}; default: all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_start(Path(folder))
        settings = [
            Setting(f"{folder}/start", kind, seed, options.steps, options.learning_rate)
            for kind in options.algorithms
            for seed in range(1, options.seeds + 1)
        ]
        outcomes = dict(zip(settings, run_all(climb, settings), strict=True))
    report(outcomes, options)


def climb(setting: Setting) -> Outcome:
    """One run."""
    kind, start = setting.algorithm, Path(setting.start)
    rlvr = {
        "algorithm": {kind: SETTINGS.get(kind, {})}, "minibatches": 1 if kind == "rloo" else 2, "promptsPerStep": 32, "groupSize": 8,
        "steps": setting.steps, "optimizer": {"learningRate": setting.learning_rate, "schedule": "cosine"},
    }  # fmt: skip
    run = Climb(start, make_spec(start, rlvr, {"correction": {"none": {}}} if kind == "dppo_tv" else None), setting.seed)
    before = run.pass_rate(EVALUATION_SAMPLES)
    began = time.monotonic()
    for _ in run.steps(setting.steps):
        pass
    return Outcome(before, run.pass_rate(EVALUATION_SAMPLES), (time.monotonic() - began) / setting.steps)


def report(outcomes: Mapping[Setting, Outcome], options: argparse.Namespace) -> None:
    """Print what came of all runs."""
    table = Table(
        title=f"Pass rate of the tiny model before and after {options.steps} steps, learning rate {options.learning_rate:g}", min_width=110
    )
    for column in ("algorithm", "before", *(f"seed {seed}" for seed in range(1, options.seeds + 1)), "mean", "seconds a step"):
        table.add_column(column, justify="left" if column == "algorithm" else "right")
    lowest = {}
    for kind in options.algorithms:
        runs = [found for setting, found in outcomes.items() if setting.algorithm == kind]
        after = [run.after for run in runs]
        lowest[kind] = min(after)
        seconds = f"{statistics.median(run.seconds_per_step for run in runs):.3f}"
        rates = [f"{rate:.3f}" for rate in after]
        table.add_row(kind, f"{statistics.fmean(run.before for run in runs):.3f}", *rates, f"{statistics.fmean(after):.3f}", seconds)
    table.caption = f"limit: at least {LIMIT} for every seed"
    Console(width=120).print(table)
    print(json.dumps({**{kind: round(rate, 4) for kind, rate in lowest.items()}, "lowest": round(min(lowest.values()), 4)}))


if __name__ == "__main__":
    main()
