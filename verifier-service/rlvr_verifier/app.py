"""The service over HTTP. Every message is one of `rlvr_api.wire`; every error is an `ErrorResponse`."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from opentelemetry import propagate, trace
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rlvr_api.wire import EnvironmentsResponse, ErrorResponse, SampleRequest, SampleResponse, ScoreRequest, ScoreResponse
from rlvr_verifier.pool import PoolBusyError, WorkerPool
from rlvr_verifier.seal import UnknownKeyError
from rlvr_verifier.service import IdReusedError, UnknownEnvironmentError, VerifierService

MAX_BODY_BYTES = 64 << 20


class Instruments:
    """Prometheus metrics of one service."""

    def __init__(self, pool: WorkerPool) -> None:
        self.registry = CollectorRegistry()
        self.verdicts = Counter("rlvr_verifier_verdicts", "Verdicts", ["environment", "status"], registry=self.registry)
        self.seconds = Histogram("rlvr_verifier_verdict_seconds", "Scoring time with queueing", ["environment"], registry=self.registry)
        waiting = Gauge("rlvr_verifier_waiting_items", "Items in or before a worker", registry=self.registry)
        waiting.set_function(lambda: pool.waiting)


def build_app(service: VerifierService, pool: WorkerPool) -> FastAPI:
    """The HTTP interface."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        pool.close()

    app = FastAPI(title="RLVR verifier service", lifespan=lifespan)
    instruments = Instruments(pool)
    _add_errors(app)
    _add_work(app, service, instruments)

    @app.get("/v1/environments")
    def environments() -> EnvironmentsResponse:
        return EnvironmentsResponse(environments=service.describe())

    @app.get("/healthz")
    @app.get("/readyz")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(instruments.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_work(app: FastAPI, service: VerifierService, instruments: Instruments) -> None:
    tracer = trace.get_tracer("rlvr_verifier")

    @app.post("/v1/sample")
    def sample(message: SampleRequest, request: Request) -> SampleResponse:
        with tracer.start_as_current_span("verifier.sample", context=propagate.extract(dict(request.headers))):
            return SampleResponse(tasks=tuple(service.sample(item) for item in message.items))

    @app.post("/v1/score")
    async def score(message: ScoreRequest, request: Request) -> ScoreResponse:
        if len({item.id for item in message.items}) != len(message.items):
            raise IdReusedError("two items have the same id; give each completion an id of its own")
        with tracer.start_as_current_span("verifier.score", context=propagate.extract(dict(request.headers))) as span:
            for item in message.items:
                service.check(item)
            started = time.monotonic()
            verdicts = await asyncio.gather(*map(service.score, message.items))
            span.set_attribute("rlvr.items", len(verdicts))
        for item, verdict in zip(message.items, verdicts, strict=True):
            instruments.verdicts.labels(item.environment, verdict.status.value).inc()
            instruments.seconds.labels(item.environment).observe(time.monotonic() - started)
        return ScoreResponse(verdicts=tuple(verdicts))


def _add_errors(app: FastAPI) -> None:
    def answer(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
        body = ErrorResponse(error=" ".join(text.split())[:2_000]).model_dump_json()
        return Response(body, status_code=status, media_type="application/json", headers=headers)

    def handler(status: int, headers: dict[str, str] | None = None) -> Callable[[Request, Exception], Response]:
        return lambda _, error: answer(status, str(error), headers)

    app.add_exception_handler(UnknownEnvironmentError, handler(404))
    app.add_exception_handler(UnknownKeyError, handler(409))
    app.add_exception_handler(IdReusedError, handler(422))
    app.add_exception_handler(PoolBusyError, handler(429, {"retry-after": "1"}))
    app.add_exception_handler(ValueError, handler(422))

    def invalid_request(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return answer(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    app.add_exception_handler(RequestValidationError, invalid_request)

    @app.middleware("http")
    async def refuse_large_bodies(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "")
        if request.method == "POST" and (not length.isdigit() or int(length) > MAX_BODY_BYTES):
            return answer(
                413, f"the body needs a content-length of at most {MAX_BODY_BYTES} bytes, not {length or 'none'}; send fewer items"
            )
        return await call_next(request)
