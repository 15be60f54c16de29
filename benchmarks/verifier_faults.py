"""Verifier faults: what becomes of verdicts while requests fail, processes are killed and memory is short, and whether memory stays flat.

Faults: the trainer's client asks a real service for completions of which it is known whether they must be paid. SHARE of its requests fail
with a 5xx, half of them before they reach the service and half after they were judged; KILLS_PER_SECOND random processes of the service's
tree, a worker, the process that workers are forked from, a slot or an item in it, are killed with SIGKILL; some functions take more memory
than the control group of the slots has, where the kernel kills them (needs root; left out otherwise, and said).

- `rewards_from_faults`: right completions that got a verdict and were not paid, and wrong ones that were. The limit is 0.
- `masked`: completions that stay without a verdict after the client's attempts; the trainer leaves them out.

Memory: the same service judges VERDICTS completions without faults; the resident memory of its whole tree, medians of the last quarter over
those of the second.

Not covered: a service that is replaced as a whole, which `recovery` measures; the loss of a node.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import verifiers as bench
from rlvr_api.wire import ScoreItem, TaskRequest, VerdictStatus
from rlvr_trainer.collector.verifiers import VerifierClient

SHARE, KILLS_PER_SECOND = 0.15, 2.0
MEMORY_GROWTH_LIMIT = 1.03
GROUP = 8
"""Completions of one task in a request."""
PRESSURE_BYTES = 192 << 20
"""Memory of all slots together, while some functions take twice as much."""
RIGHT, WRONG = (0, 0, 0, 1, 0), (2, 2, 1, 2, 3)
"""Of the answers to each row of `bench.SYMBOLIC`."""
GREEDY = "def f(xs):\n    keep = bytearray(b'x') * (400 << 20)\n    return sum(xs) + keep.count(0)"
CGROUPS = Path("/sys/fs/cgroup")
MEMORY_FILES = (
    (CGROUPS, "memory.max", "memory.events"),
    (CGROUPS / "memory", "memory.limit_in_bytes", "memory.oom_control"),
)
"""Root of the groups of cgroup v2 and v1; file of the limit, and of the kernel's kills."""

Outcomes = Counter[tuple[bool, str]]
"""How many completions that must, or must not, be paid got which verdict."""


class FailingTransport(httpx.AsyncHTTPTransport):
    """The network, in which a share of the requests ends with a 5xx: before it was sent, or once it was answered."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self.requests = self.failed = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        drawn = self._random.random()
        if drawn < SHARE / 2:
            self.failed += 1
            return httpx.Response(503, request=request)
        response = await super().handle_async_request(request)
        if drawn < SHARE:
            self.failed += 1
            await response.aread()
            return httpx.Response(502, request=request)
        return response


@dataclass(frozen=True)
class Question:
    """Completions of one task, and whether each must be paid."""

    request: TaskRequest
    completions: tuple[tuple[str, bool], ...]


def main() -> None:
    """Measure, print one table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--questions", type=int, default=1_500, help=f"of {GROUP} completions each, under faults")
    parser.add_argument("--verdicts", type=int, default=100_000, help="without faults, for the memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlvr-bench-") as folder, bench.running_service(Path(folder), []) as service:
        growth = watch_memory(service, options.verdicts)
        questions = [make_question(number) for number in range(options.questions)]
        transport = FailingTransport(1)
        with killing(service) as killed, memory_pressure(service) as pressed:
            outcomes = asyncio.run(ask_all(str(service.client.base_url), transport, questions))
    report(outcomes, transport, killed, pressed, growth, options.verdicts)


def make_question(number: int) -> Question:
    """A question of one of the kinds in turn; the seed is the number."""
    kind = ("numbers", "symbols", "functions")[number % 3]
    request = TaskRequest(environment=kind, split="train", seed=number)
    if kind == "functions":
        wrong = bench.FUNCTION.replace("return total", "return total + 1")
        codes = [(bench.FUNCTION, True), (wrong, False), (GREEDY, False) if number % 20 == 2 else (bench.FUNCTION, True)]
        made = [codes[n % 3] for n in range(GROUP)]
        return Question(request, tuple((f"```python\n# {number} {n}\n{code}\n```", paid) for n, (code, paid) in enumerate(made)))
    return Question(request, tuple(("", n % 2 == 0) for n in range(GROUP)))


def answer(kind: str, index: int, is_right: bool, text: str) -> str:
    """A completion of a row of the datasets, which `bench.running_service` writes."""
    if kind == "numbers":
        return rf"{text}: \boxed{{{index % 7 + (0 if is_right else 1)}}}"
    chosen = (RIGHT if is_right else WRONG)[index % len(bench.SYMBOLIC)]
    return rf"{text}: \boxed{{{bench._symbolic(index)[1][chosen]}}}"


async def ask_all(url: str, transport: FailingTransport, questions: list[Question]) -> Outcomes:
    """How often completions that must, and must not, be paid got which verdict."""
    outcomes: Outcomes = Counter()
    places = asyncio.Semaphore(8)
    done = 0
    async with httpx.AsyncClient(transport=transport, timeout=60) as http:
        client = VerifierClient(url, http, 120.0)

        async def ask(number: int, question: Question) -> None:
            nonlocal done
            async with places:
                task = await client.sample(question.request)
                kind, prompt = question.request.environment, task.messages[0].content
                texts = [
                    text or answer(kind, int(prompt.split()[0]), paid, f"{number} {n}")
                    for n, (text, paid) in enumerate(question.completions)
                ]
                items = [
                    ScoreItem(id=f"{number}/{n}", environment=kind, task_key=task.task_key, completion=text) for n, text in enumerate(texts)
                ]
                verdicts = await client.score(items, question.request)
            for (_, paid), verdict in zip(question.completions, verdicts, strict=True):
                outcomes[paid, verdict.status] += 1
            done += 1
            if done % 100 == 0:
                print(f"{done} of {len(questions)} questions under faults", file=sys.stderr, flush=True)

        await asyncio.gather(*(ask(number, question) for number, question in enumerate(questions)))
    return outcomes


