"""Tokens in, tokens out: asks the rollout engines for the samples of one prompt.

Prompts go to the clean engine with the fewest requests in flight. An answer counts only when its engine is still clean, in the same
incarnation, once the answer is there: an update that was under way must first have passed its probe. Anything else is an
`EngineLostError`, and the group is issued again, whole, on another engine; what the lost engine had sampled is not used, whatever it was.
Engines come and go while prompts wait; where none is wanted, they wait for one without a bound.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import httpx
from pydantic import BaseModel, ConfigDict, JsonValue

from rlvr_api.spec import Sampling
from rlvr_trainer.collector.http import UnreachableError, post_once
from rlvr_trainer.rollout import VersionSpan

SUSPECT_SECONDS = 3.0
"""How long an engine that failed is asked nothing more. An engine that refuses at once is never busy, and would draw every prompt to it
until the publisher has found out that it is gone."""
POLL_SECONDS = 0.02
"""How often the state of an engine that is being updated is looked at."""
LOOK_SECONDS = 1.0
"""A request to an engine that is lost meanwhile is given up after this long: the other end may never say that it is gone."""


GONE = "was lost, quarantined or left out while it sampled"


class EngineLostError(RuntimeError):
    """The engine failed, or what it sampled cannot be trusted; another one must be asked."""


class EngineStates(Protocol):
    """What is known of the engines; safe to ask from any thread."""

    def url(self, name: str) -> str | None:
        """Base URL of an engine; None when it is not wanted any more."""
        ...

    def has_engines(self) -> bool:
        """Whether any engine is wanted."""
        ...

    def clean_engines(self) -> tuple[str, ...]:
        """Names of the engines that serve the current weights, proved by a probe."""
        ...

    def is_settled(self, name: str) -> bool:
        """No update of this engine is under way."""
        ...

    def incarnation(self, name: str) -> int:
        """A number that grows when the engine is lost, is quarantined or is not wanted any more."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion as the engine returned it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    spans: tuple[VersionSpan, ...]
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Completion:
    """All samples of one prompt, and who made them."""

    engine: str
    samples: tuple[Sample, ...]
    seconds: float


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Span(_Lenient):
    version: str | None = None
    start: int
    end: int


class _TokenLogprob(_Lenient):
    logprob: float


class _Logprobs(_Lenient):
    content: list[_TokenLogprob]


class _Choice(_Lenient):
    index: int
    token_ids: list[int]
    finish_reason: str | None
    logprobs: _Logprobs
    weight_versions: list[_Span]


class _GenerateResponse(_Lenient):
    choices: list[_Choice]


