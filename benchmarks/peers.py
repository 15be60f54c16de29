"""This project beside TRL's GRPOTrainer: the same model, tasks, lengths, batch, learning rate and two cores, one after the other.

SmolLM2-135M-Instruct learns sums of two digits, as in the demo, for the same number of optimizer steps with 64 samples each, with several
seeds. Ours is a job through all of its processes: vLLM, verifier service, learner, storage of every rollout. TRL (`_trl.py`) samples with
transformers, batched, in its own process, for on a CPU it cannot bring weights to vLLM; its reward function is our environment's.

- samples a second: from the end of the first step to the end of the last, so that neither start nor evaluation counts.
- pass rate: stage `evaluate` on the same held-out problems, temperature 1, for both final models; the difference is paired by problem.

Not covered: GPUs, where TRL has vLLM as well; longer completions, where batching matters more.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks._local_job import ENVIRONMENT, MAX_TOKENS, ROOT, TIMEOUT_SECONDS, make_sums_job, run_job
from rlvr_api.spec import RLVRJob
from rlvr_trainer.intervals import t_quantile
from rlvr_trainer.metrics import EvaluationResult, paired_difference
from rlvr_trainer.metrics_log import read_evaluations, read_steps
from rlvr_trainer.pretrained import write_smollm2
from rlvr_verifier.environments.arithmetic import ArithmeticEnvironment

RUNNER = Path(__file__).with_name("_trl.py")
PACKAGES = (
    "trl==1.16.0",
    "datasets==5.2.0",
    "multiprocess==0.70.19",
    "dill==0.4.1",
    "xxhash==4.1.0",
    "pandas==3.1.1",
    "python-dateutil==4.0.0",
    "six==1.17.0",
)
RATIO_LIMIT = 3.0
GROUPS, GROUP_SIZE, LEARNING_RATE = 8, 8, 1.5e-5
EVALUATE = {"name": "measure", "evaluate": {"k": [1], "samplesPerTask": 8}}


class Outcome(NamedTuple):
    """Of one run."""

    samples_per_second: float
    evaluation: EvaluationResult

    @property
    def pass_rate(self) -> float:
        """On held-out problems."""
        return self.evaluation.pass_rate() or 0.0


def main() -> None:
    """Run both with each seed, print one table, and one JSON object as the last line."""
    options = _options()
    model = ROOT / "models" / "smollm2-135m-instruct"
    write_smollm2(model)
    with tempfile.TemporaryDirectory(prefix="rlvr-bench-") as name:
        folder = Path(name)
        if (site := install(folder / "site")) is None:
            print("{}")
            return
        ours, theirs = [], []
        for seed in range(1, options.seeds + 1):
            ours.append(run_ours(model, folder / f"ours-{seed}", seed, options.steps))
            theirs.append(run_trl(model, folder / f"trl-{seed}", seed, options.steps, site))
    ratios = [one.samples_per_second / other.samples_per_second for one, other in zip(ours, theirs, strict=True)]
    gains = [paired_difference(other.evaluation, one.evaluation).mean for one, other in zip(ours, theirs, strict=True)]
    margin = t_quantile(0.975, len(gains) - 1) * statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    Console(width=120).print(make_table(ours, theirs, ratios, gains, margin, options.steps))
    numbers = {
        "samples_per_second_ratio": statistics.median(ratios),
        "pass_rate": statistics.fmean(one.pass_rate for one in ours),
        "pass_rate_trl": statistics.fmean(one.pass_rate for one in theirs),
        "pass_rate_difference": statistics.fmean(gains),
        "difference_margin": margin,
    }
    print(json.dumps({name: round(value, 4) for name, value in numbers.items()}))


def install(folder: Path) -> Path | None:
    """TRL and what it needs beside this environment, in a folder; None, and a line that says so, when no registry has it."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    if subprocess.run(command, check=False, stdout=sys.stderr, timeout=600).returncode != 0:
        print("TRL could not be installed: there is nothing to compare with", file=sys.stderr)
        return None
    return folder


def run_ours(model: Path, runs: Path, seed: int, steps: int) -> Outcome:
    """A job of training and measuring."""
    climb = {
        "algorithm": {"grpo": {}}, "steps": steps, "promptsPerStep": GROUPS, "groupSize": GROUP_SIZE,
        "optimizer": {"learningRate": LEARNING_RATE},
    }  # fmt: skip
    with run_job(_job(model, seed, [{"name": "climb", "rlvr": climb}, EVALUATE]), runs) as source:
        taken = [step for step in read_steps(source.store) if step.stage == "climb"]
        evaluation = next(found for found in read_evaluations(source.store) if found.stage == "measure")
    seconds = (taken[-1].time - taken[0].time).total_seconds()
    return Outcome(sum(step.rollouts for step in taken[1:]) / seconds, evaluation)


def run_trl(model: Path, folder: Path, seed: int, steps: int, site: Path) -> Outcome:
    """TRL's trainer in a process of its own, and then a job that measures its model."""
    folder.mkdir()
    environment = ArithmeticEnvironment(_job(model, seed, [EVALUATE]).spec.environments[0])
    tasks = [environment.sample("train", seed * 100_000 + number, 0) for number in range(GROUPS * steps)]
    settings = {
        "model": str(model), "output": str(folder / "model"), "seed": seed, "steps": steps, "groups": GROUPS, "group_size": GROUP_SIZE,
        "max_tokens": MAX_TOKENS, "learning_rate": LEARNING_RATE, "environment": ENVIRONMENT,
        "tasks": [{"prompt": [one.model_dump() for one in task.messages], "payload": json.dumps(dict(task.payload))} for task in tasks],
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(RUNNER), str(site)],
        input=json.dumps(settings),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=TIMEOUT_SECONDS,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    with run_job(_job(folder / "model", seed, [EVALUATE]), folder / "runs") as source:
        (evaluation,) = read_evaluations(source.store)
    return Outcome(found["samples"] / found["seconds"], evaluation)


def _job(model: Path, seed: int, stages: Sequence[dict[str, Any]]) -> RLVRJob:
    return make_sums_job("peers", model, stages, {}, seed=seed, offPolicy={"maxStaleness": 1})


def make_table(
    ours: Sequence[Outcome], theirs: Sequence[Outcome], ratios: Sequence[float], gains: Sequence[float], margin: float, steps: int
) -> Table:
    """What was measured, with its limits."""
    cores, samples = os.cpu_count(), GROUPS * GROUP_SIZE
    table = Table(
        title=f"Beside TRL's GRPOTrainer (transformers generation): {steps} steps of {samples} samples, {len(ours)} seeds, {cores} cores"
    )
    for column in ("what", "here", "TRL", "limit"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rates = [statistics.median(one.samples_per_second for one in side) for side in (ours, theirs)]
    table.add_row("samples a second, median", f"{rates[0]:.1f}", f"{rates[1]:.1f}", "")
    table.add_row("ratio, median of pairs", f"{statistics.median(ratios):.2f}", "", f"{RATIO_LIMIT:.0f} at least")
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True), 1):
        table.add_row(f"seed {number}: held-out pass rate after as many samples", f"{one.pass_rate:.3f}", f"{other.pass_rate:.3f}", "")
    mean = statistics.fmean(gains)
    table.add_row("difference, 95 % interval over seeds", f"{mean:+.3f} [{mean - margin:+.3f}, {mean + margin:+.3f}]", "", "not below 0")
    return table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of a run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
