"""Asks the judge of an environment, a language model behind an OpenAI-compatible endpoint, for one reply within one deadline.

    messages -> POST <endpoint>/chat/completions -> the reply | UnjudgedError

Passing failures (no connection, time-outs, 408, 429, 5xx, a 200 that is no chat completion) are tried again until the deadline; a 429 or
503 holds back all threads for its Retry-After. Whatever is left without a reply is an `UnjudgedError`, which becomes an `infra_error` and
never a zero. The key is in no message.
"""

import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Annotated

import httpx
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from rlvr_api.environments import Judge
from rlvr_api.process import JUDGE_API_KEY
from rlvr_api.wire import Message
from rlvr_verifier.environments.base import UnjudgedError

MAX_REPLY_BYTES = 1 << 20
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 10.0
ADVICE = {
    400: "has the judge room for the task, and does the endpoint know judge.structuredReply?",
    401: f"set {JUDGE_API_KEY} to a key that is valid there",
    403: f"set {JUDGE_API_KEY} to a key that may use the model",
    404: "check judge.endpoint and judge.model",
}


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Words(_Lenient):
    content: str


class _Choice(_Lenient):
    message: _Words


class _Completion(_Lenient):
    choices: Annotated[list[_Choice], Field(min_length=1)]


class _PassingError(Exception):
    """Worth another try."""

    def __init__(self, what: str, pause_seconds: float | None = None) -> None:
        super().__init__(what)
        self.pause_seconds = pause_seconds


class JudgeClient:
    """A judge over HTTP; several threads may ask at once.

    Args:
        key: bearer token.
    """

    def __init__(self, spec: Judge, key: str | None) -> None:
        self._spec = spec
        self._url = f"{spec.endpoint.rstrip('/')}/chat/completions"
        limits = httpx.Limits(max_connections=spec.requests_in_flight, max_keepalive_connections=spec.requests_in_flight)
        self._client = httpx.Client(headers={"authorization": f"Bearer {key}"} if key else {}, limits=limits)
        self._lock = threading.Lock()
        self._not_before = 0.0
        """On the monotonic clock: what the endpoint asked for last."""

    def ask(self, messages: Sequence[Message], deadline: float, schema: Mapping[str, JsonValue] | None = None) -> str:
        """One reply.

        Args:
            deadline: on the monotonic clock.
            schema: that the endpoint is to hold the reply to; None: it is not asked to.

        Raises:
            UnjudgedError: there is none in time, or the endpoint refuses.
        """
        wait = FIRST_WAIT_SECONDS
        while True:
            self._take_turn(deadline)
            try:
                return self._post(messages, deadline, schema)
            except _PassingError as failure:
                if failure.pause_seconds is not None:
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + failure.pause_seconds)
                if time.monotonic() + wait >= deadline:
                    raise UnjudgedError(f"the judge gave no reply in time: {failure}") from None
            time.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _take_turn(self, deadline: float) -> None:
        with self._lock:
            pause = self._not_before - time.monotonic()
        if pause > 0:
            if time.monotonic() + pause >= deadline:
                raise UnjudgedError(f"the judge asks to wait for {pause:.0f} s more, beyond judge.timeoutSeconds")
            time.sleep(pause)

    def _post(self, messages: Sequence[Message], deadline: float, schema: Mapping[str, JsonValue] | None) -> str:
        request: dict[str, JsonValue] = {
            "model": self._spec.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": 0.0,
            "max_tokens": self._spec.max_tokens,
        }
        if schema is not None:
            named: dict[str, JsonValue] = {"name": "verdict", "strict": True, "schema": dict(schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": named}
        body = b""
        try:
            # httpx bounds each read, and a server that sends a byte a minute would pass: the whole reply is bounded here.
            with self._client.stream("POST", self._url, json=request, timeout=max(0.001, deadline - time.monotonic())) as reply:
                for part in reply.iter_bytes():
                    body += part
                    if len(body) > MAX_REPLY_BYTES:
                        raise UnjudgedError(f"the judge's reply has more than {MAX_REPLY_BYTES} bytes")
                    if time.monotonic() > deadline:
                        raise _PassingError("its reply does not end")
        except httpx.HTTPError as error:
            raise _PassingError(type(error).__name__) from None
        if reply.status_code != 200:
            self._refuse(reply)
        try:
            return _Completion.model_validate_json(body).choices[0].message.content
        except ValidationError:
            raise _PassingError("its reply is no chat completion") from None

    def _refuse(self, reply: httpx.Response) -> None:
        status = reply.status_code
        if status in (408, 429) or status >= 500:
            after = reply.headers.get("retry-after", "").strip()
            # A date is left to the growing waits: clocks differ.
            raise _PassingError(f"status {status}", float(after) if after.isascii() and after.isdigit() and len(after) < 6 else None)
        advice = f": {ADVICE[status]}" if status in ADVICE else ""
        raise UnjudgedError(f"the judge {self._spec.model} refuses with status {status}{advice}")
