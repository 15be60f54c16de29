"""One engine's part of an update that needs it to stand still.

pause(keep) -> start -> drop cached prefixes -> wait until its workers have staged everything -> order -> finish(version) -> resume, each
call with a time-out, and resume whatever happens, but for one case: an engine whose swap failed half-way holds no weights at all, stays
paused, and its requests end. What can be done while the last bytes arrive is done then; the next start closes a session opened in vain.
"""

import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass

from rlvr_trainer.weights.engine_client import EngineClient, EngineError
from rlvr_trainer.weights.protocol import SwapOrder

log = logging.getLogger("rlvr.weights")

PAUSE_ROUTE_SECONDS = 0.02
"""vLLM's pause route sleeps this long after the engine has stopped (`AsyncLLM.pause_generation`); it belongs to the pause."""


@dataclass(frozen=True, slots=True)
class SwapResult:
    """How a swap went."""

    swapped: bool
    """The engine computes with the new weights."""
    paused_seconds: float
    """From the engine's stop until the answer to resume."""
    error: str = ""
    """What failed, in words."""
    torn: bool = False
    """The swap failed half-way: only a restart helps."""


def swap_engine(client: EngineClient, order: SwapOrder, staged: "Future[bool]", timeout_seconds: float) -> SwapResult:
    """Pause an engine, make the staged weights live once `staged` is true, and let it go on; never raises EngineError."""
    try:
        client.pause()
    except EngineError as error:
        _resume(client)
        return SwapResult(False, 0.0, str(error))
    stopped = time.monotonic() - PAUSE_ROUTE_SECONDS
    problem, torn, swapped = "", False, False
    try:
        client.start_update(order.model_copy(update={"discard": True}))
        client.reset_prefix_cache()
        if staged.result(timeout_seconds):
            client.order_swap(order)
            torn = True
            client.finish_update(order.version)
            torn, swapped = False, True
    except TimeoutError:
        problem = f"engine {client.handle.name}: nobody said within {timeout_seconds:g} s whether version {order.version} arrived"
    except EngineError as error:
        problem = str(error)
    finally:
        stuck = _end_requests(client) if torn else _resume(client)
    return SwapResult(swapped, time.monotonic() - stopped, problem or stuck, torn)


def _resume(client: EngineClient) -> str:
    try:
        client.resume()
    except EngineError as error:
        return str(error)
    return ""


def _end_requests(client: EngineClient) -> str:
    try:
        client.abort_all()
    except EngineError as error:
        log.warning("%s", error)
    return ""
