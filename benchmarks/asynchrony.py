"""Asynchronous collection beside synchronous, with generation of ragged length: samples a second of the same job.

SmolLM2-135M-Instruct learns sums, as in the demo, through all of a job's processes. `maxStaleness: 0` is synchronous: each step waits for
the last sample of its batch, made by the newest weights; with more, the engines go on while the learner trains. A completion on two cores
is short and its time even, so the engine's answers are made late (`_ragged_latency.py`): a request waits for the longest of its samples,
each exponential with the given mean. Both sides have the same distribution of delays.

Samples are counted from the end of the first step to the end of the last one before which as much as `maxStaleness` allows was still to be
collected: the queue between engines and learner is as full at the end as at the beginning.

Not covered: what it does to learning (`staleness`), and several engines.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks._local_job import ROOT, make_sums_job, run_job
from benchmarks._ragged_latency import MEAN_SECONDS_VARIABLE, RaggedLatency
from rlvr_api.spec import RLVRJob
from rlvr_trainer.metrics_log import read_steps
from rlvr_trainer.pretrained import write_smollm2

LIMIT = 1.3
GROUPS, GROUP_SIZE = 8, 8


class Outcome(NamedTuple):
    """Of one run."""

    samples_per_second: float
    staleness: float
    """Optimizer steps, mean over tokens."""
    wait_share: float
    """Of the learner's time."""


def main() -> None:
    """Run both ways with and without delays, print one table, and one JSON object as the last line."""
    options = _options()
    model = ROOT / "models" / "smollm2-135m-instruct"
    write_smollm2(model)
    table = Table(
        title=f"Asynchronous beside synchronous: {options.steps} steps of {GROUPS} x {GROUP_SIZE} samples, {os.cpu_count()} cores"
    )
    for column in ("a sample's delay, mean", "maxStaleness", "samples a second", "learner waits", "staleness", "over synchronous", "limit"):
        table.add_column(column, justify="right")
    numbers = {}
    with tempfile.TemporaryDirectory(prefix="rlvr-bench-") as name:
        for delay in (0.0, options.delay):
            rates: list[float] = []
            for staleness in (0, *options.staleness):
                outcome = measure(make_job(model, staleness, options.steps, delay), Path(name) / f"{delay}-{staleness}")
                rates.append(outcome.samples_per_second)
                ratio = rates[-1] / rates[0]
                limit = f"{LIMIT} at least" if staleness and delay else ""
                table.add_row(
                    f"{delay:.1f} s", str(staleness), f"{rates[-1]:.2f}", f"{outcome.wait_share:.0%}", f"{outcome.staleness:.2f}",
                    f"{ratio:.2f}", limit,
                )  # fmt: skip
                numbers[f"ratio_delay_{delay:g}_staleness_{staleness}"] = round(ratio, 3)
    Console(width=120).print(table)
    print(json.dumps(numbers))


def make_job(model: Path, staleness: int, steps: int, delay: float) -> RLVRJob:
    """The job of one run."""
    climb = {
        "algorithm": {"grpo": {}},
        "steps": steps,
        "promptsPerStep": GROUPS,
        "groupSize": GROUP_SIZE,
        "optimizer": {"learningRate": 1.5e-5},
    }
    return make_sums_job(
        "asynchrony", model, [{"name": "climb", "rlvr": climb}],
        {"env": {MEAN_SECONDS_VARIABLE: str(delay)}, "engineArgs": {"middleware": f"{RaggedLatency.__module__}.RaggedLatency"}},
        offPolicy={"maxStaleness": staleness, "correction": {"tokenTruncated": {}}},
        evaluation={"tasksPerEnvironment": 1, "samplesPerTask": 2},
    )  # fmt: skip


def measure(job: RLVRJob, runs: Path) -> Outcome:
    """Run a job, and read what its steps say."""
    with run_job(job, runs) as source:
        taken = [*read_steps(source.store)]
    last = len(taken) - job.spec.off_policy.max_staleness
    counted = taken[1:last]
    seconds = (counted[-1].time - taken[0].time).total_seconds()
    return Outcome(
        sum(step.rollouts for step in counted) / seconds,
        statistics.fmean(step.staleness_mean or 0.0 for step in counted),
        sum(step.phase_seconds["wait"] for step in counted) / seconds,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of a run")
    parser.add_argument("--delay", type=float, default=1.0, help="mean of one sample's delay, seconds")
    parser.add_argument("--staleness", type=int, nargs="+", default=[2], help="values of maxStaleness beside 0")
    return parser.parse_args()


if __name__ == "__main__":
    main()
