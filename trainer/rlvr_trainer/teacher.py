"""Asks a teacher for one answer, or for the log-probs of one, whatever the endpoint does meanwhile.

    messages -> rate limit -> POST <endpoint>/chat/completions -> Answer | UnusableAnswerError
    token ids -> the same -> POST <endpoint>/completions, as vLLM has it -> a log-prob for each token of the completion
                   ^ 429 and 503 hold back all requests for their Retry-After (RFC 9110, section 10.2.3)

Passing failures (no connection, time-outs, 408, 429, 5xx) are tried again with growing waits until a deadline. A 200 that is no chat
completion, HTML of a proxy for example, is tried again a few times; then the answer is unusable, and so is one that the endpoint refuses
for its own sake (400, 413, 422). A wrong key, address or model (401, 403, 404) ends the job: nothing but a person can mend it.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, ClassVar, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from rlvr_api.process import TEACHER_API_KEY
from rlvr_api.stages import Teacher, TeacherEndpoint
from rlvr_api.wire import Message
from rlvr_trainer.context import BadInputError
from rlvr_trainer.storage.documents import first_fault

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 8 << 20
USELESS_TRIES = 3
"""How often a request is sent whose 200 is no chat completion."""
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
SHOWN_CHARACTERS = 200
WRONG_REQUEST = frozenset({400, 413, 422})
WRONG_SETTINGS = {
    401: f"set {TEACHER_API_KEY} to a key that is valid there",
    403: f"set {TEACHER_API_KEY} to a key that may use the model",
    404: "check teacher.endpoint and teacher.model",
}


class UnusableAnswerError(RuntimeError):
    """This request brings no answer, and others may."""


class TeacherUnreachableError(RuntimeError):
    """No answer came before the deadline."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the teacher said."""

    text: str
    complete: bool
    """It ended by itself."""
    tokens: int | None
    """Of prompt and answer, as the teacher counts; None when it does not say."""


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Words(_Lenient):
    content: str


class _Choice(_Lenient):
    message: _Words
    finish_reason: str | None = None


class _Usage(_Lenient):
    total_tokens: Annotated[int, Field(ge=0)]


class _Reply(_Lenient):
    NAME: ClassVar[str]


class _Completion(_Reply):
    NAME = "chat completion"
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None


class _TokenLogprob(_Lenient):
    logprob: float


class _ScoredChoice(_Lenient):
    prompt_logprobs: list[dict[str, _TokenLogprob] | None]


class _Scored(_Reply):
    NAME = "completion with prompt_logprobs"
    choices: Annotated[list[_ScoredChoice], Field(min_length=1)]


AnswerT = TypeVar("AnswerT", bound=_Reply)


