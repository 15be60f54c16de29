"""The operator with 1,000 jobs on pretended nodes, beside what the API server takes on the same machine in the same run.

    children without an operator -> plain applies -> create all jobs -> all Running (settled) -> a minute of rest -> restart, one look at
    each -> one new job a second

- `seconds_to_settle`: from the first job's creation until all run and the queue is empty. Two limits stand beside it. As many plain applies
  as the operator made writes: what the API server takes while nothing follows from them. The children of as many jobs, applied by a client
  that asks nothing and keeps nothing, until all pods run: what they cost whoever applies them, since the cores are shared with the API
  server, the controllers, the scheduler and kwok, which work on the same objects.
- `reconciles_per_second`: looks at settled jobs after a restart of the operator, from its first look to its last.
- `writes_per_minute_at_rest`: mutating requests in a minute after which nothing changes, the Lease aside.
- `event_to_child_p99_seconds`: from the API server's answer to the creation of one more job until a watch shows its first child.

Needs kubectl, KUBECONFIG of a cluster for tests and nodes of kwok with label type=fake (RLVR_NODE may name a command that adds them by
`fake-nodes N`). The learners of pretended pods do not answer: what the operator does with their progress is not covered.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from rlvr_api import names
from rlvr_api.crd import crd_yaml
from rlvr_api.loading import job_from
from rlvr_operator.autoscale import Scale
from rlvr_operator.cluster import Cluster
from rlvr_operator.render import Object, Owner, Site, learner, rollouts, standing, verifiers
from rlvr_operator.render.site import metadata

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

P99_LIMIT_SECONDS = 1.0
RSS_LIMIT_MB = 300
CONCURRENCY = 16
PLAIN_APPLIES = 600
PODS_PER_JOB, PODS_PER_NODE = 3, 500
REST_SECONDS = 60.0
PATIENCE_SECONDS = 1800.0
NAMESPACE, STRAIGHT = "bench-operator", "bench-straight"
SITE = Site(images={})


class Process:
    """The operator as the chart runs it: `python -m rlvr_operator`."""

    def __init__(self, log: Path, port: int) -> None:
        environ = {
            **os.environ,
            "RLVR_WATCH_NAMESPACES": NAMESPACE,
            "RLVR_POD_NAMESPACE": NAMESPACE,
            "RLVR_POD_NAME": "bench",
            "RLVR_HTTP_PORT": str(port),
            "RLVR_LOG_LEVEL": "WARNING",
            **{f"RLVR_{role}_IMAGE": f"example.test/{role.lower()}:1" for role in ("ROLLOUT", "LEARNER", "VERIFIER")},
        }
        self.log, self.url = log, f"http://127.0.0.1:{port}/metrics"
        with log.open("ab") as file:
            self._process = subprocess.Popen([sys.executable, "-m", "rlvr_operator"], env=environ, stdout=file, stderr=file)

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels; empty before it listens."""
        assert self._process.poll() is None, f"the operator ended: {self.log.read_text()[-2000:]}"
        try:
            text = httpx.get(self.url, timeout=10, trust_env=False).text
        except httpx.TransportError:
            return {}
        pairs = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def looks(self) -> float:
        """Reconciles so far."""
        return sum(value for name, value in self.metrics().items() if name.startswith("controller_runtime_reconcile_total"))

    def writes(self) -> float:
        """Mutating requests so far. PUT renews the Lease, and nothing else."""
        counted = self.metrics().items()
        methods = ('method="PATCH"', 'method="POST"', 'method="DELETE"')
        return sum(
            value for name, value in counted if name.startswith("rest_client_requests_total") and any(one in name for one in methods)
        )

    def memory_mb(self, field: str) -> float:
        """`VmRSS` or `VmHWM`."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    def cpu_seconds(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


def main() -> int:
    """Measure, print one table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--more", type=int, default=60, help="jobs that come one a second beside the settled ones")
    options = parser.parse_args()
    if reason := _missing(options.jobs + options.more):
        print(f"error: {reason}", file=sys.stderr)
        return 1
    _install_crd()
    with tempfile.TemporaryDirectory(prefix="rlvr-bench-") as folder, _namespace(NAMESPACE), _proxy() as url:
        asyncio.run(_measure(options.jobs, options.more, url, Path(folder)))
    return 0


async def _straight(cluster: Cluster, jobs: int) -> float:
    """Seconds from the first apply until every pod runs, of the children of as many jobs, by a client that only applies them."""
    from cluster_operator import manifest  # type: ignore[import-not-found]  # from tests/support

    def children(number: int) -> list[Object]:
        job, owner = job_from(manifest(f"straight-{number}", STRAIGHT)), Owner(f"straight-{number}", STRAIGHT, "")
        seal = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata(owner, names.seal_secret_name(owner.name)), "data": {"key": ""}}
        pods = rollouts(job, owner, SITE, "a:1"), verifiers(job, owner, SITE, "a:1", Scale(1, None)), learner(job, owner, SITE, "a:1", 1)
        return [_without_owner(child) for child in (seal, *standing(job, owner, SITE), *pods)]

    async def apply(number: int) -> None:
        for child in children(number):
            await cluster.apply(child)

    with _namespace(STRAIGHT):
        began = time.monotonic()
        await _all([apply(number) for number in range(jobs)])
        while await _running_pods(cluster) < jobs * PODS_PER_JOB:
            assert time.monotonic() - began < PATIENCE_SECONDS, "some pods of children without an operator never run"
            await asyncio.sleep(1)
        seconds = time.monotonic() - began
    _wait(lambda: not _kubectl("get", "namespace", STRAIGHT, "--ignore-not-found"), "the children without an operator are gone", every=5)
    return seconds


