"""The service over HTTP. Every message is one of `rlvr_api.wire`; every error is an `ErrorResponse`.

A gold answer may be in the message of an exception that nobody foresaw, so such messages go nowhere: the answer, the log and the span have
the exception's type and the line that raised it.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from opentelemetry import propagate, trace
from opentelemetry.trace import Span, Status, StatusCode, Tracer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from rlvr_api.wire import (
    EnvironmentsResponse,
    ErrorResponse,
    SampleRequest,
    SampleResponse,
    ScoreRequest,
    ScoreResponse,
    StepRequest,
    StepResponse,
)
from rlvr_verifier.drain import Drain
from rlvr_verifier.environments.base import EnvironmentSetupError, NoSuchTaskError
from rlvr_verifier.faults import fault
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.nemo_gym import add_nemo_gym
from rlvr_verifier.pool import PoolBusyError
from rlvr_verifier.seal import UnknownKeyError
from rlvr_verifier.service import IdReusedError, UnknownEnvironmentError, VerifierService

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 << 20


def build_app(service: VerifierService, instruments: Instruments, drain: Drain) -> FastAPI:
    """The HTTP interface."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="RLVR verifier service", lifespan=lifespan)
    _add_errors(app)
    _add_border(app, drain)
    _add_work(app, service, instruments)
    add_nemo_gym(app, service, instruments)

    @app.get("/v1/environments")
    def environments() -> EnvironmentsResponse:
        return service.describe()

    @app.get("/healthz")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    def ready() -> Response:
        if drain.begun:
            return _error(503, "the service is shutting down; ask another replica")
        return Response("{}", media_type="application/json")

    @app.get("/status")
    def status() -> Response:
        return Response(json.dumps({"sandbox": service.sandbox_status}), media_type="application/json")

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(instruments.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_work(app: FastAPI, service: VerifierService, instruments: Instruments) -> None:
    tracer = trace.get_tracer("rlvr_verifier")

    @app.post("/v1/sample")
    def sample(message: SampleRequest, request: Request) -> SampleResponse:
        with _span(tracer, "verifier.sample", request):
            return SampleResponse(tasks=tuple(service.sample(item) for item in message.items))

    @app.post("/v1/step")
    async def step(message: StepRequest, request: Request) -> StepResponse:
        with _span(tracer, "verifier.step", request):
            return StepResponse(results=tuple(await asyncio.gather(*map(service.step, message.items))))

    @app.post("/v1/score")
    async def score(message: ScoreRequest, request: Request) -> ScoreResponse:
        arrived = time.monotonic()
        if len({item.id for item in message.items}) != len(message.items):
            raise IdReusedError("two items have the same id; give each completion an id of its own")
        with _span(tracer, "verifier.score", request) as span:
            for item in message.items:
                service.check(item)
            verdicts = await asyncio.gather(*(service.score(item, arrived) for item in message.items))
            canaries = await service.canaries(message.items)
            span.set_attribute("rlvr.items", len(verdicts))
        for item, verdict in zip(message.items, verdicts, strict=True):
            instruments.note_verdict(item.environment, verdict)
        return ScoreResponse(verdicts=tuple(verdicts), canaries=canaries)


@contextmanager
def _span(tracer: Tracer, name: str, request: Request) -> Iterator[Span]:
    """A span under the caller's, that says of an exception its type alone."""
    parent = propagate.extract(dict(request.headers))
    with tracer.start_as_current_span(name, context=parent, record_exception=False, set_status_on_exception=False) as span:
        try:
            yield span
        except Exception as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    body = ErrorResponse(error=" ".join(text.split())[:2_000]).model_dump_json()
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def _add_errors(app: FastAPI) -> None:
    def handler(status: int, headers: dict[str, str] | None = None) -> Callable[[Request, Exception], Response]:
        return lambda _, error: _error(status, str(error), headers)

    app.add_exception_handler(UnknownEnvironmentError, handler(404))
    app.add_exception_handler(UnknownKeyError, handler(409))
    app.add_exception_handler(IdReusedError, handler(422))
    app.add_exception_handler(NoSuchTaskError, handler(422))
    app.add_exception_handler(EnvironmentSetupError, handler(422))
    app.add_exception_handler(PoolBusyError, handler(429, {"retry-after": "1"}))

    def invalid_request(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return _error(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    app.add_exception_handler(RequestValidationError, invalid_request)

    def refused(request: Request, error: Exception) -> Response:
        """A body that is not UTF-8, an unknown path, another method: the framework's own refusals, in the form of all others."""
        assert isinstance(error, HTTPException)
        headers = dict(error.headers) if error.headers is not None else None
        return _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}", headers)

    app.add_exception_handler(HTTPException, refused)


def _add_border(app: FastAPI, drain: Drain) -> None:
    @app.middleware("http")
    async def border(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Refuses large bodies, keeps the words of unforeseen errors, and sends clients away from a service that drains."""
        if request.method != "POST":
            return await call_next(request)
        length = request.headers.get("content-length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return _error(
                413, f"the body needs a content-length of at most {MAX_BODY_BYTES} bytes, not {length or 'none'}; send fewer items"
            )
        with drain:
            try:
                response = await call_next(request)
            except Exception as error:  # noqa: BLE001 - the border of the process
                logger.error("%s failed: %s", request.url.path, fault(error))
                response = _error(500, f"{request.url.path} failed with {type(error).__name__}; see the log of the verifier service")
        if drain.begun:
            response.headers["connection"] = "close"
        return response
