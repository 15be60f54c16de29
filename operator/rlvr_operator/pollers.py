"""What a job's processes say of themselves over HTTP: the learner's progress, the verifiers' queues; and the engines it is told of.

    every few seconds, for each job with a ready learner:  GET /status -> Progress;  PUT /engines when engines came or went
    while verifiers may be scaled:                         GET /metrics of each -> mean queue wait since the last look

Every wait is bounded, and no answer is an answer: the reconciler goes by what the kubelet says then.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from rlvr_api.process import LEARNER_STATUS_PORT, VERIFIER_PORT
from rlvr_api.status import Progress
from rlvr_operator.work_queue import Key

logger = logging.getLogger(__name__)

POLL_SECONDS = 3.0
TIMEOUT_SECONDS = 5.0
MAX_REQUESTS = 64
MAX_BODY_BYTES = 4 << 20
QUEUE_WAIT = "rlvr_verifier_queue_wait_seconds"
FORGET_SECONDS = 600.0
"""How long the progress of a learner that does not answer is kept."""
SILENT_SECONDS = 15.0
"""How long a learner is left alone after it did not answer, so that a few that hang do not hold up the rest."""


@dataclass(frozen=True)
class Target:
    """Whom to ask for one job."""

    learner_uid: str
    learner_address: str
    engine_urls: Mapping[str, str]
    """Engines that the learner should know, by name."""
    verifier_addresses: tuple[str, ...] = ()
    """Of verifiers whose queues are asked for; none where their number is fixed."""


@dataclass(frozen=True)
class Heard:
    """What one learner last said."""

    learner_uid: str
    progress: Progress
    step_since: float
    """Monotonic time at which it was first seen at its step."""
    heard: float


class Pollers:
    """Asks; `targets` says whom, `on_change` is told of jobs that have news."""

    def __init__(self, targets: Callable[[], Mapping[Key, Target]], on_change: Callable[[Key], None]) -> None:
        self._targets, self._on_change = targets, on_change
        self._heard: dict[Key, Heard] = {}
        self._waits: dict[Key, float | None] = {}
        self._sums: dict[tuple[Key, str], tuple[float, float]] = {}
        self._silent_until: dict[Key, float] = {}
        self._slots = asyncio.Semaphore(MAX_REQUESTS)

    def progress(self, key: Key, learner_uid: str) -> tuple[Progress | None, float | None]:
        """What the learner with this pod uid last said, and the seconds since it was first seen at its step."""
        heard = self._heard.get(key)
        if heard is None or heard.learner_uid != learner_uid:
            return None, None
        return heard.progress, time.monotonic() - heard.step_since

    def queue_wait_seconds(self, key: Key) -> float | None:
        """Mean wait of the completions that were judged between the last two looks; None without any."""
        return self._waits.get(key)

    async def run(self) -> None:
        """Ask for ever."""
        limits = httpx.Limits(max_connections=MAX_REQUESTS, max_keepalive_connections=MAX_REQUESTS)
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, limits=limits, trust_env=False) as client:
            while True:
                started, targets = time.monotonic(), self._targets()
                asked = {key: target for key, target in targets.items() if self._silent_until.get(key, 0.0) < started}
                await asyncio.gather(*(self._ask(client, key, target) for key, target in asked.items()))
                self._forget(targets)
                await asyncio.sleep(max(0.1, POLL_SECONDS - (time.monotonic() - started)))

    async def _ask(self, client: httpx.AsyncClient, key: Key, target: Target) -> None:
        async with self._slots:
            base = f"http://{_host(target.learner_address)}:{LEARNER_STATUS_PORT}"
            try:
                async with asyncio.timeout(4 * TIMEOUT_SECONDS):
                    await self._ask_learner(client, key, target, base)
                    if target.verifier_addresses:
                        self._waits[key] = await self._ask_verifiers(client, key, target.verifier_addresses)
            except (httpx.HTTPError, TimeoutError, ValueError) as error:
                logger.debug("%s/%s: %s does not answer as agreed: %s", *key, base, error)
                if isinstance(error, (httpx.TimeoutException, TimeoutError)):
                    self._silent_until[key] = time.monotonic() + SILENT_SECONDS

    async def _ask_learner(self, client: httpx.AsyncClient, key: Key, target: Target, base: str) -> None:
        progress = Progress.model_validate_json(_sized(await client.get(f"{base}/status")))
        before, now = self._heard.get(key), time.monotonic()
        known = before if before is not None and before.learner_uid == target.learner_uid else None
        moved = known is None or known.progress.step != progress.step
        self._heard[key] = Heard(target.learner_uid, progress, now if moved or known is None else known.step_since, now)
        if known is None or _news(known.progress) != _news(progress):
            self._on_change(key)
        if progress.engines.keys() != target.engine_urls.keys():
            answer = await client.put(f"{base}/engines", json={"urls": dict(target.engine_urls)})
            answer.raise_for_status()
            logger.info("%s/%s: told the learner of engines %s", *key, ", ".join(target.engine_urls) or "(none)")

    async def _ask_verifiers(self, client: httpx.AsyncClient, key: Key, addresses: tuple[str, ...]) -> float | None:
        texts = await asyncio.gather(*(client.get(f"http://{_host(host)}:{VERIFIER_PORT}/metrics") for host in addresses))
        seconds = count = 0.0
        for address, text in zip(addresses, texts, strict=True):
            now = _sum_and_count(_sized(text).decode())
            before = self._sums.get((key, address), now)
            self._sums[key, address] = now
            seconds, count = seconds + max(0.0, now[0] - before[0]), count + max(0.0, now[1] - before[1])
        return seconds / count if count else None

    def _forget(self, targets: Mapping[Key, Target]) -> None:
        oldest = time.monotonic() - FORGET_SECONDS
        self._heard = {key: heard for key, heard in self._heard.items() if key in targets or heard.heard > oldest}
        self._silent_until = {key: until for key, until in self._silent_until.items() if key in targets}
        self._waits = {key: wait for key, wait in self._waits.items() if key in targets}
        self._sums = {slot: sums for slot, sums in self._sums.items() if slot[0] in targets}


def _news(progress: Progress) -> object:
    """What of a progress is worth a look at the job."""
    return progress.model_dump(exclude={"last_updated", "eta_seconds", "wait_shares", "tokens_per_second", "message"})


def _sized(response: httpx.Response) -> bytes:
    response.raise_for_status()
    if len(response.content) > MAX_BODY_BYTES:
        raise ValueError(f"{response.url} answered with {len(response.content)} bytes")
    return response.content


def _sum_and_count(text: str) -> tuple[float, float]:
    seconds = count = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            seconds += sample.value if sample.name == f"{QUEUE_WAIT}_sum" else 0.0
            count += sample.value if sample.name == f"{QUEUE_WAIT}_count" else 0.0
    return seconds, count


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