def _without_owner(child: Object) -> Object:
    return {**child, "metadata": {name: value for name, value in child["metadata"].items() if name != "ownerReferences"}}


async def _running_pods(cluster: Cluster) -> int:
    return sum([len(page) async for page, _ in cluster.pages("Pod", STRAIGHT, fields="status.phase=Running")])


async def _measure(jobs: int, more: int, url: str, folder: Path) -> None:
    from cluster_operator import manifest
    from commands import free_port  # type: ignore[import-not-found]

    operators = [Process(folder / "log", free_port())]
    operator = operators[0]
    try:
        async with await Cluster.connect() as cluster:
            _wait(lambda: operator.metrics().get('leader_election_master_status{name="rlvr-operator"}') == 1.0, "the operator leads")
            straight = await _straight(cluster, jobs)
            applies = await _plain_applies(cluster)
            began, cpu = time.monotonic(), operator.cpu_seconds()
            await _all([cluster.create(manifest(f"job-{number}", NAMESPACE)) for number in range(jobs)])
            created = time.monotonic() - began
            _wait(
                lambda: _running(operator) == jobs and operator.metrics()["workqueue_depth" + _queue()] == 0, f"{jobs} jobs run", operator
            )
            settled, settling_cpu, writes = time.monotonic() - began, operator.cpu_seconds() - cpu, operator.writes()
            looks = operator.looks()
            at_rest, rest_cpu = await _rest(operator)
            operator.stop()
            operators.append(Process(folder / "log", free_port()))
            operator = operators[1]
            rate = _first_pass(operator, jobs)
            first, learning = await _one_a_second(cluster, url, [manifest(f"late-{number}", NAMESPACE) for number in range(more)])
            memory, peak = operator.memory_mb("VmRSS"), operator.memory_mb("VmHWM")
    finally:
        for one in operators:
            one.stop()
    table = Table(title=f"Operator: {jobs} jobs of {PODS_PER_JOB} pods, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}")
    for column in ("what", "measured", "limit"):
        table.add_column(column, justify="left" if column == "what" else "right")
    table.add_row("plain applies of ConfigMaps, 16 at a time", f"{applies:.0f}/s", "")
    table.add_row("create all jobs", f"{created:.0f} s", f"{jobs / applies:.0f} s")
    what = f"all jobs Running ({writes / jobs:.1f} writes each)"
    table.add_row(f"{what}, beside plain applies", f"{settled:.0f} s", f"{writes / applies:.0f} s")
    table.add_row("  beside the same children without an operator", f"{settled:.0f} s", f"{straight:.0f} s")
    table.add_row("looks meanwhile", f"{looks / settled:.0f}/s", "")
    table.add_row("processor time of the operator meanwhile", f"{settling_cpu:.0f} s", "")
    table.add_row("looks at settled jobs after a restart", f"{rate:.0f}/s", "")
    table.add_row("writes at rest", f"{at_rest:.1f}/min", "0")
    table.add_row("processor at rest", f"{rest_cpu:.1%} of a core", "")
    table.add_row("memory (peak)", f"{memory:.0f} MB ({peak:.0f})", f"{RSS_LIMIT_MB} MB")
    for what, seconds in (("first child", first), ("learner's Job", learning)):
        table.add_row(f"new job to its {what}: median", f"{statistics.median(seconds):.3f} s", "")
        table.add_row(f"new job to its {what}: p99", f"{_p99(seconds):.3f} s", f"{P99_LIMIT_SECONDS} s" if seconds is first else "")
    Console(width=120).print(table)
    numbers = {
        "jobs": jobs, "seconds_to_settle": settled, "seconds_without_operator": straight, "reconciles_per_second": rate,
        "writes_per_minute_at_rest": at_rest, "rss_mb": peak, "event_to_child_p99_seconds": _p99(first), "applies_per_second": applies,
    }  # fmt: skip
    print(json.dumps({name: round(value, 3) for name, value in numbers.items()}))


async def _plain_applies(cluster: Cluster) -> float:
    """Server-side applies of new ConfigMaps a second: what the API server takes while nobody else asks."""

    def plain(number: int) -> dict[str, Any]:
        meta = {"name": f"plain-{number}", "namespace": NAMESPACE}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"job.json": "x" * 2000}}

    await _all([cluster.apply(plain(number)) for number in range(50)])
    began = time.monotonic()
    await _all([cluster.apply(plain(number)) for number in range(50, 50 + PLAIN_APPLIES)])
    return PLAIN_APPLIES / (time.monotonic() - began)


