"""Loopback ports that stay ours for a whole run.

A free port that is only looked up can be lost before the server listens, and again at each restart, while its peers know it by number.
So each port is held by a bound socket that never listens: with SO_REUSEADDR on both sides (uvicorn, vLLM and Go's net all set it) the
server may bind and listen beside it, and the kernel gives the port to nobody who asks for any free one.
"""

import socket
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"


class PortReservation:
    """Ports held on loopback until `close`."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def reserve(self) -> int:
        """A port that no one else listens on.

        Raises:
            OSError: the machine has no free port.
        """
        held = socket.socket()
        self._sockets.append(held)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((HOST, 0))
        return int(held.getsockname()[1])

    def close(self) -> None:
        """Gives all ports back."""
        while self._sockets:
            self._sockets.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
