"""The service as a process: a queue that is measured, and a SIGTERM that loses no item."""

import asyncio
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from verifier_jobs import sums_and_math
from verifier_process import is_ready, start_service, write_job

from rlvr_api.process import ExitCode

DEADLINE_SECONDS = 60.0


@contextmanager
def running_service(folder: Path, workers: int = 1) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    job = sums_and_math(folder, [(f"Expand {n}(x+1).", f"{n}x+{n}") for n in range(2, 42)], workers=workers)
    process, url = start_service(write_job(job, folder))
    try:
        assert process.poll() is None
        yield process, url
    finally:
        process.kill()
        process.communicate()


def score_request(url: str, items: int) -> dict[str, object]:
    sample = {"items": [{"environment": "math", "split": "train", "seed": 3}]}
    task = httpx.post(f"{url}/v1/sample", json=sample, timeout=20).json()["tasks"][0]
    completion = r"\boxed{1+x}"
    return {
        "items": [
            {"id": f"i{n}", "environment": "math", "taskKey": task["taskKey"], "completion": completion + " " * n} for n in range(items)
        ]
    }


def read_metric(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=20).text
    return sum(sample.value for family in text_string_to_metric_families(text) for sample in family.samples if sample.name == name)


def test_sigterm_finishes_what_is_under_way_and_sends_new_work_away(tmp_path: Path) -> None:
    async def scenario(process: subprocess.Popen[str], url: str) -> None:
        body = await asyncio.to_thread(score_request, url, 200)
        async with httpx.AsyncClient(timeout=DEADLINE_SECONDS) as client:
            under_way = asyncio.create_task(client.post(f"{url}/v1/score", json=body))
            deadline = time.monotonic() + DEADLINE_SECONDS
            while await asyncio.to_thread(read_metric, url, "rlvr_verifier_in_flight_items") == 0:
                assert time.monotonic() < deadline
            process.send_signal(signal.SIGTERM)
            while (ready := await client.get(f"{url}/readyz")).status_code == 200:
                assert time.monotonic() < deadline
            assert (ready.status_code, "another replica" in ready.json()["error"]) == (503, True)
            late = await client.post(f"{url}/v1/sample", json={"items": [{"environment": "sums", "split": "train", "seed": 1}]})
            assert (late.status_code, late.headers["connection"]) == (200, "close"), "while it lingers, it still serves"
            verdicts = (await under_way).json()["verdicts"]
        assert [verdict["status"] for verdict in verdicts] == ["fail"] * 200
        assert await asyncio.to_thread(process.wait, 30) == ExitCode.DONE

    with running_service(tmp_path) as (process, url):
        asyncio.run(scenario(process, url))


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with running_service(tmp_path) as (process, url):
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while is_ready(url):
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        process.wait(10)


@pytest.mark.parametrize("items", [40])
def test_the_queue_wait_of_every_item_is_observed(tmp_path: Path, items: int) -> None:
    with running_service(tmp_path) as (_, url):
        started = time.monotonic()
        assert httpx.post(f"{url}/v1/score", json=score_request(url, items), timeout=DEADLINE_SECONDS).status_code == 200
        took = time.monotonic() - started
        assert read_metric(url, "rlvr_verifier_queue_wait_seconds_count") == items
        mean = read_metric(url, "rlvr_verifier_queue_wait_seconds_sum") / items
        assert 0.2 * took < mean < took, "with one worker, an item waits for half of the others on average"
        assert read_metric(url, "rlvr_verifier_queued_items") == read_metric(url, "rlvr_verifier_in_flight_items") == 0
