"""The demo, as `make demo` runs it: how long it takes, what the model learns, and whether it climbs on the next level.

`examples/01-arithmetic.yaml` is run from its start to its report in a folder of its own. Pass rates are those of held-out problems at
temperature 1, and gains are paired by problem: "at least" is the lower bound of the two-sided 95 % interval.

- `pass_rate_before`, `pass_rate_after`, `gain_lower_bound`: the first level, before the first step and after the last.
- `next_before`, `next_after`, `next_gain_lower_bound`: the level that training rises to once the first is solved. The table also shows
  the pass rate in training from the rise to the end.

Not covered: the installation and the making of the model, which are done once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlvr_trainer.metrics import EvaluationResult, PairedDifference, StepMetrics, paired_difference
from rlvr_trainer.metrics_log import read_evaluations, read_steps
from rlvr_trainer.pretrained import write_smollm2
from rlvr_trainer.report.source import open_run

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "01-arithmetic.yaml"
JOB, ENVIRONMENT = "arithmetic", "sums"
"""Names in the example."""
SECONDS_LIMIT = 360.0
GAIN_LIMIT = 0.5
RUN_TIMEOUT_SECONDS = 1800.0


def main() -> None:
    """Run, print one table, and one JSON object as the last line."""
    options = _options()
    write_smollm2(ROOT / "models" / "smollm2-135m-instruct")
    with tempfile.TemporaryDirectory(prefix="rlvr-bench-") as folder:
        runs = options.runs_dir or Path(folder)
        seconds = run_example(runs)
        with open_run(JOB, runs) as source:
            steps, evaluations = read_steps(source.store), read_evaluations(source.store)
    first, last = evaluations[0], evaluations[-1]
    level, following = 0, 1
    gain, next_gain = (paired_difference(first, last, ENVIRONMENT, which) for which in (level, following))
    Console(width=120).print(make_table(seconds, steps, (first, last), (gain, next_gain)))
    numbers = {
        "seconds": seconds,
        "pass_rate_before": pass_rate(first, level),
        "pass_rate_after": pass_rate(last, level),
        "gain_lower_bound": gain.lower,
        "next_before": pass_rate(first, following),
        "next_after": pass_rate(last, following),
        "next_gain_lower_bound": next_gain.lower,
    }
    print(json.dumps({name: round(value, 4) for name, value in numbers.items()}))


def run_example(runs: Path) -> float:
    """Seconds from the command to its end; what it prints goes to stderr."""
    began = time.monotonic()
    command = [sys.executable, "-m", "rlvr_api", "run", str(EXAMPLE), "--runs-dir", str(runs), "--plain"]
    subprocess.run(command, stdout=sys.stderr, check=True, timeout=RUN_TIMEOUT_SECONDS)
    return time.monotonic() - began


def make_table(
    seconds: float,
    steps: list[StepMetrics],
    ends: tuple[EvaluationResult, EvaluationResult],
    gains: tuple[PairedDifference, PairedDifference],
) -> Table:
    """What was measured, with its limits."""
    table = Table(title=f"Demo: SmolLM2-135M, {len(steps)} steps, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f} over 5 minutes")
    for column in ("what", "measured", "limit"):
        table.add_column(column, justify="left" if column == "what" else "right")
    table.add_row("seconds, from the command to the report", f"{seconds:.0f}", f"{SECONDS_LIMIT:.0f}")
    for level, gain in enumerate(gains):
        before, after = (pass_rate(end, level) for end in ends)
        table.add_row(f"level {level}: held-out pass rate before, after", f"{before:.3f}, {after:.3f}", "")
        limit = f"{GAIN_LIMIT} at least" if level == 0 else "above 0"
        table.add_row(f"level {level}: gain, 95 % interval", f"{gain.mean:+.3f} [{gain.lower:+.3f}, {gain.upper:+.3f}]", limit)
    risen = [step.pass_rate or 0.0 for previous, step in pairwise(steps) if previous.levels.get(ENVIRONMENT) == 1]
    third = len(risen) // 3
    if third:
        shown = f"{statistics.fmean(risen[:third]):.3f}, {statistics.fmean(risen[-third:]):.3f}"
        table.add_row(f"level 1: pass rate in training, first and last {third} of {len(risen)} steps", shown, "rises")
    return table


def pass_rate(evaluation: EvaluationResult, level: int) -> float:
    """Of the held-out problems of one level."""
    return next(cell.pass_rate for cell in evaluation.cells if (cell.environment, cell.level) == (ENVIRONMENT, level))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs-dir", type=Path, help="keep the run here, or go on with the one that is there; unset: a temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
