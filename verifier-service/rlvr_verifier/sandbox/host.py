"""`python -m rlvr_verifier.sandbox.host --socket PATH`: the sandbox as a container of its own, without answers, credentials or network.

    start:       measure in a slot what it keeps out -> listen
    connection:  say what was measured -> start a zygote whose standard input is the connection -> forget it

So the service talks to a zygote here as to one of its own; descriptors of items and of their pipes cross the Unix socket. A zygote ends
with its connection, and with this process. Whoever may open the socket may run code here, so its folder belongs to one pod alone.
"""

import argparse
import json
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from rlvr_verifier.sandbox.isolation import find_isolation
from rlvr_verifier.sandbox.probe import probe
from rlvr_verifier.sandbox.protocol import LENGTH
from rlvr_verifier.sandbox.slot import ENVIRONMENT, Slot, SlotLostError, zygote_command

logger = logging.getLogger(__name__)

REAP_SECONDS = 1.0
SOCKET_MASK = 0o007
"""The service is of the socket's group, and nobody else is asked in."""


def main() -> int:
    """Serve until asked to stop."""
    parser = argparse.ArgumentParser(prog="python -m rlvr_verifier.sandbox.host", description="Runs code for the verifier service.")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on, in a folder of the pod's own")
    parser.add_argument("--language", action="append", default=[], metavar="NAME", help="another one than Python; may be repeated")
    parser.add_argument("--level", action="append", default=[], help="one that an environment needs; may be repeated")
    options = parser.parse_args()
    path: Path = options.socket
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _stop)
    try:
        isolation, faults = find_isolation(options.level)
        slot = Slot.start(languages=options.language, isolation=isolation)
        try:
            report = probe(slot, path.parent)
        finally:
            slot.close()
        listener = _listen(path)
    except (OSError, SlotLostError) as error:
        print(f"error: the sandbox does not start: {error}", file=sys.stderr, flush=True)
        return 1
    logger.info("sandbox level %s, Landlock ABI %d, listening on %s", report.level, slot.landlock_abi, path)
    hello = {"open": sorted(report.open), "weak": {name: sorted(more) for name, more in report.weak.items()}, "faults": faults}
    serve(listener, json.dumps(hello).encode(), lambda: isolation.wrap(zygote_command(languages=options.language)))
    return 0


def serve(listener: socket.socket, hello: bytes, command: Callable[[], list[str]] = zygote_command) -> None:
    """Start a zygote for each connection, by its command, and wait for those that have ended."""
    while True:
        ready, _, _ = select.select([listener], [], [], REAP_SECONDS)
        if ready:
            connection, _ = listener.accept()
            with connection:
                try:
                    connection.sendall(LENGTH.pack(len(hello)) + hello)
                    _start_zygote(connection, command())
                except OSError as error:
                    logger.warning("a connection got no zygote: %s", error)
        _reap()


def _start_zygote(connection: socket.socket, command: list[str]) -> None:
    files = [
        (os.POSIX_SPAWN_DUP2, connection.fileno(), 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ]
    os.posix_spawnp(command[0], command, ENVIRONMENT, file_actions=files, setsid=True)


def _reap() -> None:
    """As process 1 of a container this one also inherits the items of zygotes that were killed."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if status not in (0, signal.SIGKILL):
            logger.warning("process %d ended with code %d", pid, os.waitstatus_to_exitcode(status))


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    before = os.umask(SOCKET_MASK)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(128)
    return listener


def _stop(_: int, __: FrameType | None) -> None:
    # The zygotes die with this process.
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
