"""Where the processes of a learner meet: a TCP store of the lead, torch's default process group, and the lead's commands in order.

    lead:      Rendezvous(spec) -> followers are started with its port -> connect -> Ranks.tell
    follower:  join(host, port, rank) -> Inbox.take, one command after the other

Commands travel through the store and not by a collective: a process may wait for the next one for hours, and a collective that lasts is
an error.

On one node they meet on the loopback, on several at the lead's address, which a NetworkPolicy keeps to the job's own pods: the store asks
nobody who he is.
"""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh

from rlvr_api.spec import RLVRJobSpec
from rlvr_trainer.distributed.commands import Command
from rlvr_trainer.distributed.ranks import LEAD, Ranks
from rlvr_trainer.weights.collectives import family_of, own_address

dist: Any = torch.distributed  # its types hide the stores

LOOPBACK = "127.0.0.1"
SPEC = "spec"
JOIN_SECONDS = 60.0
"""A follower is started when the store is there."""
LOOK_SECONDS = 3600.0
"""A follower waits for commands as long as the store lives; it looks up once in this time."""
POLL_SECONDS = 0.01
INTERFACE = "GLOO_SOCKET_IFNAME"
LEAVING = "leaving"
ASK_SECONDS = 2.0


class Rendezvous:
    """The lead's store."""

    def __init__(self, spec: RLVRJobSpec, advertised_host: str = LOOPBACK, port: int = 0) -> None:
        """On a port of `advertised_host`, which the other nodes know; 0 is a free one.

        Raises:
            OSError: it does not name an address of this machine, or the port is taken.
        """
        self._spec = spec
        self.size = spec.learner.processes
        self.host = LOOPBACK if spec.learner.nodes == 1 else own_address(advertised_host)
        listener = socket.create_server((self.host, port), family=family_of(self.host), backlog=self.size)
        self.port: int = listener.getsockname()[1]
        limit = timedelta(seconds=spec.deadlines.provisioning_seconds)
        self._store: Any = dist.TCPStore(
            self.host, self.port, is_master=True, wait_for_workers=False, timeout=limit, master_listen_fd=listener.detach()
        )
        self._store.set(SPEC, spec.model_dump_json())
        self._watched = _client(self.host, self.port, limit.total_seconds())  # the store itself may be waiting
        self._told = 0

    def connect(self) -> Ranks:
        """The lead's place; waits for the others, at most `deadlines.provisioningSeconds`.

        Raises:
            RuntimeError: they did not join in time.
        """
        # A process takes seconds to begin, on a busy machine minutes; connecting then takes moments.
        self._store.wait([_joined(rank) for rank in range(1, self.size)], timedelta(seconds=self._spec.deadlines.provisioning_seconds))
        return _connect(self._store, LEAD, self._spec, self.tell)

    def tell(self, make: Callable[[], Command]) -> None:
        """Have the followers do what `make` says."""
        self._store.set(f"command/{self._told}", make().to_bytes())
        self._told += 1

    def is_asked_to_stop(self) -> bool:
        """Whether another node has to go."""
        return bool(self._watched.check([LEAVING]))

    def is_heard_until(self, deadline: float) -> bool:
        """Wait until all followers have taken the last command, or `deadline` (`time.monotonic`); whether they have."""
        while self._store.check([f"command/{self._told - 1}"]):
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True


class Inbox:
    """What the lead tells a follower, in order."""

    def __init__(self, store: Any, followers: int) -> None:
        self._store, self._followers, self._taken = store, followers, 0

    def take(self) -> Command:
        """Wait for the next command.

        Raises:
            RuntimeError: the lead is gone.
        """
        key = f"command/{self._taken}"
        while True:
            try:
                self._store.wait([key], timedelta(seconds=LOOK_SECONDS))
                break
            except dist.DistNetworkError:
                raise
            except dist.DistStoreError:  # nothing came in this time
                continue
        message: bytes = self._store.get(key)
        with suppress(dist.DistError):  # a lead that has nothing more to do ends once this is done
            if self._store.add(f"{key}/taken", 1) == self._followers:  # nobody needs it any more
                self._store.delete_key(f"{key}/taken")
                self._store.delete_key(key)
        self._taken += 1
        return Command.parse(message)


def join(host: str, port: int, rank: int, timeout_seconds: float = JOIN_SECONDS) -> tuple[RLVRJobSpec, Ranks, Inbox]:
    """A follower's job, place and commands; the lead is waited for.

    Raises:
        RuntimeError: the lead or another process is not there in time.
    """
    # Two connections: waiting for a command blocks all other use of one.
    meeting, commands = (_client(host, port, timeout_seconds) for _ in range(2))
    spec = RLVRJobSpec.model_validate_json(meeting.get(SPEC))
    meeting.set(_joined(rank), b"")
    return spec, _connect(meeting, rank, spec, _tell_nobody), Inbox(commands, spec.learner.processes - 1)


def ask_to_stop(host: str, port: int) -> bool:
    """Tell the lead that this node has to go; whether it was there to be told."""
    try:
        _client(host, port, ASK_SECONDS).set(LEAVING, b"")
    except dist.DistError:
        return False
    return True


def _client(host: str, port: int, timeout_seconds: float) -> Any:
    return dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_seconds))


def leave() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _connect(store: Any, rank: int, spec: RLVRJobSpec, tell: Callable[[Callable[[], Command]], None]) -> Ranks:
    size, on_gpus, place = spec.learner.processes, spec.learner.gpus > 0, rank % spec.learner.processes_per_node
    if spec.learner.nodes == 1:
        os.environ.setdefault(INTERFACE, "lo")  # all are on this machine, whose own name need not lead to it
    if on_gpus:
        torch.cuda.set_device(place)
    # What ends a run that stands still also ends a collective that does.
    limit = timedelta(seconds=spec.deadlines.stall_seconds)
    device = torch.device("cuda", place) if on_gpus else None
    dist.init_process_group(
        "nccl" if on_gpus else "gloo", store=store, rank=rank, world_size=size, timeout=limit, device_id=device
    )  # fmt: skip
    return Ranks(rank, size, init_device_mesh("cuda" if on_gpus else "cpu", (size,)), tell)


def _joined(rank: int) -> str:
    return f"joined/{rank}"


def _tell_nobody(make: Callable[[], Command]) -> None:
    """The lead has told everybody."""
