"""JSON over HTTP with bounded retries: what is passing is tried again until a deadline, what is refused is not.

Connection errors, time-outs, 429 and 5xx are passing; the waits grow with jitter and honour Retry-After. Every other status is a
refusal that says something about the request.
"""

import asyncio
import os
import time
from collections.abc import Mapping
from typing import TypeVar

import httpx
from opentelemetry import propagate
from pydantic import BaseModel, JsonValue

ResponseT = TypeVar("ResponseT", bound=BaseModel)

FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5.0


class RequestRefusedError(RuntimeError):
    """The server answered that the request itself is wrong; trying again would bring the same answer."""

    def __init__(self, url: str, status: int, body: str) -> None:
        super().__init__(f"{url} answered {status}: {body[:500]}")
        self.status = status


class UnreachableError(RuntimeError):
    """No usable answer came before the deadline."""


def post_headers() -> dict[str, str]:
    """Headers that carry the current trace context."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


async def post_model(
    client: httpx.AsyncClient, url: str, message: BaseModel, response: type[ResponseT], timeout_seconds: float
) -> ResponseT:
    """POST `message` and parse the answer, trying again while failures are passing.

    Raises:
        RequestRefusedError: a 4xx other than 429, or an answer that is not a `response`.
        UnreachableError: nothing usable within `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    wait = FIRST_WAIT_SECONDS
    body = message.model_dump_json().encode()
    while True:
        outcome = await _try_once(client, url, body)
        if isinstance(outcome, httpx.Response) and outcome.status_code == 200:
            try:
                return response.model_validate_json(outcome.content)
            except ValueError as error:
                raise RequestRefusedError(url, 200, f"not a {response.__name__}: {error}") from None
        if isinstance(outcome, httpx.Response) and outcome.status_code != 429 and outcome.status_code < 500:
            raise RequestRefusedError(url, outcome.status_code, outcome.text)
        pause = max(wait * (0.5 + int.from_bytes(os.urandom(2), "big") / 65_536), _retry_after(outcome))
        if time.monotonic() + pause > deadline:
            raise UnreachableError(f"{url} gave no answer in {timeout_seconds:.0f} s; the last failure was {_describe(outcome)}")
        await asyncio.sleep(pause)
        wait = min(wait * 2, LONGEST_WAIT_SECONDS)


async def post_once(client: httpx.AsyncClient, url: str, message: Mapping[str, JsonValue]) -> httpx.Response:
    """POST once; transport errors surface as `UnreachableError`."""
    try:
        return await client.post(url, json=message, headers=post_headers())
    except httpx.HTTPError as error:
        raise UnreachableError(f"{url}: {type(error).__name__} {error}".rstrip()) from error


async def _try_once(client: httpx.AsyncClient, url: str, body: bytes) -> httpx.Response | httpx.HTTPError:
    try:
        return await client.post(url, content=body, headers={"content-type": "application/json", **post_headers()})
    except httpx.HTTPError as error:
        return error


def _retry_after(outcome: httpx.Response | httpx.HTTPError) -> float:
    if isinstance(outcome, httpx.Response):
        value = outcome.headers.get("retry-after", "")
        if value.isdigit():
            return min(float(value), LONGEST_WAIT_SECONDS)
    return 0.0


def _describe(outcome: httpx.Response | httpx.HTTPError) -> str:
    if isinstance(outcome, httpx.Response):
        return f"status {outcome.status_code}: {outcome.text[:200]}"
    return f"{type(outcome).__name__} {outcome}".rstrip()
