"""A proxy in front of the API server, in which requests fail as they do on a bad day.

with Proxy(url) as proxy:  proxy.weather = Weather("busy", requests=10)   -> the next ten requests are answered with 429
"""

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from typing import Literal, Self

from aiohttp import ClientSession, ClientTimeout, web

Kind = Literal["conflict", "busy", "error", "reset", "mute", "freeze"]
ANSWERS = {
    "conflict": (409, "Conflict", "somebody was faster"),
    "busy": (429, "TooManyRequests", "slow down"),
    "error": (500, "", "etcd is away"),
}
HOP_HEADERS = ("host", "connection", "transfer-encoding", "content-length", "content-encoding")
CALM_SECONDS = 30.0


@dataclass
class Weather:
    """What happens to requests; those for the Lease are spared, but by `freeze`."""

    kind: Kind | None = None
    requests: int = 0
    """How many fail before it is calm again. `mute` (watches say nothing) and `freeze` (no answer) last until taken back."""
    writes_only: bool = False
    hit: int = 0
    """How many have failed so far."""

    def strikes(self, request: web.Request) -> bool:
        """Whether this request is to fail."""
        spared = "/leases" in request.path or (self.writes_only and request.method == "GET") or "watch" in request.query
        if (self.kind not in ANSWERS and self.kind != "reset") or spared or self.hit >= self.requests:
            return False
        self.hit += 1
        return True


class Proxy:
    """Runs in a thread of its own."""

    def __init__(self, upstream: str) -> None:
        self.weather = Weather()
        self._upstream, self._ready = upstream, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(CALM_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.weather = Weather()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(CALM_SECONDS)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=8 << 20)
        app.router.add_route("*", "/{path:.*}", self._forward)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with ClientSession(timeout=ClientTimeout(total=None), auto_decompress=False) as self._session:
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        await self._while_frozen()
        weather = self.weather
        if weather.strikes(request):
            return self._fail(request, weather.kind or "error")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_HEADERS}
        body = await request.read() or None
        async with self._session.request(request.method, self._upstream + str(request.rel_url), headers=headers, data=body) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in (*HOP_HEADERS[:4],)}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):  # whoever asked has gone
                async for chunk in answer.content.iter_any():
                    await self._while_frozen()
                    if self.weather.kind != "mute" or "watch" not in request.query:
                        await response.write(chunk)
                await response.write_eof()
            return response

    async def _while_frozen(self) -> None:
        while self.weather.kind == "freeze":  # noqa: ASYNC110 - it is set from another thread
            await asyncio.sleep(0.1)

    def _fail(self, request: web.Request, kind: str) -> web.Response:
        if kind == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        code, reason, message = ANSWERS[kind]
        headers = {"Retry-After": "1"} if code == 429 else {}
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}
        return web.json_response(body, status=code, headers=headers)