@contextlib.contextmanager
def repeating(action: Callable[[], None], pause: Callable[[], float]) -> Iterator[None]:
    """Do something again and again, each time after a pause in seconds, until the end of the block."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(pause()):
            action()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def killing(service: bench.Service) -> Iterator[Counter[str]]:
    """Kill random processes of the service's tree until the end of the block."""
    killed: Counter[str] = Counter()
    source = random.Random(2)

    def kill() -> None:
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            victim = source.choice([one for one in service.descendants() if "resource_tracker" not in " ".join(one.cmdline())])
            name = "slots and items" if is_slot(victim) else "workers and their origin"
            victim.kill()
            killed[name] += 1

    with repeating(kill, lambda: source.expovariate(KILLS_PER_SECOND)):
        yield killed


def is_slot(process: psutil.Process) -> bool:
    """Whether it is a zygote, or an item in one."""
    return "zygote.py" in " ".join(process.cmdline())


@contextlib.contextmanager
def memory_pressure(service: bench.Service) -> Iterator[Counter[str]]:
    """Keep all slots in a control group with little memory; counts what the kernel has killed for it, afterwards."""
    killed: Counter[str] = Counter()
    found = [place for place in MEMORY_FILES if (place[0] / "cgroup.procs").exists()]
    try:
        root, limit, events = found[0]
        group = root / f"rlvr-bench-{os.getpid()}"
        group.mkdir()
        (group / limit).write_text(str(PRESSURE_BYTES))
    except (IndexError, OSError) as error:
        print(f"no memory pressure: {error}", file=sys.stderr)
        yield killed
        return

    def gather() -> None:
        for process in service.descendants():
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                if is_slot(process):
                    (group / "cgroup.procs").write_text(str(process.pid))

    try:
        with repeating(gather, lambda: 0.05):
            yield killed
    finally:
        killed["oom"] = int(dict(line.split() for line in (group / events).read_text().splitlines())["oom_kill"])
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (root / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            group.rmdir()


def watch_memory(service: bench.Service, verdicts: int) -> float:
    """Growth of the tree's resident memory over so many verdicts of all kinds."""
    sizes: list[int] = []
    judged = number = 0
    while judged < verdicts:
        bodies = [
            *bench.fast_bodies(service, 50_000 + number, 256), *bench.number_bodies(service, 50_000 + number),
            bench.symbolic_bodies(service, number % 60)[0], *bench.function_bodies(service, 50_000 + number, 128, 1),
        ]  # fmt: skip
        judged += service.measure(bodies, {"pass", "fail"}).verdicts
        number += 1
        sizes.append(service.resident_bytes())
        print(f"{judged} of {verdicts} verdicts, {sizes[-1] >> 20} MiB", file=sys.stderr, flush=True)
    quarter = max(1, len(sizes) // 4)
    return statistics.median(sizes[-quarter:]) / statistics.median(sizes[quarter : 2 * quarter] or sizes)


def report(
    outcomes: Outcomes,
    transport: FailingTransport,
    killed: Counter[str],
    pressed: Counter[str],
    growth: float,
    verdicts: int,
) -> None:
    """What became of the verdicts, and the limits."""
    masked = sum(count for (_, status), count in outcomes.items() if status == VerdictStatus.INFRA_ERROR)
    unpaid = sum(count for (paid, status), count in outcomes.items() if paid and status not in ("pass", "infra_error"))
    overpaid = outcomes[False, "pass"]
    table = Table("what", "count", "limit", title=f"{sum(outcomes.values()):,} completions judged under faults, {verdicts:,} without")
    table.add_row("requests, failed with a 5xx", f"{transport.requests:,}, {transport.failed:,}", "")
    for name, count in sorted(killed.items()):
        table.add_row(f"killed: {name}", f"{count:,}", "")
    table.add_row("items that the kernel killed for their memory", f"{pressed['oom']:,}" if pressed else "not tried", "")
    table.add_row("right and paid; wrong and not paid", f"{outcomes[True, 'pass']:,}; {sum_unpaid(outcomes):,}", "")
    table.add_row("without a verdict, masked", f"{masked:,}", "")
    table.add_row("right and not paid; wrong and paid", f"{unpaid:,}; {overpaid:,}", "0; 0")
    table.add_row(f"memory at the end of {verdicts:,} verdicts, over the second quarter", f"{growth:.3f}", f"{MEMORY_GROWTH_LIMIT}")
    Console(width=130).print(table)
    numbers = {"rewards_from_faults": unpaid + overpaid, "masked": masked, "memory_growth": round(growth, 4)}
    print(json.dumps(numbers))


def sum_unpaid(outcomes: Outcomes) -> int:
    """Wrong completions with a verdict that is not pass."""
    return sum(count for (paid, status), count in outcomes.items() if not paid and status not in ("pass", "infra_error"))


if __name__ == "__main__":
    main()
