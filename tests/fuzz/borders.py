"""What arrives over HTTP: bodies of requests, as the framework hands them over, and keys of tasks."""

import json
import math
from typing import TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from rlvr_api.wire import EngineSet, SampleRequest, ScoreRequest, StepRequest, Transcript, Verdict, VerdictStatus
from rlvr_verifier.nemo_gym import VerifyRequest, answer, score_item
from rlvr_verifier.seal import Seal, UnknownKeyError
from tests.fuzz.target import Target, text_of

Model = TypeVar("Model", bound=BaseModel)
BODIES: tuple[type[BaseModel], ...] = (ScoreRequest, SampleRequest, StepRequest, Transcript, EngineSet, Verdict)
SEALED = "jtoV1hnJlt4NMPSTzFm041tklCTDW-3U9xh266eVWnBF9fSwWSOa0fc="
"""By `_SEAL`, of `{"answer": 7}` in version 1 of `sums`: the nonce is drawn, so each seal is another."""
_SEAL = Seal(b"k" * 32)


def receive(model: type[Model], data: bytes) -> tuple[JsonValue, Model] | None:
    """A body as the framework reads it, and the message that it is; None where it is refused."""
    try:
        body: JsonValue = json.loads(data)
    except (ValueError, RecursionError):  # a 400, or a 422
        return None
    try:
        return body, model.model_validate(body)
    except ValidationError:
        return None


def check_body(data: bytes) -> None:
    """The first byte picks the message. What is taken is the same again after a round trip, and from either of pydantic's readers."""
    model, body = BODIES[(data[0] if data else 0) % len(BODIES)], data[1:]
    if (received := receive(model, body)) is None:
        return
    message = received[1]
    written = message.model_dump_json()
    assert model.model_validate_json(written) == message
    assert model.model_validate(json.loads(written)) == message
    try:
        assert model.model_validate_json(body) == message
    except ValidationError as error:
        assert {one["type"] for one in error.errors()} == {"json_invalid"}, error


def check_verify(data: bytes) -> None:
    """A request of NeMo Gym that is taken can be judged and answered, and comes back with all that it had."""
    if (received := receive(VerifyRequest, data)) is None:
        return
    body, message = received
    item = score_item(message)
    assert item == score_item(VerifyRequest.model_validate(body))
    verdict = Verdict(id=item.id, status=VerdictStatus.PASS, score=1.0, verifier="sums", verifier_version="1")
    found = json.loads(answer(message, verdict).model_dump_json())
    assert isinstance(body, dict)
    assert (found["reward"], found["verdict"]["id"]) == (1.0, item.id)
    assert came_back({**body, "reward": 1.0, "verdict": found["verdict"]}, found), found


def came_back(given: JsonValue, found: JsonValue) -> bool:
    """Whether all that was given is in what was found; NaN and infinities are null there."""
    if isinstance(given, dict) and isinstance(found, dict):
        return all(key in found and came_back(value, found[key]) for key, value in given.items())
    if isinstance(given, list) and isinstance(found, list):
        return len(given) == len(found) and all(map(came_back, given, found))
    if isinstance(given, float) and not math.isfinite(given):
        return found is None
    return type(given) is type(found) and given == found


def check_seal(data: bytes) -> None:
    """Nothing is opened but what was sealed, letter by letter, and for its own environment and version."""
    key = text_of(data)
    for environment, version in (("sums", "1"), ("sums", "2"), ("sum", "s1")):
        try:
            opened = _SEAL.open(key, environment, version)
        except UnknownKeyError as error:
            assert len(key) < 16 or key not in str(error)
            assert (key, version) != (SEALED, "1")
            continue
        assert (key, environment, version) == (SEALED, "sums", "1")
        assert opened == {"answer": 7}


_ITEM = '"environment":"sums","taskKey":"k","id":"a/1","completion":"7 \\u00e9"'
_STEP = '"environment":"sums","taskKey":"k","transcript":{"actions":["1 + 2 ="],"observed":""}'
_MESSAGE = '{"type":"message","content":[{"type":"output_text","text":"7","x":[]}]}'
_RESPONSE = f'{{"id":"r","output":[{{"type":"reasoning"}},{_MESSAGE}],"incomplete_details":null}}'
_VERIFY = (
    f'{{"responses_create_params":{{"input":[]}},"response":{_RESPONSE},"environment":"sums","task_key":"k","extra":{{"a":[1.5,null]}}}}'
)
_WORDS = ('"items":[', '"truncated":true', '"audited":1', "NaN", "1e400", '"\\ud800"', "null", "{", "}", "[", "]", ",", ":", '"', "\\u0000")
TARGETS = {
    "body": Target(
        check_body,
        (
            f'\x00{{"items":[{{{_ITEM},"truncated":false}}]}}',
            '\x01{"items":[{"environment":"sums","split":"heldOut","seed":1,"level":2}]}',
            f'\x02{{"items":[{{{_STEP}}}]}}',
            '\x03{"actions":["a","b"]}',
            '\x04{"urls":{"rollout-0":"http://[::1]:80"}}',
            '\x05{"id":"a","status":"pass","score":0.5,"verifier":"v","verifierVersion":"1","seconds":1e-3}',
            '\x01{"items":[{"environment":"a","split":"train","seed":1e3}]}',
        ),
        (
            *_WORDS,
            '"train"',
            '"seed":',
            '"level":',
            '"score":',
            '"infra_error"',
            '"observed":',
            '"audit":',
            '"urls":',
            "9223372036854775808",
        ),
        max_bytes=400,
    ),
    "verify": Target(
        check_verify,
        (
            _VERIFY,
            _VERIFY.replace("null", '{"reason":"max_output_tokens"}', 1),
            _VERIFY.replace('"extra"', '"reward":1,"extra"'),
            _VERIFY.replace("1.5", '"\\ud800"'),
        ),
        (*_WORDS, '"reward":', '"verdict":', '"content":', '"message"', '"output_text"', '"text":', '"reason":', '"extra":'),
        max_bytes=600,
    ),
    "seal": Target(check_seal, (SEALED, SEALED[:-1], SEALED[:16], "", "AAAA"), ("=", "-", "_", "+", "/", "\n")),
}
