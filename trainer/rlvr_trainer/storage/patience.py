"""Waits out a store that is being restarted.

botocore repeats a request a few times within seconds, and gives up for good when many requests fail at once (its retry quota). A restart
takes longer and hits all requests at once. `Patience.call` repeats the request until the store answers or `outage_seconds` are over.
Every request that is made this way may be repeated: the callers see to that.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from botocore import exceptions as boto

log = logging.getLogger(__name__)

T = TypeVar("T")
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
_BROKEN_OFF = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.ResponseStreamingError)
_LASTING = {501, 507}
"""Not implemented, and disk full: these do not pass by themselves."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an outage may last."""

    outage_seconds: float = 60.0
    """From the first failure of a request; its last try may take longer by its own time-outs. 0 never repeats."""

    def call(self, request: Callable[[], T]) -> T:
        """The answer of `request`.

        Raises:
            BotoCoreError, ClientError: what the last try raised.
        """
        deadline: float | None = None
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return request()
            except (*_BROKEN_OFF, boto.ClientError) as error:
                now = time.monotonic()
                if deadline is None:
                    deadline = now + self.outage_seconds
                if not _may_pass(error) or now + pause > deadline:
                    raise
                log.warning("the object store fails (%s); trying again for %.0f s", error, deadline - now)
            # Jitter keeps the parts of one upload from knocking all at once.
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, boto.ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return status >= 500 and status not in _LASTING
    return True
