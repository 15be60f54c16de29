"""Process groups with a bound on every wait: what NCCL and gloo differ in, and `torch.distributed` does not hide.

Groups are made directly from a store, so the global default group stays the caller's. Not covered: collectives other than broadcast.
"""

import socket
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

dist: Any = torch.distributed  # its types hide the stores and options


class BroadcastBrokenError(RuntimeError):
    """The group cannot be used any more; the message is that of the library."""


def form_group(collective: str, store: Any, rank: int, world_size: int, host: str, timeout_seconds: float) -> Any:
    """A connected group; `host` is the address under which the other members reach this one.

    Raises:
        BroadcastBrokenError: a member did not connect within the time.
    """
    backend: Any = dist.ProcessGroupNCCL if collective == "nccl" else dist.ProcessGroupGloo
    try:
        if collective == "nccl":
            options = backend.Options()
            # The library's own time-out ends the process; ours, in `wait_for`, ends the group.
            options._timeout = timedelta(days=7)
        else:
            options = backend._Options()
            options._devices = [backend.create_device(hostname=host)]
            options._timeout = timedelta(seconds=timeout_seconds)
        return backend(store, rank, world_size, options)
    except RuntimeError as error:
        raise BroadcastBrokenError(f"the weight group did not form within {timeout_seconds:g} s: {first_line(error)}") from error


def broadcast_from_learner(group: Any, buffer: torch.Tensor) -> Any:
    """Begin a broadcast of rank 0's `buffer` (uint8) into that of every other rank. Raises BroadcastBrokenError."""
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    try:
        return group.broadcast([buffer], options)
    except RuntimeError as error:
        raise BroadcastBrokenError(first_line(error)) from error


def wait_for(work: Any, group: Any, timeout_seconds: float, device: torch.device) -> None:
    """Wait until a broadcast is over and its buffer free. Raises BroadcastBrokenError: a member is dead, or the time is up."""
    try:
        if device.type == "cuda":
            _wait_on_device(work, group, timeout_seconds)
        else:
            work.wait()
    except RuntimeError as error:
        raise BroadcastBrokenError(first_line(error)) from error


def _wait_on_device(work: Any, group: Any, timeout_seconds: float) -> None:
    # `Work.wait` of NCCL orders streams and returns at once; a buffer may be used again only when the transfer is over.
    deadline = time.monotonic() + timeout_seconds
    while not work.is_completed():
        if time.monotonic() > deadline:
            group.abort()
            raise BroadcastBrokenError(f"a broadcast took longer than {timeout_seconds:g} s")
        time.sleep(0.0005)
    work.wait()


def address_towards(host: str, port: int) -> str:
    """The address of this machine on its way to `host`; those who reach the learner reach it there as well. Raises OSError."""
    # Connecting a datagram socket picks the route and sends nothing.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        address: str = probe.getsockname()[0]
        return address


def first_line(error: BaseException) -> str:
    """What an exception says, without the stack that the library appends."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