class EnginePool:
    """Chooses an engine for each prompt and reads its answer.

    Args:
        states: which engines there are, and which of them may serve.
        client: its time-outs bound a request.
        end_token_ids: tokens that end a completion; they are part of it.
    """

    def __init__(self, states: EngineStates, client: httpx.AsyncClient, sampling: Sampling, end_token_ids: Sequence[int]) -> None:
        self._states = states
        self._client = client
        self._sampling = sampling
        self._end_token_ids = list(end_token_ids)
        self._in_flight: Counter[str] = Counter()
        self._suspected_until: dict[str, float] = {}

    async def generate(self, prompt_ids: Sequence[int], samples: int, seed: int, timeout_seconds: float) -> Completion:
        """Sample `samples` completions of one prompt.

        Raises:
            EngineLostError: no clean engine in time, or the one that was asked failed.
        """
        engine = await self._choose(timeout_seconds)
        incarnation = self._states.incarnation(engine)
        started = time.monotonic()
        try:
            with self._counted(engine):
                response = await self._ask_while_there(engine, incarnation, prompt_ids, samples, seed)
        except EngineLostError:
            self._suspected_until[engine] = time.monotonic() + SUSPECT_SECONDS
            raise
        await self._wait_until_settled(engine, timeout_seconds)
        if self._states.incarnation(engine) != incarnation:
            raise EngineLostError(f"engine {engine} {GONE}")
        return Completion(engine, self._read(engine, response, samples), time.monotonic() - started)

    async def _choose(self, timeout_seconds: float) -> str:
        deadline = time.monotonic() + timeout_seconds
        while True:
            now = time.monotonic()
            clean = [name for name in self._states.clean_engines() if self._suspected_until.get(name, 0.0) <= now]
            if clean:
                return min(clean, key=lambda name: self._in_flight[name])
            if not self._states.has_engines():
                deadline = time.monotonic() + timeout_seconds
            if time.monotonic() > deadline:
                raise EngineLostError(f"no engine was ready within {timeout_seconds:.0f} s; the learner's status has the reasons")
            await asyncio.sleep(POLL_SECONDS)

    async def _wait_until_settled(self, engine: str, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not self._states.is_settled(engine):
            if time.monotonic() > deadline:
                raise EngineLostError(f"an update of engine {engine} did not end within {timeout_seconds:.0f} s")
            await asyncio.sleep(POLL_SECONDS)

    @contextmanager
    def _counted(self, engine: str) -> Iterator[None]:
        self._in_flight[engine] += 1
        try:
            yield
        finally:
            self._in_flight[engine] -= 1
            if not self._in_flight[engine]:
                del self._in_flight[engine]

    async def _ask_while_there(
        self, engine: str, incarnation: int, prompt_ids: Sequence[int], samples: int, seed: int
    ) -> _GenerateResponse:
        asked = asyncio.ensure_future(self._ask(engine, prompt_ids, samples, seed))
        try:
            while not (await asyncio.wait({asked}, timeout=LOOK_SECONDS))[0]:
                if self._states.incarnation(engine) != incarnation:
                    raise EngineLostError(f"engine {engine} {GONE}")
            return asked.result()
        finally:
            if not asked.done():
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)

    async def _ask(self, engine: str, prompt_ids: Sequence[int], samples: int, seed: int) -> _GenerateResponse:
        base = self._states.url(engine)
        if base is None:
            raise EngineLostError(f"engine {engine} {GONE}")
        url = f"{base}/inference/v1/generate"
        message: dict[str, JsonValue] = {
            "token_ids": [*prompt_ids],
            "sampling_params": {
                "n": samples,
                "temperature": self._sampling.temperature,
                "max_tokens": self._sampling.max_tokens,
                "seed": seed,
                "logprobs": 0,
                # Everything that would bend the distribution is named, so that no default of the engine can.
                "top_p": 1.0,
                "top_k": 0,
                "min_p": 0.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "repetition_penalty": 1.0,
                "stop_token_ids": [*self._end_token_ids],
                "ignore_eos": False,
            },
            "return_token_ids": True,
        }
        try:
            response = await post_once(self._client, url, message)
        except UnreachableError as error:
            raise EngineLostError(str(error)) from error
        if response.status_code != 200:
            raise EngineLostError(f"{url} answered {response.status_code}: {response.text[:300]}")
        try:
            return _GenerateResponse.model_validate_json(response.content)
        except ValueError as error:
            raise EngineLostError(f"{url} answered something else than samples: {error}") from error

    def _read(self, engine: str, response: _GenerateResponse, samples: int) -> tuple[Sample, ...]:
        if len(response.choices) != samples:
            raise EngineLostError(f"engine {engine} gave {len(response.choices)} samples of {samples}")
        return tuple(_read_choice(engine, choice) for choice in sorted(response.choices, key=lambda choice: choice.index))


def _read_choice(engine: str, choice: _Choice) -> Sample:
    """Raises `EngineLostError` when the parts of an answer do not fit together: such a sample cannot be trained on."""
    token_ids = tuple(choice.token_ids)
    logprobs = tuple(token.logprob for token in choice.logprobs.content)
    if choice.finish_reason not in ("stop", "length"):
        raise EngineLostError(f"engine {engine} ended a sample with {choice.finish_reason!r}")
    if not token_ids or len(logprobs) != len(token_ids):
        raise EngineLostError(f"engine {engine} gave {len(logprobs)} log-probs for {len(token_ids)} tokens")
    spans = tuple(_read_span(engine, span) for span in choice.weight_versions)
    bounds = [(span.start, span.end) for span in spans]
    covered = bool(bounds) and bounds[0][0] == 0 and bounds[-1][1] == len(token_ids)
    if not covered or any(a[1] != b[0] for a, b in pairwise(bounds)):
        raise EngineLostError(f"engine {engine} gave weight versions for {bounds} of {len(token_ids)} tokens")
    return Sample(token_ids, logprobs, spans, "stop" if choice.finish_reason == "stop" else "length")


def _read_span(engine: str, span: _Span) -> VersionSpan:
    if span.version is None or not span.version.isdigit():
        raise EngineLostError(f"engine {engine} sampled with weight version {span.version!r}, which was never published")
    return VersionSpan(int(span.version), span.start, span.end)
