"""Weights over `torch.distributed` process groups: NCCL between GPUs, gloo otherwise, both ends.

The learner keeps one `TCPStore`; each epoch is a `PrefixStore` in it and a process group of its own, never the global default one:

    learner (rank 0)                          worker (rank 1..)
      invitation over HTTP  ----------------->  thread starts, writes joined/RANK
      waits for joined/*, forms the group <-->  forms the group, waits for update/N
      writes update/N, broadcasts buckets --->  receives all into staging, hands each on, writes staged/N/RANK
      waits for staged/N/*, orders the swap     (the engine swaps, not this file), writes settled/N/RANK

The learner packs a bucket while the one before it travels, and the worker installs it while the next one arrives. Each wait ends with a
time-out. A member that dies breaks the group for all: the learner writes `aborted`, which every wait looks for, everyone who did not get
everything says `cut`, and the learner forms the next epoch with those that live. Workers that wait in vain find the store gone when it is
the learner that died. Not covered: reduced updates (LoRA, deltas), sharded senders.
"""

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from pydantic import ValidationError

from rlvr_api.spec import TorchDistributed
from rlvr_trainer.weights.buckets import bytes_as_they_are, fit_buffers, pack_bucket, unpack_bucket
from rlvr_trainer.weights.collectives import (
    BroadcastBrokenError,
    address_towards,
    broadcast_from_learner,
    dist,
    family_of,
    first_line,
    form_group,
    leave_group,
    own_address,
    wait_for,
)
from rlvr_trainer.weights.protocol import Acknowledgement, Invitation, Layout, UpdateHeader
from rlvr_trainer.weights.transport import FindDead, Stage

log = logging.getLogger("rlvr.weights")

CLOSED = b"closed"
ABORTED_KEY = "aborted"
SEND_BUFFERS = 3
LIVENESS_SECONDS = 0.5
"""A silent rank is looked after this often; at once when the group is broken."""
QUIET_SECONDS = 3600.0
"""A worker waits for the next update as long as the store lives; it looks up once in this time."""


def open_rendezvous(advertised_host: str, settings: TorchDistributed, timeout_seconds: float) -> "Rendezvous":
    """The learner's store, on a free port of `advertised_host`. See `rlvr_trainer.weights.Transport`."""
    del settings
    return Rendezvous(advertised_host, timeout_seconds)


def make_receiver(invitation: Invitation, rank: int, device: torch.device, stage: Stage, previous: "Receiver | None") -> "Receiver":
    """A worker's end; it takes over the staging memory of `previous`. See `rlvr_trainer.weights.Transport`.

    Raises:
        ValueError: the invitation asks for NCCL and this worker has no GPU.
    """
    if invitation.collective == "nccl" and device.type != "cuda":
        raise ValueError(f"the learner sends over NCCL, and this worker's device is {device}: run both on GPUs, or the learner on the CPU")
    return Receiver(invitation, rank, device, stage, *(previous.release_buffers() if previous else ([], [])))


class Rendezvous:
    """Where groups meet: a TCP store that lives as long as the learner."""

    def __init__(self, advertised_host: str, timeout_seconds: float) -> None:
        """Raises OSError when `advertised_host` does not name an address of this machine."""
        # Engines are told the address: whatever resolves names where they are need not know this one yet.
        self._host = own_address(advertised_host)
        self._timeout_seconds = timeout_seconds
        # Fresh memory costs more than the broadcast, so all groups share these. A broken group may still send from them: what its members
        # receive then, they can never be told to swap in, for its epoch is over.
        self._buffers: list[torch.Tensor] = []
        listener = socket.create_server((self._host, 0), family=family_of(self._host), backlog=1024)
        self._port: int = listener.getsockname()[1]
        self._store: Any = dist.TCPStore(
            self._host,
            self._port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_seconds),
            master_listen_fd=listener.detach(),
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that go into invitations."""
        return self._host, self._port

    def open_group(self, attempt: int, epoch: int, world_size: int, layout: Layout, device: torch.device) -> "Sender":
        """The learner's end of a new group, which is not connected yet. `device` is that of the tensors to send."""
        # Two connections: one that waits for members to connect blocks all other use of it.
        limit = timedelta(seconds=self._timeout_seconds)
        own, forming = (
            dist.PrefixStore(_prefix(attempt, epoch), store)
            for store in (self._store, dist.TCPStore(self._host, self._port, is_master=False, timeout=limit))
        )
        self._buffers = fit_buffers(self._buffers, _packed_sizes(layout), device)
        return Sender(own, forming, self._host, world_size, layout, self._buffers, self._timeout_seconds)

    def close(self) -> None:
        """Close the store: workers that wait for an update leave their groups."""
        self._store = None


