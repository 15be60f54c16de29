"""What the operator says of itself: `/healthz`, `/readyz` and `/metrics`.

Healthy is who still does its work: the watches are heard and no look takes for ever. An open port alone says nothing.
"""

import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from rlvr_operator import metrics

MAX_SILENCE_SECONDS = 900.0
"""Lists come every few minutes, also where nothing happens."""
MAX_LOOK_SECONDS = 300.0


class Health:
    """Whether the operator still works."""

    def __init__(self, heard: Callable[[], float], oldest_look_seconds: Callable[[], float]) -> None:
        self._heard, self._oldest_look_seconds = heard, oldest_look_seconds
        self.is_ready = False
        """The rights are there and all jobs were listed; a replica that waits for the Lease is ready, too."""

    def problem(self) -> str:
        """Why it is not healthy; empty when it is."""
        silence, oldest = time.monotonic() - self._heard(), self._oldest_look_seconds()
        metrics.WATCH_AGE_SECONDS.set(silence)
        if silence > MAX_SILENCE_SECONDS:
            return f"nothing was heard of the API server for {silence:.0f} s"
        if oldest > MAX_LOOK_SECONDS:
            return f"a look at a job has taken {oldest:.0f} s"
        return ""


async def serve(health: Health, port: int) -> web.AppRunner:
    """Serve until the runner is cleaned up."""

    async def healthz(_: web.Request) -> web.Response:
        problem = health.problem()
        return web.Response(text=problem or "ok", status=503 if problem else 200)

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok" if health.is_ready else "jobs are not listed yet", status=200 if health.is_ready else 503)

    async def exposition(_: web.Request) -> web.Response:
        health.problem()
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", exposition)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
