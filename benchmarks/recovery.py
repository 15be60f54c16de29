"""Recovery: a training job on a cluster, and the seconds until it goes on after each of its parts is killed.

One job with two engines trains all the while. Each part dies several times; the figure is the median of the rounds, from SIGKILL until two
more optimizer steps are finished:

- `engine`: one of two engines; the other one takes its prompts over. `engine_back`: until the killed one serves again, loaded and probed.
- `learner`: its processes; the next attempt starts from the last checkpoint, with engines that stayed.
- `verifier`, `operator`: their processes.
- `store`: the S3 server is taken away for 20 seconds; counted from its return.

Every death is the first one of its pod: the kubelet waits before it starts a container again, twice as long each time, and 10 seconds the
second time. So another pod takes the place of one that has died, before the next part does.

Needs what `tests/cluster/training` needs: kubectl, helm, KUBECONFIG of a cluster of which this machine is the node, and the images on it.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

LIMITS = {"engine": 5.0, "engine_back": 90.0, "learner": 60.0, "verifier": 15.0, "operator": 15.0, "store": 15.0}
"""Seconds, on two cores, where an engine needs a minute to start."""
OUTAGE_SECONDS = 20.0
PATIENCE_SECONDS = 420


def main() -> int:
    """Measure, print one table, and one JSON object as the last line."""
    import training_cluster as world  # type: ignore[import-not-found]  # from tests/support

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="deaths of each part")
    options = parser.parse_args()
    if reason := world.missing():
        print(f"error: {reason}", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory(prefix="rlvr-bench-") as folder,
        world.open_namespaces(1) as namespaces,
        world.open_store(Path(folder)) as store,
        world.open_operator(namespaces) as operator,
    ):
        job = world.start_long_job(namespaces[0], store)
        seconds = {part: [] for part in LIMITS}  # type: dict[str, list[float]]
        for number in range(options.rounds):
            for part, kill in deaths(job, operator, store).items():
                measure(job, part, kill, seconds)
                print(f"round {number + 1}: {part} {seconds[part][-1]:.1f} s", file=sys.stderr, flush=True)
                renew(job, operator, part)
        report(seconds)
    return 0


def deaths(job: Any, operator: Any, store: Any) -> dict[str, Callable[[], None]]:
    """How each part dies."""

    def take_store_away() -> None:
        store.scale(0)
        time.sleep(OUTAGE_SECONDS)
        store.scale(1)
        job.wait(lambda _: store.is_up(), PATIENCE_SECONDS, "the store is back")

    return {
        "engine": lambda: job.kill("rollout", "-1"),
        "verifier": lambda: job.kill("verifier"),
        "operator": operator.kill,
        "store": take_store_away,
        "learner": lambda: job.kill("learner"),
    }


def measure(job: Any, part: str, kill: Callable[[], None], seconds: dict[str, list[float]]) -> None:
    """One death: seconds until steps go on, and for an engine until it is back."""
    attempt = job.status["executionAttempt"]
    kill()
    started = time.monotonic()
    if part == "learner":
        job.wait(lambda job: job.status["executionAttempt"] > attempt, PATIENCE_SECONDS, "the next attempt")
    job.steps_go_on(PATIENCE_SECONDS)
    seconds[part].append(time.monotonic() - started)
    wait_until_both_serve(job)
    if part == "engine":
        seconds["engine_back"].append(time.monotonic() - started)


def wait_until_both_serve(job: Any) -> None:
    """Both engines have the current weights."""
    job.wait(lambda job: set(job.engines().values()) == {"clean"} and len(job.engines()) == 2, PATIENCE_SECONDS, "both engines serve")


def renew(job: Any, operator: Any, part: str) -> None:
    """Have another pod take the place of one whose process was killed."""
    match part:
        case "engine":
            job.replace("rollout", "-1")
        case "verifier":
            job.replace("verifier")
        case "operator":
            operator.replace()
    wait_until_both_serve(job)


def report(seconds: dict[str, list[float]]) -> None:
    """Print the table and the last line."""
    table = Table("killed", "median s", "worst s", "limit s", title="Seconds until a training job goes on")
    for part, limit in LIMITS.items():
        table.add_row(part, f"{statistics.median(seconds[part]):.1f}", f"{max(seconds[part]):.1f}", f"{limit:.0f}")
    Console(width=100).print(table)
    print(json.dumps({part: round(statistics.median(seconds[part]), 2) for part in LIMITS}))


if __name__ == "__main__":
    sys.exit(main())
