"""The learner's view of weight updates: `publish` after each optimizer step, and who may serve.

    publish(tensors, version)
      group of all engines that are there (kept from the last time, or formed anew: `groups`)
      broadcast; engines pause as the last bucket leaves; each swaps when its workers have everything (`swap`)
      whoever was cut off because another one died repeats it in the next epoch; whoever is dead or late is dropped
      wait until the engines have settled, probe each (`probe`); one that differs is quarantined and loaded again, once

A watcher thread notices engines that die between updates and those that are back. The set of engines may change at any time; a change
that comes during an update takes effect when it ends. A version is used for one set of weights only. Every wait has the time-out of the
job's `weightSync`, or less. Not covered: what to do with too few engines; the report says who is left.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from opentelemetry.propagate import inject

from rlvr_api.spec import Dtype
from rlvr_api.weight_sync import ObjectStoreDeltas, TorchDistributed, transport_kind
from rlvr_api.wire import MAX_ENGINES
from rlvr_trainer.streamed import device_of, outline
from rlvr_trainer.weights import load_transport
from rlvr_trainer.weights.buckets import plan_layout
from rlvr_trainer.weights.engine_client import EngineClient, EngineError, EngineHandle, EngineSlowError, ProbeReply, open_http
from rlvr_trainer.weights.engine_state import EngineBook, EngineEvent, EngineState, EngineStatus
from rlvr_trainer.weights.groups import NEVER_UPDATED, GroupFactory, WeightGroup
from rlvr_trainer.weights.probe import Probe, ProbeError
from rlvr_trainer.weights.protocol import Layout, SwapOrder, UpdateHeader
from rlvr_trainer.weights.report import PublishReport
from rlvr_trainer.weights.swap import SwapResult, swap_engine
from rlvr_trainer.weights.transport import OpenStore, no_store

log = logging.getLogger("rlvr.weights")

MIB = 2**20
MAX_ROUNDS = 3  # of one version; more than two are needed only when engines die in two of them in a row
WAITING = frozenset({EngineStatus.DIRTY, EngineStatus.QUARANTINED})
MAX_CALLS = 128  # to engines at the same time, but for swaps
LOOK_SECONDS = 5.0  # for an engine to say its version, when nothing waits for the answer


class WeightPublisher:
    """Publishes weights to engines. `publish` and `sync_joiners` belong to one thread; everything else is safe from any."""

    def __init__(
        self,
        engines: Sequence[EngineHandle],
        *,
        transport: TorchDistributed | ObjectStoreDeltas,
        timeout_seconds: float,
        probe: Probe,
        advertised_host: str,
        attempt: int,
        engine_dtype: Dtype,
        adapter_scale: float | None = None,
        on_event: Callable[[EngineEvent], None] = lambda event: None,
        open_store: OpenStore = no_store,
        watch_seconds: float = 1.0,
    ) -> None:
        """Starts the watcher; `close` ends it.

        Args:
            adapter_scale: what is published are adapters, see `Layout.adapter_scale`; None: whole weights.

        Raises:
            OSError: `advertised_host` does not name an address of this machine.
        """
        self._bucket_bytes = transport.bucket_mib * MIB
        self._timeout_seconds = timeout_seconds
        self._probe = probe
        self._attempt = attempt
        self._dtype = engine_dtype
        self._adapter_scale = adapter_scale
        self._book = EngineBook((), on_event)
        self._trace_headers: dict[str, str] = {}
        self._http = open_http()
        self._clients: dict[str, EngineClient] = {}
        self._wanted: dict[str, EngineHandle] = {}
        # Held during an update, and while the set of engines is changed.
        self._updating = threading.Lock()
        self.set_engines(engines)
        self._pool = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="weights")
        # A swap holds its thread until all engines have their weights: it must not keep a thread from those who look after them.
        self._swaps = ThreadPoolExecutor(MAX_ENGINES, thread_name_prefix="weights-swap")
        module = load_transport(transport_kind(transport))
        self._rendezvous = module.open_rendezvous(advertised_host, transport, timeout_seconds, open_store)
        self._groups = GroupFactory(self._rendezvous, attempt, self._clients, self._pool, timeout_seconds, self._was_updated)
        self._group: WeightGroup | None = None
        self._version = -1
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, args=(watch_seconds,), name="weights-watch", daemon=True)
        self._watcher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def publish(self, named_tensors: Mapping[str, torch.Tensor], version: int) -> PublishReport:
        """Bring `version` to every engine that is there.

        Args:
            named_tensors: checkpoint names to whole tensors on one device, as `dict(model.named_parameters())`; a tied head is left out.
            version: above all that were published before, in this attempt or an earlier one.

        Raises:
            ValueError: the version is not above the last one, or the tensors cannot be sent.
        """
        if version <= self._version:
            raise ValueError(f"version {version} is not above {self._version}, which was published: versions are never used again")
        self._version = version
        return self._bring(named_tensors, version, WAITING | {EngineStatus.CLEAN})

    def sync_joiners(self, named_tensors: Mapping[str, torch.Tensor], version: int) -> PublishReport:
        """Bring the current version to engines that came (back) since it was published; the others do not notice.

        Raises:
            ValueError: `version` is not the one that was published last.
        """
        if version != self._version:
            raise ValueError(f"version {version} is not the current one, {self._version}: joiners get what the others have")
        return self._bring(named_tensors, version, WAITING)

    def set_engines(self, engines: Sequence[EngineHandle]) -> None:
        """Use these engines and no others. New ones are dirty; those that are left out get no prompts from now on. Returns at once."""
        self._wanted = {engine.name: engine for engine in engines}
        self._apply_wanted()

    def handles(self) -> tuple[EngineHandle, ...]:
        """The wanted engines."""
        return tuple(self._wanted.values())

    def clean_engines(self) -> tuple[str, ...]:
        """Engines that may get prompts."""
        wanted = self._wanted
        known = {name: client.handle for name, client in self._clients.copy().items()}
        return tuple(name for name in self._book.clean() if name in known and wanted.get(name) == known[name])

    def state(self, name: str) -> EngineState:
        """The state of one engine. Raises KeyError for a name that is not wanted."""
        return self._book.state(name)

    def states(self) -> dict[str, EngineState]:
        """The states of all engines."""
        return self._book.states()

    def readmit(self) -> tuple[str, ...]:
        """Look at all engines now, as the watcher does, and return those that wait for weights."""
        for future in [self._pool.submit(self._look_at, client) for client in self._clients.copy().values()]:
            future.result()
        return tuple(name for name, state in self._book.states().items() if state.status is EngineStatus.DIRTY)

    def abort_requests(self) -> tuple[str, ...]:
        """End all requests in the engines, and a pause that a dead attempt left. Returns the engines that did."""

        def end(client: EngineClient) -> None:
            client.abort_all()
            client.resume()

        with self._updating:
            done, errors = self._groups.call(self._clients, end)
        self._apply_wanted()
        for error in errors.values():
            log.warning("cannot abort requests in flight: %s", error)
        return tuple(done)

    def close(self) -> None:
        """Leave the groups and stop the watcher. Engines keep their weights."""
        self._stopping.set()
        if self._group is not None:
            self._group.close()
        self._watcher.join(LOOK_SECONDS + 1.0)
        self._pool.shutdown(cancel_futures=True)
        self._swaps.shutdown(cancel_futures=True)
        self._rendezvous.close()
        self._http.close()

    def _apply_wanted(self) -> None:
        # A change may come between the last look and the release, hence the loop.
        while self._wanted != {name: client.handle for name, client in self._clients.copy().items()}:
            if not self._updating.acquire(blocking=False):
                return
            try:
                wanted = self._wanted
                for name in [name for name, client in self._clients.items() if wanted.get(name) != client.handle]:
                    del self._clients[name]
                    self._book.remove(name)
                for name, engine in wanted.items():
                    if name not in self._clients:
                        self._book.add(name)
                        self._clients[name] = EngineClient(engine, self._http, self._timeout_seconds, lambda: self._trace_headers)
            finally:
                self._updating.release()

    def _bring(self, tensors: Mapping[str, torch.Tensor], version: int, statuses: Set[EngineStatus]) -> PublishReport:
        with self._updating:
            names = [name for name, state in self._book.states().items() if state.status in statuses]
            report = self._bring_to(names, tensors, version)
        self._apply_wanted()
        return report

    def _bring_to(self, names: list[str], tensors: Mapping[str, torch.Tensor], version: int) -> PublishReport:
        started = time.monotonic()
        headers: dict[str, str] = {}
        inject(headers)
        self._trace_headers = headers
        layout = plan_layout(outline(tensors), self._dtype, self._bucket_bytes, self._adapter_scale)
        report = PublishReport(version)
        differing = self._update(tensors, layout, names, report, started)
        if differing:
            for name, reason in self._update(tensors, layout, differing, report, None).items():
                self._drop(report, name, EngineStatus.LOST, f"{reason}; so it was after a full reload: restart it", needs_restart=True)
        report.engines = self._book.states()
        report.total_seconds = time.monotonic() - started
        return report

    def _update(
        self, tensors: Mapping[str, torch.Tensor], layout: Layout, names: Iterable[str], report: PublishReport, started: float | None
    ) -> dict[str, str]:
        """Broadcast, swap and probe; returns the engines that failed their probe, and why."""
        waiting = list(names)
        done: list[tuple[WeightGroup, list[str]]] = []
        for _ in range(MAX_ROUNDS):
            if not waiting:
                break
            if (group := self._group_of(waiting, layout, device_of(tensors), report)) is None:
                waiting = []
                break
            swapped, waiting = self._broadcast_and_swap(group, tensors, report)
            done.append((group, swapped))
        for name in waiting:
            self._drop(report, name, EngineStatus.DIRTY, f"cut off {MAX_ROUNDS} times while version {report.version} was sent")
        if started is not None:
            report.update_seconds = time.monotonic() - started
        before = time.monotonic()
        differing: dict[str, str] = {}
        for group, swapped in done:
            differing |= self._probe_engines(group, swapped, report)
        report.probe_seconds += time.monotonic() - before
        return differing

    def _group_of(self, names: list[str], layout: Layout, device: torch.device, report: PublishReport) -> WeightGroup | None:
        group = self._group
        # An engine that is back, or another one under the same name, is of no epoch yet.
        states = self._book.states()
        known = group is not None and {name for name in names if states[name].epoch == group.epoch} == group.members.keys() == set(names)
        if group is not None and known and not group.broken and group.layout == layout:
            return group
        if group is not None:
            group.close()
        started = time.monotonic()
        self._group, failures = self._groups.form(names, layout, device)
        for name, error in failures.items():
            self._drop(report, name, EngineStatus.LOST, str(error))
        report.form_seconds += time.monotonic() - started
        return self._group

    def _broadcast_and_swap(
        self, group: WeightGroup, tensors: Mapping[str, torch.Tensor], report: PublishReport
    ) -> tuple[list[str], list[str]]:
        """Engines that swapped, and engines that were cut off through no fault of their own."""
        staged: dict[str, Future[bool]] = {name: Future() for name in group.members}
        swaps: dict[str, Future[SwapResult]] = {}

        def begin_swaps(header: UpdateHeader) -> None:
            order = SwapOrder(attempt=group.attempt, epoch=group.epoch, sequence=header.sequence, version=header.version)
            for name in group.members:
                self._book.mark(name, EngineStatus.DIRTY, f"version {header.version} is being swapped in")
                swaps[name] = self._swaps.submit(swap_engine, self._clients[name], order, staged[name], 2 * self._timeout_seconds)

        started = time.monotonic()
        answers = group.broadcast(tensors, report.version, begin_swaps)
        report.broadcast_seconds += time.monotonic() - started
        report.size_bytes += group.sent_bytes
        for name, future in staged.items():
            future.set_result(answers[name].outcome == "done")
        dead = set(self._groups.find_dead(name for name, answer in answers.items() if answer.outcome == "cut"))
        swapped, cut = [], []
        for name, answer in answers.items():
            result = swaps[name].result()
            if result.swapped and not result.error:
                swapped.append(name)
                report.paused_seconds[name] = report.paused_seconds.get(name, 0.0) + result.paused_seconds
            elif answer.outcome == "done":
                status = EngineStatus.LOST if result.torn else EngineStatus.DIRTY
                self._drop(report, name, status, result.error, needs_restart=result.torn)
            elif answer.outcome == "cut" and name not in dead:
                cut.append(name)
            else:
                status = EngineStatus.LOST if name in dead else EngineStatus.DIRTY
                self._drop(report, name, status, f"version {report.version} did not get there: {answer.message}")
        return swapped, cut

    def _probe_engines(self, group: WeightGroup, names: list[str], report: PublishReport) -> dict[str, str]:
        differing: dict[str, str] = {}
        answers = group.await_settled(names) if names else {}
        salt = f"probe-{self._attempt}-{group.epoch}-{report.version}"
        replies, errors = self._groups.call(names, lambda client: self._probe.ask(client, salt))
        for name, error in errors.items():
            self._drop(report, name, EngineStatus.LOST, f"no answer to the probe: {error}")
        for name, reply in replies.items():
            problem = answers[name].message if answers[name].outcome != "done" else self._judge(reply, report)
            if problem:
                differing[name] = problem
                self._quarantine(name, problem)
            else:
                self._book.change(name, EngineState(EngineStatus.CLEAN, version=report.version, epoch=group.epoch))
        return differing

    def _judge(self, reply: ProbeReply, report: PublishReport) -> str:
        try:
            report.probe_gap_max = max(report.probe_gap_max, self._probe.judge(reply, report.version))
        except ProbeError as error:
            return str(error)
        return ""

    def _quarantine(self, name: str, problem: str) -> None:
        log.error("engine %s is quarantined and its requests are ended: %s", name, problem)
        self._book.mark(name, EngineStatus.QUARANTINED, problem)
        try:
            self._clients[name].abort_all()
        except EngineError as error:
            log.warning("%s", error)

    def _drop(self, report: PublishReport, name: str, status: EngineStatus, reason: str, needs_restart: bool = False) -> None:
        log.warning("engine %s is dropped at version %d: %s", name, report.version, reason)
        report.dropped[name] = reason
        self._book.mark(name, status, reason, needs_restart)

    def _was_updated(self, name: str) -> bool:
        return self._book.state(name).version is not None

    def _watch(self, seconds: float) -> None:
        while not self._stopping.wait(seconds):
            try:
                self.readmit()
            except Exception:  # the border of the thread: a callback that fails must not end the watch
                if not self._stopping.is_set():
                    log.exception("looking after engines failed; it goes on")

    def _look_at(self, client: EngineClient) -> None:
        name = client.handle.name
        state = self._book.states().get(name)
        if state is None or self._clients.get(name) is not client:
            return  # it is not wanted any more
        try:
            version = client.weight_version(LOOK_SECONDS)
        except EngineSlowError:
            return  # busy or wedged: the next update finds out which
        except EngineError as error:
            if state.status is not EngineStatus.LOST:
                self._book.change(name, EngineState(EngineStatus.LOST, reason=str(error)), expected=state)
        else:
            is_new = version == NEVER_UPDATED
            if state.status is EngineStatus.LOST and (is_new or not state.needs_restart):
                self._book.change(name, EngineState(EngineStatus.DIRTY, reason="is back, and waits for weights"), expected=state)
            elif state.status is EngineStatus.CLEAN and version != str(state.version):
                reason = f"was restarted: it has version {version}, not {state.version}"
                self._book.change(name, EngineState(EngineStatus.DIRTY, reason=reason), expected=state)


def highest_version(engines: Sequence[EngineHandle], timeout_seconds: float = LOOK_SECONDS) -> int:
    """Highest version that any reachable engine holds; -1 when none was ever updated. A resumed run starts above it."""
    highest = -1
    with open_http() as http, ThreadPoolExecutor(min(128, len(engines) + 1)) as pool:
        futures = [pool.submit(EngineClient(engine, http, timeout_seconds).weight_version) for engine in engines]
        for future in futures:
            try:
                version = future.result()
            except EngineError as error:
                log.warning("cannot ask for its version: %s", error)
                continue
            highest = max(highest, int(version)) if version.isdecimal() else highest
    return highest
