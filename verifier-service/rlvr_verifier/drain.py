"""Stops without losing an item: a Deployment rolls while a run goes on.

    SIGTERM -> /readyz answers 503 and every answer closes its connection, so that clients turn to another pod
            -> as soon as nobody has asked for `QUIET_SECONDS`, and after `LINGER_SECONDS` at the latest: no new connections
            -> requests under way are finished, for at most `FINISH_SECONDS`

A second signal ends the process at once. What is cut off after the bound was never answered: the collector asks again, elsewhere, under the
same id.
"""

import logging
import math
import signal
import time
from types import FrameType

import uvicorn

logger = logging.getLogger(__name__)

QUIET_SECONDS = 1.0
LINGER_SECONDS = 5.0
"""Kubernetes takes an ending pod out of its Service within a second or so; a connection that comes later is refused, and tried again."""
FINISH_SECONDS = 22
"""With `LINGER_SECONDS` less than the 30 s that Kubernetes gives a pod."""


class Drain:
    """Whether the service is on its way out, and how long nobody has asked."""

    def __init__(self) -> None:
        self.begun = False
        self._under_way = 0
        self._last = time.monotonic()

    @property
    def quiet_seconds(self) -> float:
        """Since the last work began or ended; 0 while some is under way."""
        return 0.0 if self._under_way else time.monotonic() - self._last

    def __enter__(self) -> None:
        """Work begins."""
        self._under_way += 1

    def __exit__(self, *_: object) -> None:
        """Work is done."""
        self._under_way -= 1
        self._last = time.monotonic()


class DrainingServer(uvicorn.Server):
    """A server that lingers before it stops."""

    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain
        self._linger_until = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Linger at the first signal; end at the second."""
        if self._drain.begun:
            self.should_exit = self.force_exit = True
            return
        logger.info("%s: finishing what is under way", signal.Signals(sig).name)
        self._drain.begun = True
        self._linger_until = time.monotonic() + LINGER_SECONDS

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop listening; asked every 0.1 s."""
        if await super().on_tick(counter):
            return True
        return self._drain.begun and (self._drain.quiet_seconds >= QUIET_SECONDS or time.monotonic() >= self._linger_until)