class Sender:
    """The learner's end of one epoch's group."""

    def __init__(
        self,
        store: Any,
        forming_store: Any,
        host: str,
        world_size: int,
        layout: Layout,
        buffers: Sequence[torch.Tensor],
        timeout_seconds: float,
    ) -> None:
        self._store = store
        self._forming_store = forming_store
        self._host = host
        self._world_size = world_size
        self._layout = layout
        self._buffers = buffers
        self._device = buffers[0].device
        self._timeout_seconds = timeout_seconds
        self._formed: list[Any] = []  # a list, so that leaving can let go of the last reference elsewhere
        self._aborted = threading.Event()
        self._sequence = -1

    def await_members(self, ranks: Sequence[int], find_dead: FindDead) -> Mapping[int, Acknowledgement]:
        """Wait until the ranks have answered the invitation, are dead, or the time is up."""
        return self._await(lambda rank: f"joined/{rank}", ranks, self._aborting(find_dead))

    def connect(self) -> None:
        """Form the group with all ranks. Call it once they have joined.

        Raises:
            BroadcastBrokenError: a rank did not connect in time, or the group was aborted.
        """
        collective = "nccl" if self._device.type == "cuda" else "gloo"
        given_up = self._aborted.is_set
        self._formed = [form_group(collective, self._forming_store, 0, self._world_size, self._host, self._timeout_seconds, given_up)]

    def send(self, tensors: Mapping[str, torch.Tensor], header: UpdateHeader, on_last_bucket: Callable[[], None]) -> None:
        """Broadcast the tensors of the layout, cast to its dtype; `on_last_bucket` is called once, when only little is left to send.

        When it returns, the bytes are handed to the network; `await_staged` says who has them.

        Raises:
            BroadcastBrokenError: a member died or is too slow, or the group was aborted; it is of no use any more.
        """
        self._sequence = header.sequence
        self._store.set(_update_key(header.sequence), header.model_dump_json())
        in_flight: deque[Any] = deque()
        last = len(self._layout.buckets) - 1
        for index, bucket in enumerate(self._layout.buckets):
            if len(in_flight) == SEND_BUFFERS:
                self._wait(in_flight.popleft())
            if (buffer := bytes_as_they_are(bucket, tensors)) is None:
                buffer = self._buffers[index % SEND_BUFFERS][: bucket.size_bytes]
                pack_bucket(bucket, tensors, buffer)
            if index == last:
                on_last_bucket()
            in_flight.append(broadcast_from_learner(self._formed[0], buffer))
        while in_flight:
            self._wait(in_flight.popleft())

    def await_staged(self, sequence: int, ranks: Sequence[int], find_dead: FindDead) -> Mapping[int, Acknowledgement]:
        """Wait until the ranks have staged an update, are dead, or the time is up; a silent rank counts as `cut`."""
        return self._await(lambda rank: f"staged/{sequence}/{rank}", ranks, self._aborting(find_dead))

    def await_settled(self, sequence: int, ranks: Sequence[int], find_dead: FindDead) -> Mapping[int, Acknowledgement]:
        """Wait until the ranks have nothing left to do after the swap of an update."""
        answers = self._await(lambda rank: f"settled/{sequence}/{rank}", ranks, find_dead)
        self._store.delete_key(_update_key(sequence))
        return answers

    def abort(self) -> None:
        """End what the group is doing, for all members. Safe from any thread."""
        self._aborted.set()
        with suppress(RuntimeError):
            self._store.set(ABORTED_KEY, b"")

    def close(self) -> None:
        """Leave the group. Workers that wait for an update leave it as well."""
        self._aborted.set()
        with suppress(RuntimeError):
            self._store.set(_update_key(self._sequence + 1), CLOSED)
        held, self._formed = self._formed, []
        leave_group(held, self._device)

    def _wait(self, work: Any) -> None:
        wait_for(work, self._formed[0], self._timeout_seconds, self._device, self._aborted.is_set)

    def _aborting(self, find_dead: FindDead) -> FindDead:
        def look(ranks: Sequence[int]) -> Sequence[int]:
            if dead := find_dead(ranks):
                self.abort()
            return dead

        return look

    def _await(self, key: Callable[[int], str], ranks: Sequence[int], find_dead: FindDead) -> dict[int, Acknowledgement]:
        answers: dict[int, Acknowledgement] = {}
        deadline = time.monotonic() + self._timeout_seconds
        look_up, pause = time.monotonic() + (0.0 if self._aborted.is_set() else LIVENESS_SECONDS), 0.0002
        while missing := [rank for rank in ranks if rank not in answers]:
            for rank in missing:
                if self._store.check([key(rank)]):
                    answers[rank] = Acknowledgement.model_validate_json(self._store.get(key(rank)))
                    self._store.delete_key(key(rank))
            now = time.monotonic()
            if now > deadline:
                late = Acknowledgement(outcome="cut", message=f"no answer within {self._timeout_seconds:g} s")
                return answers | {rank: late for rank in missing if rank not in answers}
            if now > look_up:
                gone = Acknowledgement(outcome="cut", message="the engine does not answer any more")
                answers |= dict.fromkeys(find_dead([rank for rank in missing if rank not in answers]), gone)
                look_up = time.monotonic() + LIVENESS_SECONDS
            time.sleep(pause)
            pause = min(pause * 1.5, 0.002)
        return answers


