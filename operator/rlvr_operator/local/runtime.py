"""Runs one job to its end on this machine.

    sweep what an earlier runtime left -> reaper -> S3 server, engines and verifier in parallel -> learner once verifier and S3 are
    ready -> until the learner is done, a budget or a deadline is exhausted, or the person stops it -> drain: learner, services, S3

Everything runs on one event loop in the main thread, since the kernel ties children to the thread that forked them. The first SIGINT,
SIGTERM or SIGHUP asks for a checkpoint and a drain; the second kills.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import httpx

from rlvr_api.conditions import Phase, Reason
from rlvr_api.process import ExitCode, Role
from rlvr_api.status import RLVRJobStatus
from rlvr_operator.local import reaper
from rlvr_operator.local.attempts import LearnerKeeper, SupersededError, UntrustworthyRewardError
from rlvr_operator.local.folder import State
from rlvr_operator.local.guard import Guard
from rlvr_operator.local.parts import Parts, PartsBuilder, Site
from rlvr_operator.local.ports import PortReservation
from rlvr_operator.local.supervision import BadInputError, BudgetExhaustedError, Supervisor
from rlvr_operator.local.view import View
from rlvr_operator.observation import Ending, Observation
from rlvr_operator.status import next_status

TICK_SECONDS = 0.5
STATUS_WRITE_SECONDS = 2.0
SERVICE_GRACE_SECONDS = 10.0
S3_GRACE_SECONDS = 30.0
REPORT_SECONDS = 180.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Keeper = Supervisor | LearnerKeeper


class ProvisioningError(Exception):
    """Engines or verifiers were not ready in time."""


class LocalRuntime:
    """Runs one resolved job in its locked folder."""

    def __init__(self, site: Site, view: View) -> None:
        self._site, self._job, self._folder, self._marker, self._view = site, site.job, site.folder, site.marker, view
        self._stop = asyncio.Event()
        self._signals = 0
        self._ending: Ending | None = None
        self._status: RLVRJobStatus | None = None
        self._parts: Parts | None = None

    async def run(self) -> Ending:
        """Runs the job; returns how it ended, with no process left."""
        state = self._folder.read_state()
        if state.marker:
            await asyncio.to_thread(reaper.sweep, f"{state.marker}/")
        self._folder.write_state(State(state.attempt, self._marker))
        guard = Guard(self._marker)
        kept = asyncio.create_task(guard.keep())
        try:
            with PortReservation() as ports, self._handling_signals():
                async with httpx.AsyncClient(trust_env=False) as client:
                    ending = await self._run_parts(PartsBuilder(self._site, ports, client, self._view.event).build())
        finally:
            kept.cancel()
            await guard.close()
        self._ending = ending
        self._publish()
        return ending

    async def _run_parts(self, parts: Parts) -> Ending:
        self._parts = parts
        tasks: dict[asyncio.Task[Any], Keeper] = {asyncio.create_task(keeper.run()): keeper for keeper in parts.all()}
        ticker, deadline = asyncio.create_task(self._tick()), asyncio.create_task(self._provision(parts))
        stop = asyncio.create_task(self._stop.wait())
        everything: set[asyncio.Task[Any]] = {*tasks, ticker, deadline, stop}
        waiting = everything
        try:
            ending = None
            while ending is None:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                ending = next(filter(None, map(self._ending_from, done)), None)
                if ending is None and self._stop.is_set():
                    ending = Ending(Phase.SUSPENDED, Reason.SUSPEND_REQUESTED, "stopped on request; the same command goes on from here")
                if ending is None and any(tasks.get(task) is parts.learner for task in done):
                    ending = Ending(Phase.SUCCEEDED, Reason.ALL_STAGES_FINISHED, "all stages are finished")
            return await self._drain(parts, ending)
        finally:
            for keeper in parts.all():
                keeper.interrupt()
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)

    @staticmethod
    def _ending_from(task: asyncio.Task[Any]) -> Ending | None:
        """The failure that a finished task stands for, if it is one."""
        error = task.exception()
        if error is None:
            return None
        reasons = {
            BadInputError: Reason.INVALID_SPEC,
            BudgetExhaustedError: Reason.RESTART_BUDGET_EXHAUSTED,
            SupersededError: Reason.SUPERSEDED,
            ProvisioningError: Reason.PROVISIONING_DEADLINE_EXCEEDED,
            OSError: Reason.RUNTIME_FAILED,  # a full disk, no more processes
        }
        if isinstance(error, UntrustworthyRewardError):
            return Ending(Phase.SUSPENDED, Reason.REWARD_NOT_TRUSTWORTHY, str(error))
        for kind, reason in reasons.items():
            if isinstance(error, kind):
                return Ending(Phase.FAILED, reason, str(error))
        raise error

    async def _provision(self, parts: Parts) -> None:
        """Fails when the verifiers and at least one engine have not been ready in time."""
        seconds = self._job.spec.deadlines.provisioning_seconds
        waits = [asyncio.create_task(service.was_ready.wait()) for service in parts.of(Role.ROLLOUT)]
        try:
            async with asyncio.timeout(seconds):
                for service in parts.of(Role.VERIFIER):
                    await service.was_ready.wait()
                if waits:
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            late = {name: service.last_termination for name, service in parts.services.items() if not service.was_ready.is_set()}
            words = "".join(f"; {name} last said: {end.message}" for name, end in late.items() if end is not None)
            raise ProvisioningError(
                f"{', '.join(late)} not ready within deadlines.provisioningSeconds {seconds:.0f}{words}; "
                f"logs are in {self._folder.logs_dir}"
            ) from None
        finally:
            for wait in waits:
                wait.cancel()
        await asyncio.Event().wait()  # a met deadline ends nothing

    async def _drain(self, parts: Parts, ending: Ending) -> Ending:
        """Stops the learner, then the services, then S3; writes the report while S3 is up."""
        passing = {Phase.SUCCEEDED: Phase.COMPLETING, Phase.SUSPENDED: Phase.SUSPENDING}.get(ending.phase, ending.phase)
        self._ending = Ending(passing, ending.reason, ending.message)
        grace = self._job.spec.deadlines.grace_seconds
        if ending.reason is Reason.SUSPEND_REQUESTED:
            self._view.event(f"stopping: the learner has {grace:.0f} s to commit a checkpoint; press Ctrl-C again to kill it")
        code = await parts.learner.stop(grace)
        await asyncio.gather(*(service.stop(SERVICE_GRACE_SECONDS) for service in parts.services.values()))
        if ending.reason is Reason.SUSPEND_REQUESTED:
            ending = self._suspended(ending, code)
        if ending.phase is Phase.SUCCEEDED:  # what the report says of the run
            self._ending = ending
            self._publish()
        if self._signals < 2 and parts.learner.was_ready.is_set():
            await self._write_report()
        if parts.s3 is not None:
            await parts.s3.stop(S3_GRACE_SECONDS)
        return ending

    def _suspended(self, ending: Ending, code: int | None) -> Ending:
        if code == ExitCode.DONE:
            return Ending(Phase.SUCCEEDED, Reason.ALL_STAGES_FINISHED, "all stages are finished")
        if code in (None, ExitCode.SUSPENDED):
            return ending
        message = f"stopped before the learner had committed (exit code {code}); the same command goes on from the last checkpoint"
        return Ending(Phase.SUSPENDED, Reason.SUSPEND_REQUESTED, message)

    async def _write_report(self) -> None:
        command = (sys.executable, "-m", "rlvr_api", "report", str(self._folder.path), "--output", str(self._folder.report_file))
        with (self._folder.logs_dir / "report.log").open("ab") as log:
            env = {**os.environ, reaper.MARKER_VARIABLE: f"{self._marker}/report/1/"}
            process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL, env=env)
        try:
            async with asyncio.timeout(REPORT_SECONDS):
                while process.returncode is None and self._signals < 2:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(process.wait(), TICK_SECONDS)
        except TimeoutError:
            self._view.event(f"the report took longer than {REPORT_SECONDS:.0f} s and was given up")
        if process.returncode is None:
            process.kill()
        code = await process.wait()
        told = f"report: {self._folder.report_file}" if code == 0 else f"no report was written; {log.name} says why"
        self._view.event(told)

    async def _tick(self) -> None:
        written, phase = 0.0, None
        while True:
            status = self._publish(write=False)
            if status.phase is not phase or time.monotonic() - written > STATUS_WRITE_SECONDS:
                self._folder.write_status(status)
                written, phase = time.monotonic(), status.phase
            await asyncio.sleep(TICK_SECONDS)

    def _publish(self, write: bool = True) -> RLVRJobStatus:
        status = self._status = next_status(self._status, self._observe(), datetime.now(UTC))
        self._view.update(status)
        if write:
            self._folder.write_status(status)
        return status

    def _observe(self) -> Observation:
        parts = self._parts
        if parts is None:
            return Observation(self._job.spec, (), self._folder.read_state().attempt, 0, None, self._ending)
        learner = parts.learner
        roles = tuple(parts.role_status(role) for role in Role)
        return Observation(self._job.spec, roles, learner.attempt, learner.failures, learner.progress, self._ending)

    @contextmanager
    def _handling_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        # `nohup` means what it says: a hang-up that is ignored stays ignored.
        numbers = [number for number in SIGNALS if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals >= 2 and self._parts is not None:
            for keeper in self._parts.all():
                keeper.interrupt()
