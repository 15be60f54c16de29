"""The service's HTTP border, by requests made from its own OpenAPI description: whatever comes, the answer says what is wrong, never a 500.

In some bodies some or all items name an environment of the job and a key that it sealed, so that requests get beyond the first check.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.core import NotSet
from verifier_jobs import verifier_job

from rlvr_api.wire import ErrorResponse, SampleResponse, ScoreResponse
from rlvr_verifier.app import build_app
from rlvr_verifier.drain import Drain
from rlvr_verifier.environments import open_environments
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.pool import WorkerPool
from rlvr_verifier.seal import Seal
from rlvr_verifier.service import VerifierService

EXAMPLES = 60
"""Of each operation."""
TEXT = st.text(max_size=200) | st.sampled_from(["7", "\ud800", "\x00", "9" * 5_000, "[" * 5_000, "\\boxed{" * 500])


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    job = verifier_job([{"name": "sums", "arithmetic": {}}], {"canaryRate": 0.5})
    instruments, pool = Instruments(), WorkerPool(job.model_dump_json(), job.spec)
    service = VerifierService(job.spec, open_environments(job, {}), Seal(b"k" * 32), pool, instruments)
    with TestClient(build_app(service, instruments, Drain()), raise_server_exceptions=False) as made:
        yield made


def operations(client: TestClient) -> dict[tuple[str, str], Any]:
    description = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(description)
    return {(path, method): schema[path][method] for path, methods in description["paths"].items() for method in methods}


def plausible(data: st.DataObject, body: Any, key: str, numbers: "Iterator[int]") -> Any:
    """The body with a known environment, key and new ids in none, some or all of its items."""
    which = data.draw(st.sampled_from([st.just(False), st.booleans(), st.just(True)]))
    for item in body["items"] if isinstance(body, dict) and isinstance(body.get("items"), list) else ():
        if isinstance(item, dict) and data.draw(which):
            item["environment"] = "sums"
            if "taskKey" in item:
                item |= {"taskKey": key, "id": f"fuzz/{next(numbers)}", "completion": data.draw(TEXT)}
            else:
                item |= {"split": "train", "level": data.draw(st.sampled_from([0, 30, 31]))}
    return body


def send(client: TestClient, path: str, method: str, body: Any) -> Any:
    if method == "get":
        return client.get(path)
    # JSON escapes what is no Unicode, as a client in JavaScript would send it; an operation may take no body.
    text = "" if isinstance(body, NotSet) else json.dumps(body)
    return client.post(path, content=text, headers={"content-type": "application/json"})


def test_no_request_of_the_description_breaks_the_service(client: TestClient) -> None:
    found, numbers, seen = operations(client), itertools.count(), set[tuple[str, int]]()
    assert {("/v1/score", "post"), ("/v1/sample", "post"), ("/v1/environments", "get"), ("/readyz", "get")} <= set(found)
    sample = {"items": [{"environment": "sums", "split": "train", "seed": 1}]}
    key = client.post("/v1/sample", json=sample).json()["tasks"][0]["taskKey"]
    answers = {"/v1/sample": SampleResponse, "/v1/score": ScoreResponse}

    def check(path: str, method: str, operation: Any) -> None:
        @settings(
            max_examples=EXAMPLES if method == "post" else 1, suppress_health_check=list(HealthCheck), derandomize=True, deadline=None
        )
        @given(case=operation.as_strategy(), data=st.data())
        def answers_in_words(case: Any, data: st.DataObject) -> None:
            body = plausible(data, case.body, key, numbers) if method == "post" else None
            response = send(client, path, method, body)
            seen.add((path, response.status_code))
            assert response.status_code in (200, 400, 404, 409, 413, 422, 429), response.text
            if response.status_code != 200:
                assert ErrorResponse.model_validate_json(response.content).error
            elif path in answers:
                assert answers[path].model_validate_json(response.content)

        answers_in_words()

    for (path, method), operation in found.items():
        check(path, method, operation)
    assert seen >= {("/v1/score", 200), ("/v1/score", 404), ("/v1/score", 422), ("/v1/sample", 200), ("/v1/sample", 422)}


@pytest.mark.parametrize("path", ["/v1/score", "/v1/sample"])
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300) | st.recursive(st.none() | st.booleans() | st.floats() | TEXT, st.lists, max_leaves=8).map(
    lambda value: json.dumps({"items": value}).encode()
))  # fmt: skip
def test_no_body_at_all_breaks_it_either(client: TestClient, path: str, body: bytes) -> None:
    response = client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)  # 400: it is not UTF-8
    assert ErrorResponse.model_validate_json(response.content).error


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/nothing", 404), ("DELETE", "/v1/score", 405), ("PUT", "/metrics", 405)]
)
def test_refusals_of_the_framework_have_the_form_of_all_others(client: TestClient, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert f"{method} {path}: " in ErrorResponse.model_validate_json(response.content).error
