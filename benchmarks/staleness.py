"""Staleness against what is learned: batches wait 0 to 8 optimizer steps between being sampled and being trained.

The tiny model's climb of `benchmarks/algorithms.py` by GRPO with one update a step, so that nothing but the sampler's age is off-policy, at
a learning rate at which 8 steps are far. Each side sees as many samples, from the same start and with the same seeds:

- `uncorrected`: learns from stale samples as if they were fresh, which a job refuses.
- `corrected`: `tokenTruncated`, a job's default.
- `dppoTv`: the ratio to the sampler with its trust region.
- `governed`: as `corrected`, and `offPolicy.governor` may lower the staleness that the row allows; in brackets what it allowed on average.

A pass rate is over all problems at temperature 1, the mean of the evaluations in the last fifth of the run.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks._tiny_climb import Climb, make_spec, run_all, write_start

CORRECTED: Mapping[str, Any] = {"correction": {"token_truncated": {}}}
NONE: Mapping[str, Any] = {"correction": {"none": {}}}
EVALUATIONS = 5
"""In the last fifth."""
EVALUATION_SAMPLES = 16


class Outcome(NamedTuple):
    """Of one run."""

    pass_rate: float
    kl: float
    """Mean over steps, nats a token."""
    allowed: float
    """Staleness, mean over steps."""


class Setting(NamedTuple):
    """Of one run."""

    start: str
    """Folder of the model."""
    side: str
    staleness: int
    seed: int
    steps: int
    learning_rate: float


def main() -> None:
    """Measure, print one table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_start(Path(folder))
        settings = [
            Setting(f"{folder}/start", side, staleness, seed, options.steps, options.learning_rate)
            for staleness in options.staleness
            for side in sides(0)
            for seed in range(1, options.seeds + 1)
        ]
        outcomes = dict(zip(settings, run_all(climb, settings), strict=True))
    report(outcomes, options)


def sides(staleness: int) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Algorithm and off-policy settings by the name of the side."""
    # The learner does not look at `maxStaleness`; 0 is what makes a job take no correction.
    return {
        "uncorrected": ("grpo", {"max_staleness": 0, **NONE}),
        "corrected": ("grpo", CORRECTED),
        "dppoTv": ("dppo_tv", NONE),
        "governed": ("grpo", {"max_staleness": staleness, **CORRECTED, "governor": {}}),
    }


def climb(setting: Setting) -> Outcome:
    """One run."""
    algorithm, off_policy = sides(setting.staleness)[setting.side]
    rlvr = {"algorithm": {algorithm: {}}, "promptsPerStep": 32, "groupSize": 8, "optimizer": {"learningRate": setting.learning_rate}}
    start = Path(setting.start)
    run = Climb(start, make_spec(start, rlvr, off_policy), setting.seed, delay=setting.staleness)
    every = max(1, setting.steps // 5 // EVALUATIONS)
    rates, kls, allowed = [], [], []
    for number, report in enumerate(run.steps(setting.steps), 1):
        allowed.append(min(setting.staleness, run.allowed))
        if report.tokens is not None:
            kls.append(report.tokens.mismatch_k3)
        left = setting.steps - number
        if left < every * EVALUATIONS and left % every == 0:
            rates.append(run.pass_rate(EVALUATION_SAMPLES))
    return Outcome(statistics.fmean(rates), statistics.fmean(kls or [0.0]), statistics.fmean(allowed))


def report(outcomes: Mapping[Setting, Outcome], options: argparse.Namespace) -> None:
    """Print what came of all runs."""
    title = f"Pass rate after {options.steps} steps, {options.seeds} seeds, mean (lowest), and KL(sampler ‖ policy) in nats a token"
    table = Table(title=title, min_width=110)
    table.add_column("staleness", justify="right")
    for name in sides(0):
        table.add_column(name, justify="right")
    numbers = {}
    for staleness in options.staleness:
        cells = []
        for name in sides(0):
            runs = [found for setting, found in outcomes.items() if (setting.side, setting.staleness) == (name, staleness)]
            rates = [run.pass_rate for run in runs]
            mean, kl = statistics.fmean(rates), statistics.fmean(run.kl for run in runs)
            allowed = f" [{statistics.fmean(run.allowed for run in runs):.1f}]" if name == "governed" else ""
            cells.append(f"{mean:.3f} ({min(rates):.3f})  KL {kl:.3f}{allowed}")
            numbers[f"{name}_{staleness}"] = round(mean, 4)
        table.add_row(str(staleness), *cells)
    Console(width=140).print(table)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