async def _all(requests: list[Any]) -> None:
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one(request: Any) -> None:
        async with slots:
            await request

    await asyncio.gather(*map(one, requests))


async def _rest(operator: Process) -> tuple[float, float]:
    """Writes a minute once nothing changes any more, and the share of a core."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    before = -1.0
    while before != (before := operator.writes()):
        assert time.monotonic() < deadline, "writes never end"
        await asyncio.sleep(5)
    cpu = operator.cpu_seconds()
    await asyncio.sleep(REST_SECONDS)
    return (operator.writes() - before) / REST_SECONDS * 60, (operator.cpu_seconds() - cpu) / REST_SECONDS


def _first_pass(operator: Process, jobs: int) -> float:
    """Looks a second, from the first one on."""
    _wait(lambda: operator.looks() > 0, "a look after the restart", every=0.02)
    began, first = time.monotonic(), operator.looks()
    _wait(lambda: operator.looks() >= jobs, "a look at each job", operator, every=0.1)
    return (operator.looks() - first) / (time.monotonic() - began)


async def _one_a_second(cluster: Cluster, url: str, jobs: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Seconds from the creation of each job until its ConfigMap and its learner's Job are seen."""
    created: dict[str, float] = {}
    seen: dict[str, dict[str, float]] = {"configmaps": {}, "jobs": {}}
    async with httpx.AsyncClient(base_url=url, timeout=None, trust_env=False) as client:
        paths = {"configmaps": "/api/v1", "jobs": "/apis/batch/v1"}
        watches = [asyncio.create_task(_watch(client, root, plural, seen[plural])) for plural, root in paths.items()]
        await asyncio.sleep(2)
        for job in jobs:
            started = time.monotonic()
            await cluster.create(job)
            created[job["metadata"]["name"]] = time.monotonic()
            await asyncio.sleep(max(0.0, 1.0 - (time.monotonic() - started)))
        deadline = time.monotonic() + 60
        while any(len(names_seen.keys() & created.keys()) < len(jobs) for names_seen in seen.values()):
            assert time.monotonic() < deadline, "some new jobs have no children after a minute"
            await asyncio.sleep(0.1)
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
    first, learner = ([max(0.0, found[name] - at) for name, at in created.items()] for found in seen.values())
    return first, learner


async def _watch(client: httpx.AsyncClient, root: str, plural: str, seen: dict[str, float]) -> None:
    """Note when the first object of each job is seen."""
    query = {"watch": "1", "labelSelector": names.LABEL_JOB, "timeoutSeconds": "600", "resourceVersion": "0"}
    async with client.stream("GET", f"{root}/namespaces/{NAMESPACE}/{plural}", params=query) as answer:
        async for line in answer.aiter_lines():
            seen.setdefault(json.loads(line)["object"]["metadata"]["labels"][names.LABEL_JOB], time.monotonic())


def _running(operator: Process) -> float:
    return operator.metrics().get(f'rlvr_jobs{{namespace="{NAMESPACE}",phase="Running"}}', 0.0)


def _queue() -> str:
    return '{name="rlvrjob"}'


def _p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def _wait(condition: Callable[[], bool], what: str, operator: Process | None = None, every: float = 1.0) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    told = 0.0
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:.0f} s: {what}"
        if operator is not None and time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"waits until {what}: {_running(operator):.0f} run, {operator.looks():.0f} looks", file=sys.stderr, flush=True)
        time.sleep(every)


def _missing(jobs: int) -> str:
    """What keeps it from running here; empty if nothing does."""
    if not os.environ.get("KUBECONFIG"):
        return "needs kubectl on PATH and KUBECONFIG of a cluster for tests"
    wanted = -(-jobs * PODS_PER_JOB // PODS_PER_NODE) + 2
    have = len(_kubectl("get", "nodes", "-l", "type=fake", "-o", "name").split())
    if have < wanted and os.environ.get("RLVR_NODE"):
        subprocess.run([os.environ["RLVR_NODE"], "fake-nodes", str(wanted)], check=True, timeout=120)
    elif have < wanted:
        return f"needs {wanted} nodes of kwok with label type=fake, and there are {have}: `$RLVR_NODE fake-nodes {wanted}`"
    return ""


def _kubectl(*arguments: str) -> str:
    return subprocess.run(["kubectl", *arguments], capture_output=True, text=True, timeout=120, check=True).stdout


def _install_crd() -> None:
    command = ["kubectl", "apply", "--server-side", "--force-conflicts", "-f", "-"]
    subprocess.run(command, input=crd_yaml(), text=True, timeout=60, check=True, stdout=subprocess.DEVNULL)
    _kubectl("wait", "--for=condition=Established", f"crd/{names.PLURAL}.{names.GROUP}", "--timeout=30s")


@contextmanager
def _namespace(name: str) -> Iterator[None]:
    _kubectl("create", "namespace", name)
    try:
        yield
    finally:
        _kubectl("delete", "namespace", name, "--wait=false")


@contextmanager
def _proxy() -> Iterator[str]:
    with subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        yield f"http://{proxy.stdout.readline().split()[-1]}"
        proxy.terminate()


if __name__ == "__main__":
    sys.exit(main())
