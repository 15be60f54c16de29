"""The operator in a process of its own, with an identity and rights of its own, and with faults where a test wants them.

    operators = Operators(api, namespace, folder);  operators.start(Fault("job-3", write=3)) -> Running(process, log)

Processes are forked from a server that has everything imported, so that a start costs a tenth of a second and a kill is a real one.
"""

import json
import multiprocessing
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
from commands import free_port, wait_for
from kubernetes.aio.config import kube_config

from rlvr_api import names
from rlvr_operator.kinds import CHILD_SELECTOR, KINDS, WATCHED

SUPPORT = Path(__file__).parent
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["rlvr_operator.__main__"])
FAKE = {
    "nodeSelector": {"type": "fake"},
    "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists", "effect": "NoSchedule"}],
}
"""A place on pretended nodes, where pods run at once."""


def manifest(name: str, namespace: str, *, fake: bool = True, **spec: Any) -> dict[str, Any]:
    """The smallest job that a cluster runs; `spec` replaces sections."""
    place = {"pod": FAKE} if fake else {}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"uri": "s3://models/tiny", "maxModelLen": 64},
            "storage": {"uri": "s3://runs", "endpoint": "http://store:8333", "credentialsSecret": {"name": "s3"}},
            "environments": [{"name": "sums", "arithmetic": {}}],
            "sampling": {"maxTokens": 8},
            "stages": [{"name": "climb", "rlvr": {"steps": 20}}],
            **{section: {**place, **spec.pop(section, {})} for section in ("rollouts", "learner", "verifiers")},
            **spec,
        },
    }


