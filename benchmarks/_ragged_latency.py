"""ASGI middleware of vLLM's server that answers late, as an engine does whose completions are long and of very different lengths.

A request waits for the largest of one exponential time for each of its samples, drawn from the request's seed: the same job has the same
delays. It does so once the tokens are there, so that they age as those of a long completion do.
"""

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MEAN_SECONDS_VARIABLE = "BENCHMARK_LATENCY_SECONDS"
"""Mean of one completion's delay."""
PATH = "/inference/v1/generate"
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class RaggedLatency:
    """Delays the answers to requests for samples."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._mean = float(os.environ[MEAN_SECONDS_VARIABLE])

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        body = bytearray()

        async def watch() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def delay(message: Message) -> None:
            if message["type"] == "http.response.start":
                sampling = json.loads(body)["sampling_params"]
                if sampling.get("seed") is not None:  # a probe after an update has none
                    await asyncio.sleep(draw_delay(sampling["seed"], sampling["n"], self._mean))
            await send(message)

        await self._app(scope, watch, delay)


def draw_delay(seed: int, samples: int, mean: float) -> float:
    """Seconds, the longest of the samples."""
    source = random.Random(seed)
    return max(source.expovariate(1.0) for _ in range(samples)) * mean
