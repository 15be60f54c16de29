"""The service in the shape of a resources server of NeMo Gym: `POST /verify` and `POST /seed_session`.

    {"responses_create_params", "response", "environment", "task_key"} -> the last message's text -> verdict -> the same, with `reward`

`environment` and `task_key` are from `/v1/sample`, and stand in each row of the data set there; unknown fields come back as they were, NaN
as null. What could not be judged is a 503, never a reward of 0. Not covered: `/aggregate_metrics`, tools and sessions, of which these
environments have none.
"""

import hashlib
import time
from typing import Annotated, Literal, Self

from fastapi import FastAPI, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticSerializationError

from rlvr_api.model import Name
from rlvr_api.wire import MAX_COMPLETION_CHARACTERS, ErrorResponse, ScoreItem, Verdict, VerdictStatus
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.service import VerifierService


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="allow")


class Content(_Lenient):
    """A part of a message."""

    type: str
    text: Annotated[str, Field(max_length=MAX_COMPLETION_CHARACTERS)] = ""


class OutputItem(_Lenient):
    """A message, or something else: reasoning, a call of a tool."""

    type: str
    content: list[Content] | None = None


class IncompleteDetails(_Lenient):
    """Why a response ended early."""

    reason: str | None = None


class ModelResponse(_Lenient):
    """A response of OpenAI's Responses API, as far as it is looked at."""

    id: str = ""
    output: list[OutputItem]
    incomplete_details: IncompleteDetails | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.completion) > MAX_COMPLETION_CHARACTERS:
            raise ValueError(f"the parts of the last message have more than {MAX_COMPLETION_CHARACTERS} characters together")
        return self

    @property
    def completion(self) -> str:
        """The text of the last message; empty without one."""
        messages = [item for item in self.output if item.type == "message"]
        parts = (messages[-1].content or ()) if messages else ()
        return "".join(part.text for part in parts if part.type == "output_text")


class VerifyRequest(_Lenient):
    """POST /verify."""

    responses_create_params: dict[str, JsonValue]
    response: ModelResponse
    environment: Name
    task_key: Annotated[str, Field(max_length=16_384)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            self.model_dump_json()
        except PydanticSerializationError as error:
            raise ValueError("a field cannot come back: it is nested too deeply, or half of a surrogate pair") from error
        return self


class VerifyResponse(VerifyRequest):
    """The request, and what it is worth."""

    reward: Annotated[float, Field(ge=0.0, le=1.0)]
    verdict: Verdict


class SeedSessionResponse(BaseModel):
    """POST /seed_session: there is nothing to seed."""

    object: Literal["session"] = "session"


def add_nemo_gym(app: FastAPI, service: VerifierService, instruments: Instruments) -> None:
    """Add the two routes to the service's application."""

    @app.post("/seed_session")
    def seed_session() -> SeedSessionResponse:
        return SeedSessionResponse()

    @app.post("/verify", response_model=VerifyResponse)
    async def verify(message: VerifyRequest) -> VerifyResponse | Response:
        arrived, item = time.monotonic(), score_item(message)
        service.check(item)
        verdict = await service.score(item, arrived)
        await service.canaries((item,))
        instruments.note_verdict(item.environment, verdict)
        if verdict.status is VerdictStatus.INFRA_ERROR or verdict.score is None:
            body = ErrorResponse(error=f"not judged, so there is no reward: {verdict.reason}; ask again")
            return Response(body.model_dump_json(), 503, {"retry-after": "1"}, "application/json")
        return answer(message, verdict)


def answer(message: VerifyRequest, verdict: Verdict) -> VerifyResponse:
    """The request with what it is worth. A reward and a verdict that it already had, as a row that comes again has them, are replaced."""
    return VerifyResponse.model_validate({**message.model_dump(), "reward": verdict.score, "verdict": verdict})


def score_item(message: VerifyRequest) -> ScoreItem:
    """The completion in a request; the same request is the same item."""
    response = message.response
    named = "\0".join((message.environment, message.task_key, response.id, response.completion))
    return ScoreItem(
        id=f"verify/{hashlib.sha256(named.encode(errors='replace')).hexdigest()}",
        environment=message.environment,
        task_key=message.task_key,
        completion=response.completion,
        truncated=response.incomplete_details is not None and response.incomplete_details.reason == "max_output_tokens",
    )