class Api:
    """The API server as an administrator sees it, through `kubectl proxy`."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json", expect: tuple[int, ...] = ()) -> Any:
        """One request; any answer above 299 that is not in `expect` fails the test."""
        answer = self.client.request(method, path, content=None if body is None else json.dumps(body), headers={"Content-Type": kind})
        assert answer.status_code < 300 or answer.status_code in expect, f"{method} {path}: {answer.status_code}: {answer.text[:1000]}"
        return answer.json() if answer.status_code < 300 else None

    def get(self, kind: str, namespace: str, name: str) -> Any:
        """One object; None if there is none."""
        return self.call("GET", KINDS[kind].path(namespace, name), expect=(404,))

    def items(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """All objects of a kind."""
        query = f"?labelSelector={selector}" if selector else ""
        return list(self.call("GET", KINDS[kind].path(namespace) + query)["items"])

    def create(self, item: dict[str, Any]) -> dict[str, Any]:
        """Create an object of a kind that the operator knows."""
        return dict(self.call("POST", KINDS[item["kind"]].path(item["metadata"]["namespace"]), item))

    def delete(self, kind: str, namespace: str, name: str, grace_seconds: int | None = None) -> None:
        """Delete an object; nothing happens if it is gone."""
        body = {} if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        self.call("DELETE", KINDS[kind].path(namespace, name), {**body, "propagationPolicy": "Background"}, expect=(404,))

    def patch(self, kind: str, namespace: str, name: str, patch: Any) -> dict[str, Any]:
        """Merge-patch an object."""
        return dict(self.call("PATCH", KINDS[kind].path(namespace, name), patch, "application/merge-patch+json"))

    def status(self, namespace: str, job: str) -> dict[str, Any]:
        """Status of a job; empty before the operator has looked at it."""
        found = self.get(names.KIND, namespace, job)
        return dict((found or {}).get("status", {}))

    def condition(self, namespace: str, job: str, kind: str) -> dict[str, Any]:
        """One condition of a job; empty if it is not there."""
        conditions = self.status(namespace, job).get("conditions", ())
        return next((dict(condition) for condition in conditions if condition["type"] == kind), {})

    def children(self, namespace: str, job: str | None = None) -> dict[tuple[str, str], dict[str, Any]]:
        """Everything that the operator made or had made, by kind and name; of one job, or of all."""
        selector = CHILD_SELECTOR if job is None else f"{names.LABEL_JOB}={job}"
        return {(kind.name, item["metadata"]["name"]): item for kind in WATCHED for item in self.items(kind.name, namespace, selector)}


@dataclass(frozen=True)
class Fault:
    """What happens right after the n-th write that the operator makes for a job."""

    job: str
    write: int
    action: Literal["die", "delete", "recreate"] = "die"


@dataclass
class Running:
    """One operator."""

    process: Any
    log: Path
    port: int
    identity: str

    def stop(self, seconds: float = 15.0) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.wait(seconds)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join(10)

    def wait(self, seconds: float) -> int:
        """Exit code, within a deadline."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"{self.identity} still runs after {seconds} s\n{self.words()}"
        return int(self.process.exitcode)

    def words(self) -> str:
        """The end of its log."""
        return self.log.read_text()[-4000:] if self.log.exists() else "(nothing yet)"

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of one of its metrics that have these labels."""
        lines = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=5, trust_env=False).text.splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        found = [line for line in lines if line.partition("{")[0].split(" ")[0] == name and all(part in line for part in wanted)]
        return sum(float(line.rpartition(" ")[2]) for line in found)


@dataclass
class Operators:
    """Starts operators for one namespace, and ends them all."""

    namespace: str
    kubeconfig: Path
    folder: Path
    running: list[Running] = field(default_factory=list)

    def start(self, *faults: Fault, identity: str = "operator-0", kubeconfig: Path | None = None, **environ: str) -> Running:
        """Start one. It has the Lease at once if the one before it had the same identity."""
        port = free_port()
        log = self.folder / f"{len(self.running)}-{identity}.log"
        settings = {
            "KUBECONFIG": str(kubeconfig or self.kubeconfig),
            "RLVR_POD_NAME": identity,
            "RLVR_POD_NAMESPACE": self.namespace,
            "RLVR_WATCH_NAMESPACES": self.namespace,
            "RLVR_LEASE_NAME": "operator",
            "RLVR_HTTP_PORT": str(port),
            **{f"RLVR_{role}_IMAGE": f"example.test/{role.lower()}:1" for role in ("ROLLOUT", "LEARNER", "VERIFIER")},
            **environ,
        }
        process = CONTEXT.Process(target=run_operator, args=(settings, str(log), faults), daemon=True)
        process.start()
        one = Running(process, log, port, identity)
        self.running.append(one)
        return one

    def leader(self, *faults: Fault, **environ: str) -> Running:
        """Start one and wait until it leads."""
        one = self.start(*faults, **environ)
        wait_for(lambda: one.log.exists() and "leads with lease" in one.log.read_text(), 30, lambda: f"a leader\n{one.words()}")
        return one

    def kill_all(self) -> None:
        """SIGKILL to whatever still runs."""
        for one in self.running:
            one.kill()


def run_operator(settings: dict[str, str], log: str, faults: tuple[Fault, ...]) -> None:
    """In the new process: run the operator to its end."""
    with Path(log).open("ab", 0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    administrator = os.environ.get("KUBECONFIG", "")
    os.environ.update(settings)
    kube_config.KUBE_CONFIG_DEFAULT_LOCATION = settings["KUBECONFIG"]  # it was read when the server of processes imported the client
    if faults:
        interfere({fault.job: fault for fault in faults}, administrator)
    from rlvr_operator.__main__ import main

    code = main()
    sys.stderr.flush()
    os._exit(code)


def interfere(faults: dict[str, Fault], administrator: str) -> None:
    """Have faults happen after writes. A write is counted once the API server has answered, before the operator knows.

    Jobs are deleted as a person does it, with the rights of the kubeconfig `administrator`: the operator has none to.
    """
    from rlvr_operator.cluster import Cluster, GoneError

    original, counts = Cluster._request, Counter()

    async def request(self: Cluster, method: str, path: str, body: Any = None, *rest: Any, **more: Any) -> Any:
        answer = await original(self, method, path, body, *rest, **more)
        job = "" if method == "GET" or "/leases" in path else _job_of(path, body, faults)
        counts[job] += 1
        if job and counts[job] == faults[job].write:
            if faults[job].action == "die":
                os._exit(9)
            async with Cluster(await kube_config.new_client_from_config(administrator or None)) as person:
                await take_away(person, faults[job], path.split("/namespaces/")[1].split("/")[0])
        return answer

    async def take_away(cluster: Cluster, fault: Fault, namespace: str) -> None:
        jobs = KINDS[names.KIND].path(namespace)
        found = await original(cluster, "GET", f"{jobs}/{fault.job}")
        try:
            await original(cluster, "DELETE", f"{jobs}/{fault.job}", {"propagationPolicy": "Background"})
        except GoneError:
            return
        if fault.action == "recreate":
            await original(cluster, "POST", jobs, {**found, "metadata": {"name": fault.job, "namespace": namespace}, "status": {}})

    Cluster._request = request  # type: ignore[method-assign]


def _job_of(path: str, body: Any, faults: dict[str, Fault]) -> str:
    """The job that a write concerns, if it is one with a fault."""
    parts = path.split("/")
    name = parts[-2] if parts[-1] == "status" else parts[-1]
    if name in {kind.plural for kind in KINDS.values()}:
        name = body["metadata"]["name"]
    return next((job for job in faults if name == job or name.startswith((f"{job}-", f"{job}."))), "")