class Receiver:
    """A worker's end of one epoch's group. Its thread does all that waits; the engine's loop never does."""

    def __init__(
        self, invitation: Invitation, rank: int, device: torch.device, stage: Stage, buffers: list[torch.Tensor], kept: list[torch.Tensor]
    ) -> None:
        self._invitation = invitation
        self._rank = rank
        self._device = device if invitation.collective == "nccl" else torch.device("cpu")
        self._stage = stage
        self._formed: list[Any] = []
        self._closed = False
        self._lock = threading.Lock()
        self._staged: UpdateHeader | None = None
        self._outbox: Any = None
        self._buffers = buffers
        self._kept = kept  # weights in use, which `stage` kept; free again from the next swap on
        self._keeps = False
        self._thread = threading.Thread(target=self._run, name=f"weights-epoch-{invitation.epoch}", daemon=True)

    def start(self) -> None:
        """Join the group and receive updates, on a thread of its own."""
        self._thread.start()

    def staged_header(self) -> UpdateHeader | None:
        """The update whose weights are complete and wait for their swap."""
        return None if self._closed else self._staged

    def swap_staged(self, header: UpdateHeader, swap: Callable[[], None]) -> bool:
        """Call `swap` if that update is staged, and say whether it is. Nothing arrives meanwhile."""
        with self._lock:
            if self._closed or self._staged != header:
                return False
            self._staged = None
            if self._keeps:
                self._buffers, self._kept = self._kept, self._buffers
            swap()
            return True

    def report_settled(self, header: UpdateHeader, error: str) -> None:
        """Tell the learner that the work after a swap is done; an empty error is success."""
        answer = Acknowledgement(outcome="refused" if error else "done", message=error)
        self._answer(f"settled/{header.sequence}/{self._rank}", answer)

    def close(self) -> None:
        """Leave the group; it does not wait for the thread, which ends when its connections do or at its time-out."""
        self._closed = True

    def release_buffers(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The staging memory of a receiver whose thread has ended, none while it may still write there; and the memory that is in use."""
        return [] if self._thread.is_alive() else self._buffers, self._kept

    def _run(self) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            with torch.no_grad():
                self._take_part()
        except (BroadcastBrokenError, RuntimeError, OSError, ValidationError) as error:
            # The border of the thread: the store or the group is gone, or the learner spoke nonsense. The engine goes on with old weights.
            if not self._closed:
                log.warning("left weight group: attempt %d, epoch %d: %s", *self._invitation.order, first_line(error))
        finally:
            held, self._formed = self._formed, []
            leave_group(held, self._device)

    def _take_part(self) -> None:
        invitation, timeout = self._invitation, timedelta(seconds=self._invitation.timeout_seconds)
        address = invitation.store_host, invitation.store_port
        # Two connections: one that waits for the next update blocks all other use of it.
        inbox, outbox = (
            dist.PrefixStore(_prefix(*invitation.order), dist.TCPStore(*address, is_master=False, timeout=timeout)) for _ in range(2)
        )
        self._outbox = outbox
        self._answer(f"joined/{self._rank}", Acknowledgement(outcome="done"))
        host = address_towards(*address)
        self._formed = [
            form_group(invitation.collective, inbox, self._rank, invitation.world_size, host, invitation.timeout_seconds, self._is_given_up)
        ]
        sequence = 0
        while (message := self._next(inbox, sequence)) is not None:
            header = UpdateHeader.model_validate_json(message)
            answer = (
                Acknowledgement(outcome="refused", message="this engine has joined a newer group")
                if self._closed
                else self._receive(header)
            )
            if answer.outcome == "done":
                self._staged = header
            self._answer(f"staged/{header.sequence}/{self._rank}", answer)
            if self._closed or answer.outcome == "cut":
                return
            sequence += 1

    def _next(self, inbox: Any, sequence: int) -> bytes | None:
        while not self._closed:
            try:
                inbox.wait([_update_key(sequence)], timedelta(seconds=QUIET_SECONDS))
            except dist.DistNetworkError:
                raise
            except dist.DistStoreError:
                continue
            message: bytes = inbox.get(_update_key(sequence))
            return None if message == CLOSED else message
        return None

    def _receive(self, header: UpdateHeader) -> Acknowledgement:
        with self._lock:
            self._staged = None
        self._buffers = fit_buffers(self._buffers, [bucket.size_bytes for bucket in self._invitation.layout.buckets], self._device)
        works = deque(broadcast_from_learner(self._formed[0], buffer) for buffer in self._buffers)
        try:
            try:
                self._keeps = self._stage(self._arriving(works))
            finally:
                while works:
                    self._wait(works.popleft())
        except BroadcastBrokenError as error:
            self._buffers = []  # the library may still write there
            return Acknowledgement(outcome="cut", message=first_line(error))
        except Exception as error:  # the border to the model's own loading code, which raises what it likes
            if not self._closed:
                log.exception("cannot stage weights of version %d", header.version)
            return Acknowledgement(outcome="refused", message=f"{type(error).__name__}: {first_line(error)}")
        return Acknowledgement(outcome="done")

    def _arriving(self, works: deque[Any]) -> Iterator[Sequence[tuple[str, torch.Tensor]]]:
        for bucket, buffer in zip(self._invitation.layout.buckets, self._buffers, strict=True):
            self._wait(works[0])
            works.popleft()
            yield tuple(unpack_bucket(bucket, buffer))

    def _wait(self, work: Any) -> None:
        wait_for(work, self._formed[0], self._invitation.timeout_seconds, self._device, self._is_given_up)

    def _is_given_up(self) -> bool:
        """A newer group took over, the learner aborted this one, or the learner is gone."""
        if self._closed:
            return True
        try:
            return bool(self._outbox.check([ABORTED_KEY]))
        except RuntimeError:
            return True

    def _answer(self, key: str, answer: Acknowledgement) -> None:
        # A learner that is gone needs no answer, and its successor invites anew.
        if self._outbox is not None:
            with suppress(RuntimeError):
                self._outbox.set(key, answer.model_dump_json())


def _packed_sizes(layout: Layout) -> list[int]:
    sizes = [bucket.size_bytes for bucket in layout.buckets]
    return [max(sizes[first::SEND_BUFFERS]) for first in range(min(SEND_BUFFERS, len(sizes)))]


def _prefix(attempt: int, epoch: int) -> str:
    return f"weights/{attempt}/{epoch}"


def _update_key(sequence: int) -> str:
    return f"update/{sequence}"
