"""Verifiers: verdicts of a real service over HTTP, in batches, for each second of processor time of the service and all its processes.

The service has one worker and one slot; requests are made beforehand, and come from this process over one connection, each answered before
the next. Processor time is that of the service, its workers, its zygotes and what they forked, so other work on the machine counts for
nothing; verdicts by the clock are beside it. Every completion is another one, so no verdict is remembered. Medians of rounds.

- `fast_per_second_core`: sums, judged in the service's event loop.
- `math_verify_per_second_core`: answers to a dataset of mathematics that need math-verify (another order, another notation), as a group of
  samples gives them: GROUP completions of one problem with DISTINCT answers.
- `sandbox_per_second_core`, `sandbox_p50_ms`: a function on eight inputs, in a warm slot; the median is of the service's own `seconds`.
- `c`, `javascript`: programs on one test; each C program is compiled, each Node is started. No limits; left out without their tools.
- `p99_ms_at_70_percent`: single functions at random times, at 70 % of what the same requests reach one after the other; from the request to
  its answer, without the `seconds` of scoring. Waiting for the slot is part of it.

A line shows what one fork of a Python with the zygote's modules costs, which ends at once: the least that a fork for each item can cost on
this machine at this time. The limits were set on one whose forks cost 1.6 ms by the clock.

Not covered: several workers, TLS, a network.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.table import Table

import rlvr_verifier
from rlvr_api.process import Variable
from rlvr_api.spec import RLVRJob

LIMITS = {
    "fast_per_second_core": 10_000.0, "math_verify_per_second_core": 700.0, "sandbox_per_second_core": 400.0, "sandbox_p50_ms": 2.5,
    "p99_ms_at_70_percent": 50.0,
}  # fmt: skip
START_SECONDS = 60.0
GROUP, DISTINCT = 16, 4
"""Completions of one problem, and different answers among them."""
FUNCTION = "def f(xs):\n    total = 0\n    for x in xs:\n        total += x\n    return total"
PROGRAMS = {
    "c": '#include <stdio.h>\nint main(void) { long n, s = 0; while (scanf("%ld", &n) == 1) s += n; printf("%ld\\n", s); }',
    "javascript": "console.log(require('fs').readFileSync(0, 'utf8').split('\\n').reduce((a, b) => a + Number(b), 0));",
}
SYMBOLIC = (
    ("x^2-{n}", ("(x-\\sqrt{{{n}}})(x+\\sqrt{{{n}}})", "-{n}+x^2", "x^2-{m}", "x^{{2}} - {n}")),
    ("{n}x+1", ("1+{n}x", "x \\cdot {n}+1", "{m}x+1", "1 + {n} x")),
    ("\\sqrt{{{n}}}", ("{n}^{{1/2}}", "\\sqrt{{{m}}}", "\\sqrt {n}", "2\\sqrt{{{n}}}")),
    ("({n},{m})", ("( {m}, {n} )", "({n}, {m}.0)", "({m},{m})", "({n}.0,{m})")),
    ("\\frac{{{n}}}{{x}}", ("{n}/x", "\\dfrac{{{m}}}{{x}}", "{n}x^{{-1}}", "\\frac{{x}}{{{n}}}")),
)
"""Gold answers, and answers that are neither equal to the letter nor plain numbers."""


FORKS = """
import os, resource, sys
sys.path.insert(0, sys.argv[1])
from rlvr_verifier.sandbox import zygote
for name in zygote.MODULES: __import__(name)
for _ in range(300):
    if (child := os.fork()) == 0: os._exit(0)
    os.waitpid(child, 0)
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print((used[1].ru_utime + used[1].ru_stime) / 300)
"""


@dataclass(frozen=True)
class Sample:
    """What one request cost, and what the service says of it."""

    verdicts: int
    seconds: float
    processor_seconds: float
    scoring: tuple[float, ...]


class Service:
    """A running service, and the processor time of its tree."""

    def __init__(self, process: "subprocess.Popen[bytes]", client: httpx.Client) -> None:
        self._root, self.client = psutil.Process(process.pid), client

    def processor_seconds(self) -> float:
        """Of the service, its live children, and all that they have waited for."""
        total = 0.0
        for process in (self._root, *self.descendants()):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def descendants(self) -> list[psutil.Process]:
        """All processes that it has started, and theirs."""
        return self._root.children(recursive=True)

    def resident_bytes(self) -> int:
        """Memory of all of them; pages that several share count in each."""
        total = 0
        for process in (self._root, *self.descendants()):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def task_key(self, environment: str, seed: int) -> str:
        """The key of a training task."""
        reply = self.client.post("/v1/sample", json={"items": [{"environment": environment, "split": "train", "seed": seed}]})
        return str(reply.raise_for_status().json()["tasks"][0]["taskKey"])

    def score(self, body: bytes) -> tuple[float, list[dict[str, object]]]:
        """Seconds until the answer, and the verdicts."""
        began = time.perf_counter()
        reply = self.client.post("/v1/score", content=body, headers={"content-type": "application/json"})
        seconds = time.perf_counter() - began
        return seconds, reply.raise_for_status().json()["verdicts"]

    def measure(self, bodies: list[bytes], expected: set[str]) -> Sample:
        """All requests, one after the other; no verdict may be of another kind."""
        before, verdicts, seconds = self.processor_seconds(), [], 0.0
        for body in bodies:
            took, some = self.score(body)
            seconds += took
            verdicts += some
        other = {str(verdict["status"]) for verdict in verdicts} - expected
        if other:
            raise SystemExit(f"some verdicts are {other}, not among {expected}: {verdicts[0]}")
        scoring = tuple(float(str(verdict["seconds"])) for verdict in verdicts)
        return Sample(len(verdicts), seconds, self.processor_seconds() - before, scoring)


def main() -> None:
    """Measure, print one table, and one JSON object as the last line."""
    options = _options()
    languages = [name for name, tool in (("c", "gcc"), ("javascript", "node")) if shutil.which(tool)]
    random.seed(0)
    with tempfile.TemporaryDirectory(prefix="rlvr-bench-") as folder, running_service(Path(folder), languages) as service:
        rounds: dict[str, list[Sample]] = {name: [] for name in ("fast", "math numbers", "math-verify", "sandbox", *languages)}
        for number in range(options.rounds + 1):
            rounds["fast"].append(service.measure(fast_bodies(service, number, options.batch), {"pass", "fail"}))
            rounds["math numbers"].append(service.measure(number_bodies(service, number), {"pass", "fail"}))
            rounds["math-verify"].append(service.measure(symbolic_bodies(service, number), {"pass", "fail"}))
            rounds["sandbox"].append(service.measure(function_bodies(service, number, 256, 4), {"pass"}))
            for name in languages:
                rounds[name].append(service.measure([program_body(service, name, number)], {"pass"}))
            print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
        latencies = load(service, options.load_seconds)
    report({name: samples[1:] for name, samples in rounds.items()}, latencies, fork_seconds())


def fork_seconds() -> float:
    """Processor seconds of a child that ends at once, of a process like a zygote."""
    command = [sys.executable, "-s", "-S", "-c", FORKS, str(Path(rlvr_verifier.__file__).parents[1])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


def fast_bodies(service: Service, number: int, batch: int) -> list[bytes]:
    """Eight batches of sums."""
    keys = [service.task_key("sums", seed) for seed in range(32)]
    return [_body("sums", f"f{number}-{part}", keys, [f"that makes {n + batch * part}" for n in range(batch)]) for part in range(8)]


def number_bodies(service: Service, number: int) -> list[bytes]:
    """Plain numbers and fractions: no math-verify, but a worker process."""
    keys = [service.task_key("numbers", seed) for seed in range(32)]
    answers = [rf"So it is \boxed{{{n}}}, in round {number}" for n in range(1024)]
    return [_body("numbers", f"n{number}", keys, answers)]


def symbolic_bodies(service: Service, number: int) -> list[bytes]:
    """Groups of completions to problems with symbolic answers; each round has problems of its own."""
    bodies = []
    for part in range(4):
        keys, answers = [], []
        for problem in range(16):
            seed = (number * 4 + part) * 16 + problem
            keys += [service.task_key("symbols", seed)] * GROUP
            choices = _symbolic(_index_of(service, "symbols", seed))[1]
            answers += [rf"Round {number}, {n}: \boxed{{{choices[n % DISTINCT]}}}" for n in range(GROUP)]
        bodies.append(_body("symbols", f"s{number}-{part}", keys, answers))
    return bodies


def function_bodies(service: Service, number: int, batch: int, parts: int) -> list[bytes]:
    """Batches of right functions, each with a comment of its own."""
    keys = [service.task_key("functions", seed) for seed in range(32)]
    codes = [[f"```python\n# {number} {part} {n}\n{FUNCTION}\n```" for n in range(batch)] for part in range(parts)]
    return [_body("functions", f"c{number}-{part}", keys, some) for part, some in enumerate(codes)]


def program_body(service: Service, language: str, number: int) -> bytes:
    """A batch of right programs, each with a comment of its own."""
    codes = [f"```{language}\n// {number} {n}\n{PROGRAMS[language]}\n```" for n in range(32)]
    return _body(language, f"{language}{number}", [service.task_key(language, 0)], codes)


def _body(environment: str, prefix: str, keys: list[str], completions: list[str]) -> bytes:
    items = [
        {"id": f"{prefix}-{n}", "environment": environment, "taskKey": keys[n % len(keys)], "completion": completion}
        for n, completion in enumerate(completions)
    ]
    return json.dumps({"items": items}).encode()


def _index_of(service: Service, environment: str, seed: int) -> int:
    """Which row of the dataset a seed draws; its prompt begins with the number."""
    reply = service.client.post("/v1/sample", json={"items": [{"environment": environment, "split": "train", "seed": seed}]})
    return int(reply.json()["tasks"][0]["messages"][0]["content"].split()[0])


def _symbolic(index: int) -> tuple[str, tuple[str, ...]]:
    """Gold answer and four others of a row."""
    gold, others = SYMBOLIC[index % len(SYMBOLIC)]
    names = {"n": 2 + index // len(SYMBOLIC), "m": 7 + index}
    return gold.format(**names), tuple(other.format(**names) for other in others)


def load(service: Service, seconds: float) -> list[float]:
    """Milliseconds added to the scoring of single functions, at 70 % of what they reach one after the other."""
    bodies = [function_bodies(service, 10_000 + n, 1, 1)[0] for n in range(64)]
    capacity = len(bodies) / sum(service.score(body)[0] for body in bodies)
    wanted, source, added, lock = 0.7 * capacity, random.Random(1), [], threading.Lock()
    count = int(wanted * seconds)
    key = service.task_key("functions", 0)
    requests = [_body("functions", f"l{n}", [key], [f"```python\n# load {n}\n{FUNCTION}\n```"]) for n in range(count)]

    def ask(body: bytes) -> None:
        took, (verdict,) = service.score(body)
        with lock:
            added.append((took - float(str(verdict["seconds"]))) * 1000)

    with ThreadPoolExecutor(32) as threads:
        due = time.perf_counter()
        for body in requests:
            due += source.expovariate(wanted)
            time.sleep(max(0.0, due - time.perf_counter()))
            threads.submit(ask, body)
    if len(added) != count:
        raise SystemExit(f"{count - len(added)} of {count} requests failed")
    return added


@contextmanager
def running_service(folder: Path, languages: list[str]) -> Iterator[Service]:
    """The service of a job with four environments, and one for each language."""
    rows: dict[str, list[dict[str, object]]] = {
        "numbers": [{"problem": f"{n} ?", "answer": str(n % 7)} for n in range(400)],
        "symbols": [{"problem": f"{n} ?", "answer": _symbolic(n)[0]} for n in range(4000)],
        "functions": [
            {"prompt": f"{n} ?", "entryPoint": "f", "hidden": [[list(range(k * n % 13))] for k in range(8)], "reference": FUNCTION}
            for n in range(40)
        ],
    }
    for name, some in rows.items():
        (folder / name).write_text("\n".join(json.dumps(row) for row in some))
    environments: list[dict[str, object]] = [
        {"name": "sums", "arithmetic": {}},
        {"name": "numbers", "math": {"dataset": f"file://{folder}/numbers"}},
        {"name": "symbols", "math": {"dataset": f"file://{folder}/symbols"}},
        {"name": "functions", "pythonFunctions": {"dataset": f"file://{folder}/functions"}},
    ]
    (folder / "programs").write_text(json.dumps({"prompt": "Sum.", "tests": [{"input": "1\n2\n3\n", "output": "6"}]}))
    environments += [{"name": name, "stdio": {"dataset": f"file://{folder}/programs", "language": name}} for name in languages]
    spec = {
        "model": {"uri": "file:///none"},
        "environments": environments,
        "stages": [{"name": "climb", "rlvr": {"steps": 1}}],
        "integrity": {"allowUncertified": True},
    }
    job = RLVRJob.model_validate({"apiVersion": "rlvr.dev/v1alpha1", "kind": "RLVRJob", "metadata": {"name": "bench"}, "spec": spec})
    (folder / "job.json").write_text(job.model_dump_json(by_alias=True))
    port = free_port()
    env = {**os.environ, Variable.JOB_FILE: str(folder / "job.json"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "rlvr_verifier", "--port", str(port)], env=env, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            _wait_until_ready(client)
            yield Service(process, client)
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.get("/readyz").raise_for_status()
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def report(rounds: dict[str, list[Sample]], latencies: list[float], fork: float) -> None:
    """Verdicts a second, by processor time and by the clock, and the limits."""
    table = Table(title=f"Verdicts over HTTP, one worker, medians of {len(rounds['fast'])} rounds, {os.cpu_count()} busy cores")
    for column in ("what", "a second and core", "ms of processor", "a second by the clock", "p50 of scoring, ms", "limit"):
        table.add_column(column, justify="left" if column == "what" else "right")
    keys = {"fast": "fast_per_second_core", "math-verify": "math_verify_per_second_core", "sandbox": "sandbox_per_second_core"}
    numbers: dict[str, float] = {}
    for name, samples in rounds.items():
        rate = statistics.median(sample.verdicts / sample.processor_seconds for sample in samples)
        clock = statistics.median(sample.verdicts / sample.seconds for sample in samples)
        p50 = 1000 * statistics.median(value for sample in samples for value in sample.scoring)
        key = keys.get(name)
        limit = "" if key is None else f"{LIMITS[key]:,.0f}"
        if key is not None:
            numbers[key] = rate
        if name == "sandbox":
            numbers["sandbox_p50_ms"] = p50
            limit += f", {LIMITS['sandbox_p50_ms']} ms"
        table.add_row(name, f"{rate:,.0f}", f"{1000 / rate:.3f}", f"{clock:,.0f}", f"{p50:.3f}", limit)
    table.add_row("a fork that ends at once", "", f"{fork * 1000:.3f}", "", "", "")
    numbers["p99_ms_at_70_percent"] = statistics.quantiles(latencies, n=100)[98]
    table.add_row(
        f"added at 70 % load, {len(latencies)} requests: p50 {statistics.median(latencies):.1f} ms, p99 "
        f"{numbers['p99_ms_at_70_percent']:.1f} ms", "", "", "", "", f"{LIMITS['p99_ms_at_70_percent']:.0f} ms"
    )  # fmt: skip
    Console(width=130).print(table)
    print(json.dumps({name: round(value, 2) for name, value in numbers.items()}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up")
    parser.add_argument("--batch", type=int, default=1024, help="items in a request of sums")
    parser.add_argument("--load-seconds", type=float, default=10.0, help="how long single functions are sent at 70 % load")
    return parser.parse_args()


if __name__ == "__main__":
    main()
