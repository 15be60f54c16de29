"""The learner's HTTP interface: what the run says about itself while it goes on, and the engines that it is told to use.

    GET /status   progress, from the start on             GET /healthz  200 while the server runs
    GET /metrics  its numbers for Prometheus              GET /readyz   200 once the preflight has passed: engines may be started
    PUT /engines  an `EngineSet`: use these engines and no others

The learner's thread writes, the server's thread reads; nothing here can block or fail a step. Not covered: who may ask; the network
policies of the plan say it.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import JsonValue, ValidationError

from rlvr_api.status import Part, Progress, RewardTrust, WaitShares
from rlvr_api.wire import MAX_ENGINE_SET_BYTES, MAX_ENGINES, EngineSet, ErrorResponse
from rlvr_trainer.collector.collector import EventLoopThread
from rlvr_trainer.fleet import EngineFleet

RECENT_STEPS = 5
"""Steps that rates and shares are taken over."""


class ProgressBoard:
    """The latest numbers of the run, safe to use from any thread."""

    def __init__(self, stage: str, stages: int, steps: int, fleet: EngineFleet) -> None:
        self.fleet = fleet
        self.ready = threading.Event()
        """Set once the preflight has passed."""
        self._lock = threading.Lock()
        self._values: dict[str, JsonValue] = {"stage": stage, "stageIndex": 0, "stages": stages, "step": 0, "steps": steps}
        self._steps: deque[tuple[float, dict[Part, float], int]] = deque(maxlen=RECENT_STEPS)

    def update(self, **values: JsonValue) -> None:
        """Set fields of `Progress` by their Python names; None leaves a field as it is."""
        aliases = {name: field.alias or name for name, field in Progress.model_fields.items()}
        with self._lock:
            self._values.update({aliases[name]: value for name, value in values.items() if value is not None})

    def note_step(self, seconds: dict[Part, float], tokens: int) -> None:
        """Add one step's time by part and its generated tokens."""
        with self._lock:
            self._steps.append((time.time(), dict(seconds), tokens))
            total = sum(sum(parts.values()) for _, parts, _ in self._steps)
            if total <= 0:
                return
            shares: dict[Part, float] = {part: sum(parts.get(part, 0.0) for _, parts, _ in self._steps) / total for part in seconds}
            step, steps = self._values["step"], self._values["steps"]
            assert isinstance(step, int)
            assert isinstance(steps, int)
            self._values["waitShares"] = WaitShares(**_normalized(shares)).model_dump()
            self._values["bottleneck"] = max(shares, key=lambda part: shares[part])
            self._values["tokensPerSecond"] = sum(count for _, _, count in self._steps) / total
            self._values["etaSeconds"] = max(0, steps - step) * total / len(self._steps)

    def snapshot(self) -> Progress:
        """The progress now."""
        with self._lock:
            values = dict(self._values)
        return Progress.model_validate({**values, "engines": self.fleet.progress(), "lastUpdated": datetime.now(UTC)})


def _normalized(shares: dict[Part, float]) -> dict[Part, float]:
    return {part: min(1.0, max(0.0, share)) for part, share in shares.items()}


def build_app(board: ProgressBoard) -> FastAPI:
    """The learner's HTTP interface."""
    app = FastAPI(title="RLVR learner", openapi_url=None)

    @app.get("/status")
    def status() -> Progress:
        return board.snapshot()

    @app.get("/healthz")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    def readiness() -> Response:
        if board.ready.is_set():
            return JSONResponse({"status": "ok"})
        return _refusal(503, f"the preflight has not passed yet: {board.snapshot().message}")

    @app.put("/engines")
    async def want(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_ENGINE_SET_BYTES:
                return _refusal(413, f"the body is larger than {MAX_ENGINE_SET_BYTES} bytes: name at most {MAX_ENGINES} engines")
        try:
            wanted = EngineSet.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            return _refusal(422, f"not a set of engines: {'.'.join(map(str, first['loc']))}: {first['msg']}")
        board.fleet.want(wanted.urls)
        return JSONResponse({})

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(_exposition(board.snapshot()), media_type="text/plain; version=0.0.4")

    return app


def _refusal(status: int, error: str) -> Response:
    return JSONResponse(ErrorResponse(error=error).model_dump(), status)


def _exposition(progress: Progress) -> str:
    """Prometheus text format of the numeric fields."""
    lines = []
    for name in ("step", "steps", "reward", "pass_rate", "held_out_pass_rate", "tokens_per_second", "staleness", "weight_version"):
        value = getattr(progress, name)
        if value is not None:
            lines += [f"# TYPE rlvr_{name} gauge", f"rlvr_{name} {value}"]
    if progress.governor is not None:
        lines += ["# TYPE rlvr_governor_max_staleness gauge", f"rlvr_governor_max_staleness {progress.governor.max_staleness}"]
        lines += ["# TYPE rlvr_governor_paused gauge", f"rlvr_governor_paused {int(progress.governor.mode == 'paused')}"]
    if progress.reward_trust is not None:
        lines += _trust_lines(progress.reward_trust)
    if progress.wait_shares is not None:
        lines.append("# TYPE rlvr_learner_time_share gauge")
        lines += [f'rlvr_learner_time_share{{part="{part}"}} {share}' for part, share in progress.wait_shares]
    return "\n".join(lines) + "\n"


def _trust_lines(trust: RewardTrust) -> list[str]:
    lines = ["# TYPE rlvr_reward_trustworthy gauge"]
    lines += [f'rlvr_reward_trustworthy{{status="{status}"}} {int(status == trust.status)}' for status in ("True", "False", "Unknown")]
    lines += ["# TYPE rlvr_audits gauge", f"rlvr_audits {trust.audited}"]
    for name in ("hack_rate", "false_positive_rate", "false_negative_rate"):
        value = getattr(trust, name)
        if value is not None:
            lines += [f"# TYPE rlvr_{name} gauge", f'rlvr_{name}{{environment="{trust.environment}"}} {value}']
    return lines


@contextmanager
def serving(board: ProgressBoard, loop: EventLoopThread, host: str, port: int) -> Iterator[None]:
    """Serve the board while the block runs.

    Raises:
        OSError: the port is taken.
    """
    server = uvicorn.Server(uvicorn.Config(build_app(board), host=host, port=port, log_level="warning", lifespan="off"))
    task = loop.submit(server.serve())
    try:
        deadline = time.monotonic() + 10
        while not server.started:
            if task.done() or time.monotonic() > deadline:
                raise OSError(f"the status endpoint could not listen on {host}:{port}; is the port taken?")
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        task.exception(timeout=10)
