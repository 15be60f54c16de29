"""Weights over `torch.distributed` process groups: NCCL between GPUs, gloo otherwise, both ends.

Each epoch has a process group of its own, never the global default one, that meets in the learner's store (`store_group`).

The learner packs a bucket while the one before it travels, and the worker installs it while the next one arrives. Each wait ends with a
time-out. A member that dies breaks the group for all: the learner writes `aborted`, which every wait looks for, everyone who did not get
everything says `cut`, and the learner forms the next epoch with those that live.
Not covered: reduced updates (`object_store`), sharded senders.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch

from rlvr_api.weight_sync import TorchDistributed
from rlvr_trainer.weights.buckets import bytes_as_they_are, fit_buffers, pack_bucket, unpack_bucket
from rlvr_trainer.weights.collectives import (
    BroadcastBrokenError,
    address_towards,
    broadcast_from_learner,
    dist,
    first_line,
    form_group,
    leave_group,
    wait_for,
)
from rlvr_trainer.weights.protocol import Acknowledgement, Carrier, Invitation, Layout, UpdateHeader
from rlvr_trainer.weights.store_group import StoreReceiver, StoreRendezvous, StoreSender, prefix, update_key
from rlvr_trainer.weights.transport import OpenStore, Stage, no_store

log = logging.getLogger("rlvr.weights")

SEND_BUFFERS = 3


def open_rendezvous(
    advertised_host: str, settings: TorchDistributed, timeout_seconds: float, open_store: OpenStore = no_store
) -> "Rendezvous":
    """The learner's store, on a free port of `advertised_host`. See `rlvr_trainer.weights.Transport`."""
    del settings, open_store
    return Rendezvous(advertised_host, timeout_seconds)


def make_receiver(invitation: Invitation, rank: int, device: torch.device, stage: Stage, previous: "Receiver | None") -> "Receiver":
    """A worker's end; it takes over the staging memory of `previous`. See `rlvr_trainer.weights.Transport`.

    Raises:
        ValueError: the invitation asks for NCCL and this worker has no GPU, or for another transport.
    """
    if invitation.collective == "object_store":
        raise ValueError("the learner sends through the object store, and this engine was started for broadcasts: restart it")
    if invitation.collective == "nccl" and device.type != "cuda":
        raise ValueError(f"the learner sends over NCCL, and this worker's device is {device}: run both on GPUs, or the learner on the CPU")
    return Receiver(invitation, rank, device, stage, *(previous.release_buffers() if previous else ([], [])))


class Rendezvous(StoreRendezvous):
    """Where groups meet, and the memory that they send from."""

    def __init__(self, advertised_host: str, timeout_seconds: float) -> None:
        """Raises OSError when `advertised_host` does not name an address of this machine."""
        super().__init__(advertised_host, timeout_seconds)
        # Fresh memory costs more than the broadcast, so all groups share these. A broken group may still send from them: what its members
        # receive then, they can never be told to swap in, for its epoch is over.
        self._buffers: list[torch.Tensor] = []

    def carrier(self, device: torch.device) -> Carrier:
        """NCCL from a GPU, gloo otherwise."""
        return "nccl" if device.type == "cuda" else "gloo"

    def open_group(self, attempt: int, epoch: int, world_size: int, layout: Layout, device: torch.device) -> "Sender":
        """The learner's end of a new group, which is not connected yet. `device` is that of the tensors to send."""
        # Two connections: one that waits for members to connect blocks all other use of it.
        connection = dist.TCPStore(self._host, self._port, is_master=False, timeout=timedelta(seconds=self._timeout_seconds))
        own, forming = self._group_store(attempt, epoch), dist.PrefixStore(prefix(attempt, epoch), connection)
        self._buffers = fit_buffers(self._buffers, _packed_sizes(layout), device)
        return Sender(own, forming, self._host, world_size, layout, self._buffers, self._timeout_seconds)


class Sender(StoreSender):
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
        super().__init__(store, timeout_seconds)
        self._forming_store = forming_store
        self._host = host
        self._world_size = world_size
        self._layout = layout
        self._buffers = buffers
        self._device = buffers[0].device
        self._formed: list[Any] = []  # a list, so that leaving can let go of the last reference elsewhere

    def connect(self) -> None:
        """Form the group with all ranks. Call it once they have joined.

        Raises:
            BroadcastBrokenError: a rank did not connect in time, or the group was aborted.
        """
        collective = "nccl" if self._device.type == "cuda" else "gloo"
        given_up = self._aborted.is_set
        self._formed = [form_group(collective, self._forming_store, 0, self._world_size, self._host, self._timeout_seconds, given_up)]

    def send(self, tensors: Mapping[str, torch.Tensor], header: UpdateHeader, on_last_bucket: Callable[[], None]) -> int:
        """Broadcast the tensors of the layout, cast to its dtype; `on_last_bucket` is called once, when only little is left to send.

        When it returns, the bytes are handed to the network; `await_staged` says who has them.

        Raises:
            BroadcastBrokenError: a member died or is too slow, or the group was aborted; it is of no use any more.
        """
        self._sequence = header.sequence
        self._store.set(update_key(header.sequence), header.model_dump_json())
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
        return self._layout.size_bytes

    def close(self) -> None:
        """Leave the group. Workers that wait for an update leave it as well."""
        super().close()
        held, self._formed = self._formed, []
        leave_group(held, self._device)

    def _wait(self, work: Any) -> None:
        wait_for(work, self._formed[0], self._timeout_seconds, self._device, self._aborted.is_set)


class Receiver(StoreReceiver):
    """A worker's end of one epoch's group."""

    def __init__(
        self, invitation: Invitation, rank: int, device: torch.device, stage: Stage, buffers: list[torch.Tensor], kept: list[torch.Tensor]
    ) -> None:
        super().__init__(invitation, rank, stage)
        self._device = device if invitation.collective == "nccl" else torch.device("cpu")
        self._formed: list[Any] = []
        self._buffers = buffers
        self._kept = kept  # weights in use, which `stage` kept; free again from the next swap on
        self._keeps = False

    def release_buffers(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The staging memory of a receiver whose thread has ended, none while it may still write there; and the memory that is in use."""
        return [] if self._thread.is_alive() else self._buffers, self._kept

    def _join(self, inbox: Any) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        invitation = self._invitation
        host = address_towards(invitation.store_host, invitation.store_port)
        self._formed = [
            form_group(invitation.collective, inbox, self._rank, invitation.world_size, host, invitation.timeout_seconds, self._is_given_up)
        ]

    def _use_staged(self) -> None:
        if self._keeps:
            self._buffers, self._kept = self._kept, self._buffers

    def _leave(self) -> None:
        held, self._formed = self._formed, []
        leave_group(held, self._device)

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


def _packed_sizes(layout: Layout) -> list[int]:
    sizes = [bucket.size_bytes for bucket in layout.buckets]
    return [max(sizes[first::SEND_BUFFERS]) for first in range(min(SEND_BUFFERS, len(sizes)))]