class TeacherClient:
    """A teacher over HTTP. One event loop owns it.

    Args:
        key: bearer token; it is in no message.
        patience_seconds: from the first try of a request to its last.
    """

    def __init__(self, spec: TeacherEndpoint, key: str | None, client: httpx.AsyncClient, patience_seconds: float) -> None:
        self._spec, self._key, self._client, self._patience_seconds = spec, key, client, patience_seconds
        self._base = spec.endpoint.rstrip("/")
        self._interval = 60.0 / spec.requests_per_minute if spec.requests_per_minute is not None else 0.0
        self._next_at = 0.0
        """When the next request may be sent, on the monotonic clock."""

    async def ask(self, settings: Teacher, messages: Sequence[Message], seed: int) -> Answer:
        """One answer.

        Raises:
            UnusableAnswerError: the endpoint refuses this request, or answers with something else.
            TeacherUnreachableError: there was no answer in time.
            BadInputError: key, address or model are wrong.
        """
        request: dict[str, JsonValue] = {
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "seed": seed,
        }
        found = await self._exchange("chat/completions", request, _Completion)
        choice = found.choices[0]
        return Answer(choice.message.content, choice.finish_reason == "stop", found.usage.total_tokens if found.usage is not None else None)

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> tuple[float, ...]:
        """The teacher's log-prob of each token of a completion, at temperature 1.

        Raises:
            UnusableAnswerError: as `ask`; or what it answers is not about these tokens, as from a server that is not vLLM.
            TeacherUnreachableError, BadInputError: as `ask`.
        """
        request: dict[str, JsonValue] = {
            "prompt": [*prompt_ids, *completion_ids],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
            "add_special_tokens": False,
        }
        entries = (await self._exchange("completions", request, _Scored)).choices[0].prompt_logprobs[len(prompt_ids) :]
        try:
            values = tuple((entry or {})[str(token)].logprob for entry, token in zip(entries, completion_ids, strict=True))
        except (KeyError, ValueError) as error:
            raise UnusableAnswerError(
                f"{self._base}/completions gives no log-probs of the {len(completion_ids)} tokens that it was asked about ({error!r}): "
                "it is another tokenizer, or not vLLM"
            ) from None
        if not all(math.isfinite(value) for value in values):
            raise UnusableAnswerError(f"{self._base}/completions gives log-probs that are no numbers: {values}")
        return values

    async def _exchange(self, path: str, request: Mapping[str, JsonValue], answer: type[AnswerT]) -> AnswerT:
        url = f"{self._base}/{path}"
        deadline = time.monotonic() + self._patience_seconds
        wait, useless = FIRST_WAIT_SECONDS, 0
        while True:
            await self._take_turn(deadline)
            try:
                status, headers, body = await self._post(url, request)
            except (httpx.HTTPError, TimeoutError) as error:
                failure = f"{type(error).__name__} {error}".strip()
            else:
                if status == 200:
                    try:
                        return self._parse(url, body, answer)
                    except UnusableAnswerError:
                        useless += 1
                        if useless == USELESS_TRIES:
                            raise
                failure = f"status {status}: {self._shown(body)}"
                self._refuse(url, status, failure)
                if status in (429, 503) and (pause := retry_after(headers)) is not None:
                    self._next_at = max(self._next_at, time.monotonic() + pause)
            if time.monotonic() + wait > deadline:
                raise TeacherUnreachableError(f"{url} gave no answer in {self._patience_seconds:.0f} s (deadlines.stallSeconds): {failure}")
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    async def _take_turn(self, deadline: float) -> None:
        while (now := time.monotonic()) < self._next_at:
            if self._next_at > deadline:
                raise TeacherUnreachableError(
                    f"{self._base} asks to wait for {self._next_at - now:.0f} s more, beyond deadlines.stallSeconds; raise that, or lower "
                    "teacher.requestsPerMinute"
                )
            await asyncio.sleep(self._next_at - now)
        self._next_at = now + self._interval

    async def _post(self, url: str, request: Mapping[str, JsonValue]) -> tuple[int, httpx.Headers, bytes]:
        body_sent = {"model": self._spec.model, **request}
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        body = b""
        # httpx bounds each read, and a server that sends a byte a minute would pass: the whole answer is bounded here.
        async with (
            asyncio.timeout(self._spec.timeout_seconds),
            self._client.stream("POST", url, json=body_sent, headers=headers) as answer,
        ):
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    raise UnusableAnswerError(f"{url} answered with more than {MAX_ANSWER_BYTES >> 20} MiB")
            return answer.status_code, answer.headers, body

    def _parse(self, url: str, body: bytes, answer: type[AnswerT]) -> AnswerT:
        try:
            return answer.model_validate_json(body)
        except ValidationError as error:
            raise UnusableAnswerError(f"{url} answered with no {answer.NAME} ({first_fault(error)}): {self._shown(body)}") from None

    def _refuse(self, url: str, status: int, failure: str) -> None:
        if status in WRONG_SETTINGS:
            raise BadInputError(f"the teacher {self._spec.model} at {url}: {failure}: {WRONG_SETTINGS[status]}")
        if status in WRONG_REQUEST:
            raise UnusableAnswerError(f"{url}: {failure}")
        if status != 200 and status not in (408, 429) and status < 500:
            raise UnusableAnswerError(f"{url}: {failure}")

    def _shown(self, body: bytes) -> str:
        text = " ".join(body[: 4 * SHOWN_CHARACTERS].decode("utf-8", "replace").split())[:SHOWN_CHARACTERS]
        return text.replace(self._key, "***") if self._key else text


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None without one that can be read."""
    value = headers.get("retry-after", "").strip()
    if value.replace(".", "", 1).isdigit() and value.isascii():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
