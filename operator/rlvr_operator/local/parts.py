"""The supervised processes of a run, made from its plan.

Ports, addresses and credentials are fixed here once for the whole run, so a process that restarts is found where it was; only the learner's
attempt number changes between plans.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import httpx

from rlvr_api.embedded_s3 import EmbeddedS3
from rlvr_api.process import Role
from rlvr_api.spec import RLVRJob
from rlvr_api.status import Progress, RoleStatus
from rlvr_operator.local.attempts import LearnerKeeper
from rlvr_operator.local.children import allot_gpus, child_spec, find_openmp_library, s3_spec
from rlvr_operator.local.folder import RunFolder, State
from rlvr_operator.local.ports import HOST, PortReservation
from rlvr_operator.local.process import ChildSpec
from rlvr_operator.local.supervision import EventSink, Supervisor, Watch
from rlvr_operator.plan import Address, Addresses, Places, Plan, plan

POLL_SECONDS = 0.5
PROGRESS_PATH = "/status"

Planner = Callable[[RLVRJob, Addresses, Places, int], Plan]


@dataclass(frozen=True)
class Site:
    """What a run is made of before anything is started."""

    job: RLVRJob
    """Resolved: its paths are absolute."""
    folder: RunFolder
    """Locked."""
    model_dir: str
    marker: str
    """Of all processes of this runtime."""
    planner: Planner = plan
    """Tests put small processes in place of the real ones."""

    def places(self) -> Places:
        """Files and folders of the plan."""
        return Places(
            python=sys.executable,
            job_file=str(self.folder.job_file),
            model_dir=self.model_dir,
            seal_key_file=str(self.folder.seal_key_file()),
            work_dir=str(self.folder.work_dir),
            last_progress_file=str(self.folder.last_progress_file),
            openmp_library=find_openmp_library(),
        )


@dataclass
class Parts:
    """The supervised processes of a run."""

    services: dict[str, Supervisor]
    """Engines and verifiers by name."""
    learner: LearnerKeeper
    s3: Supervisor | None

    def all(self) -> Iterator[Supervisor | LearnerKeeper]:
        """Every keeper, in the order in which they are stopped."""
        yield self.learner
        yield from self.services.values()
        if self.s3 is not None:
            yield self.s3

    def of(self, role: Role) -> tuple[Supervisor, ...]:
        """The services of one role."""
        return tuple(service for name, service in self.services.items() if name.startswith(f"{role}-"))

    def role_status(self, role: Role) -> RoleStatus:
        """How the processes of a role are now."""
        keepers: tuple[Supervisor | LearnerKeeper, ...] = (self.learner,) if role is Role.LEARNER else self.of(role)
        ends = [keeper.last_termination for keeper in keepers if keeper.last_termination is not None]
        return RoleStatus(
            name=role,
            desired=len(keepers),
            ready=sum(keeper.ready.is_set() for keeper in keepers),
            restarts=sum(keeper.restarts for keeper in keepers),
            last_termination=max(ends, key=lambda end: end.time, default=None),
        )


class PartsBuilder:
    """Makes the parts of a site; none is started."""

    def __init__(self, site: Site, ports: PortReservation, client: httpx.AsyncClient, emit: EventSink) -> None:
        self._site, self._client, self._emit = site, client, emit
        self._server = _embedded_s3(site, ports)
        self._addresses = Addresses(
            bind_host=HOST,
            engines=tuple(Address(HOST, ports.reserve()) for _ in range(site.job.spec.rollouts.replicas)),
            verifier=Address(HOST, ports.reserve()),
            learner=Address(HOST, ports.reserve()),
            s3_endpoint=None if self._server is None else self._server.endpoint,
        )

    def build(self) -> Parts:
        """Keepers for every process of the job."""
        services = {name: self._supervisor(partial(_same, child)) for name, child in self._child_specs(1).items() if name != Role.LEARNER}
        server = self._server
        s3 = None if server is None else self._supervisor(partial(s3_spec, server, self._site.folder))
        policy, deadlines = self._site.job.spec.failure_policy, self._site.job.spec.deadlines
        learner = LearnerKeeper(
            begin=self._begin_attempt,
            may_start=partial(self._may_start, services),
            run_marker=self._site.marker,
            limit=policy.max_learner_restarts,
            silence_seconds=deadlines.stall_seconds,
            client=self._client,
            emit=self._emit,
            last_progress=self._site.folder.read_last_progress,
            on_progress=partial(restart_engines, services),
        )
        return Parts(services, learner, s3)

    def _supervisor(self, make: Callable[[], ChildSpec]) -> Supervisor:
        spec = self._site.job.spec
        watch = Watch(spec.deadlines.provisioning_seconds)
        return Supervisor(make, self._site.marker, spec.failure_policy.max_role_restarts, watch, self._client, self._emit)

    def _child_specs(self, attempt: int) -> dict[str, ChildSpec]:
        site = self._site
        workloads = site.planner(site.job, self._addresses, site.places(), attempt).workloads
        gpus = allot_gpus(workloads)
        secrets = {} if self._server is None else self._server.environment()
        return {work.name: child_spec(work, site.folder, os.environ, secrets, gpus[work.name]) for work in workloads}

    def _begin_attempt(self) -> tuple[int, ChildSpec]:
        """The next attempt; its number is on disk before its process exists, so that it is never given twice."""
        attempt = self._site.folder.read_state().attempt + 1
        self._site.folder.write_state(State(attempt, self._site.marker))
        spec = self._child_specs(attempt)[Role.LEARNER]
        # /readyz says that it listens; what is polled is what it says.
        return attempt, replace(spec, readiness_url=f"{self._addresses.learner.url}{PROGRESS_PATH}")

    async def _may_start(self, services: dict[str, Supervisor]) -> None:
        for name, service in services.items():
            if name.startswith(Role.VERIFIER):
                await service.ready.wait()
        while True:
            if self._server is None or await asyncio.to_thread(self._server.is_ready):
                return
            await asyncio.sleep(POLL_SECONDS)


def restart_engines(services: Mapping[str, Supervisor], progress: Progress) -> None:
    """Restarts the engines of which the learner says that only a new process helps."""
    for name, engine in progress.engines.items():
        if engine.needs_restart and name in services:
            services[name].restart(f"cannot be mended by the learner ({engine.reason})")


def _same(child: ChildSpec) -> ChildSpec:
    return child


def _embedded_s3(site: Site, ports: PortReservation) -> EmbeddedS3 | None:
    storage = site.job.spec.storage
    if storage.endpoint is not None:
        return None
    bucket = storage.uri.removeprefix("s3://").partition("/")[0]
    return EmbeddedS3(site.folder.s3_dir, site.folder.s3_config, port=ports.reserve(), bucket=bucket)
