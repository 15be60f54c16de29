"""Process groups with a bound on every wait, and waits that can be given up: what NCCL and gloo differ in, and `torch.distributed` hides.

gloo cannot be aborted, and a member that sends does not notice that the receiver's process is gone: its operation, and the group's
destructor, end with the operation's time-out. So waits are cut into slices, between which the caller may say that it is of no use any
more; a group that was given up is left to a thread that waits for its end. Groups are made directly from a store, so the global default
group stays the caller's. Not covered: collectives other than broadcast.
"""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

dist: Any = torch.distributed  # its types hide the stores and options

NAME_SECONDS, NAME_POLL_SECONDS = 60.0, 0.5
"""The name of a new pod is known to the cluster's DNS some seconds after its start."""
SLICE_SECONDS = 0.25
"""A wait that was given up goes on for this long at most."""


class BroadcastBrokenError(RuntimeError):
    """The group cannot be used any more; the message is that of the library."""


def never() -> bool:
    """For waits that are not given up."""
    return False


def form_group(
    collective: str, store: Any, rank: int, world_size: int, host: str, timeout_seconds: float, given_up: Callable[[], bool] = never
) -> Any:
    """A connected group; `host` is the address under which the other members reach this one.

    Raises:
        BroadcastBrokenError: a member did not connect within the time, or the wait was given up.
    """
    formed: Future[Any] = Future()

    def build() -> None:
        try:
            formed.set_result(_build(collective, store, rank, world_size, host, timeout_seconds))
        except RuntimeError as error:
            formed.set_exception(BroadcastBrokenError(f"the weight group did not form within {timeout_seconds:g} s: {first_line(error)}"))

    threading.Thread(target=build, name="weights-form", daemon=True).start()
    while True:
        try:
            return formed.result(SLICE_SECONDS)
        except FutureTimeoutError:
            if given_up():
                raise BroadcastBrokenError("the weight group was given up while it formed") from None


def _build(collective: str, store: Any, rank: int, world_size: int, host: str, timeout_seconds: float) -> Any:
    if collective == "nccl":
        nccl = dist.ProcessGroupNCCL.Options()
        # The library's own time-out ends the process; ours, in `wait_for`, ends the group.
        nccl._timeout = timedelta(days=7)
        return dist.ProcessGroupNCCL(store, rank, world_size, nccl)
    gloo = dist.ProcessGroupGloo._Options()
    gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    gloo._timeout = timedelta(seconds=timeout_seconds)
    return dist.ProcessGroupGloo(store, rank, world_size, gloo)


def leave_group(held: list[Any], device: torch.device) -> None:
    """Leave the groups that only `held` holds, at once; what the library still does with them ends in the background."""
    if device.type == "cuda":
        for group in held:
            group.abort()
    threading.Thread(target=held.clear, name="weights-leave", daemon=True).start()


def broadcast_from_learner(group: Any, buffer: torch.Tensor) -> Any:
    """Begin a broadcast of rank 0's `buffer` (uint8) into that of every other rank. Raises BroadcastBrokenError."""
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    try:
        return group.broadcast([buffer], options)
    except RuntimeError as error:
        raise BroadcastBrokenError(first_line(error)) from error


def wait_for(work: Any, group: Any, timeout_seconds: float, device: torch.device, given_up: Callable[[], bool] = never) -> None:
    """Wait until a broadcast is over and its buffer free.

    Raises:
        BroadcastBrokenError: a member is dead, the time is up, or the wait was given up. The buffer may still be in use.
    """
    deadline = time.monotonic() + timeout_seconds
    wait = _wait_slice_on_device if device.type == "cuda" else _wait_slice
    while not wait(work):
        reason = "was given up" if given_up() else f"took longer than {timeout_seconds:g} s" if time.monotonic() > deadline else ""
        if reason:
            if device.type == "cuda":
                group.abort()
            raise BroadcastBrokenError(f"a broadcast {reason}")


def _wait_slice(work: Any) -> bool:
    try:
        work.wait(timedelta(seconds=SLICE_SECONDS))
    except RuntimeError as error:
        # The end of the slice is an error, too; only the work itself says which one this is.
        if not work.is_completed():
            return False
        raise BroadcastBrokenError(first_line(error)) from error
    return True


def _wait_slice_on_device(work: Any) -> bool:
    # `Work.wait` of NCCL orders streams and returns at once; a buffer may be used again only when the transfer is over.
    end = time.monotonic() + SLICE_SECONDS
    while not work.is_completed():
        if time.monotonic() > end:
            return False
        time.sleep(0.0005)
    try:
        work.wait()
    except RuntimeError as error:
        raise BroadcastBrokenError(first_line(error)) from error
    return True


def own_address(host: str, wait_seconds: float = NAME_SECONDS) -> str:
    """The address of this machine that `host` names; a name that is not known yet is waited for.

    Raises:
        OSError: it names none within the time.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return _own_address(host)
        except OSError as error:
            if time.monotonic() > deadline:
                raise OSError(f"'{host}' does not name an address of this machine, after {wait_seconds:g} s: {error}") from error
        time.sleep(NAME_POLL_SECONDS)


def _own_address(host: str) -> str:
    found = {str(info[4][0]) for info in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    problems = []
    for address in sorted(found, key=lambda address: (":" in address, address)):
        try:
            socket.create_server((address, 0), family=family_of(address)).close()
        except OSError as error:
            problems.append(f"{address}: {error.strerror}")
        else:
            return address
    raise OSError("; ".join(problems))


def family_of(address: str) -> socket.AddressFamily:
    """The family of a numeric address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def address_towards(host: str, port: int) -> str:
    """The address of this machine on its way to `host`, an address; those who reach that reach this as well. Raises OSError."""
    # Connecting a datagram socket picks the route and sends nothing.
    with socket.socket(family_of(host), socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        address: str = probe.getsockname()[0]
        return address


def first_line(error: BaseException) -> str:
    """What an exception says, without the stack that the library appends."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
