"""What a job's processes say of themselves over HTTP: the learner's progress, the verifiers' queues; and the engines it is told of.

    every few seconds, for each job with a ready learner:  GET /status -> Progress;  PUT /engines when engines came or went
    while verifiers may be scaled:                         GET /metrics of each -> mean queue wait since the last look

So many jobs are asked in a second and no more: where there are more, each waits longer for its turn, and the cost stays. Every wait is
bounded, and no answer is an answer: the reconciler goes by what the kubelet says then.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from rlvr_api.process import LEARNER_STATUS_PORT, VERIFIER_PORT
from rlvr_api.status import Progress
from rlvr_operator.work_queue import Key

logger = logging.getLogger(__name__)

POLL_SECONDS = 3.0
"""Between two questions to one job."""
JOBS_PER_SECOND = 50
"""Jobs that are asked in a second."""
TURN_SECONDS = 0.5
TIMEOUT_SECONDS = 5.0
MAX_REQUESTS = 64
MAX_BODY_BYTES = 4 << 20
QUEUE_WAIT = "rlvr_verifier_queue_wait_seconds"
FORGET_SECONDS = 600.0
"""How long the progress of a learner that does not answer is kept."""
SILENT_SECONDS = 15.0
"""Longest time for which a learner is left alone that did not answer as agreed, so that those that hang do not hold up the rest."""


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
        self._due: dict[str, float] = {}
        self._failures: Counter[str] = Counter()
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
        session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            connector=aiohttp.TCPConnector(limit=MAX_REQUESTS),
            cookie_jar=aiohttp.DummyCookieJar(),
            raise_for_status=True,
        )
        asking: dict[Key, asyncio.Task[None]] = {}
        try:
            while True:
                targets = self._targets()
                for key in [key for key, task in asking.items() if task.done()]:
                    asking.pop(key).result()
                for key in self._turn(targets, asking):
                    asking[key] = asyncio.create_task(self._ask(session, key, targets[key]))
                self._forget(targets)
                await asyncio.sleep(TURN_SECONDS)
        finally:
            for task in asking.values():
                task.cancel()
            await asyncio.gather(*asking.values(), return_exceptions=True)
            await session.close()

    def _turn(self, targets: Mapping[Key, Target], asking: Mapping[Key, object]) -> list[Key]:
        """Who is asked now: those whose turn it is, and of them those that have waited longest."""
        now = time.monotonic()
        waiting = ((self._due.get(target.learner_uid, 0.0), key) for key, target in targets.items() if key not in asking)
        due = sorted((at, key) for at, key in waiting if at <= now)
        return [key for _, key in due[: round(JOBS_PER_SECOND * TURN_SECONDS)]]

    async def _ask(self, session: aiohttp.ClientSession, key: Key, target: Target) -> None:
        base, uid = f"http://{_host(target.learner_address)}:{LEARNER_STATUS_PORT}", target.learner_uid
        try:
            async with self._slots, asyncio.timeout(4 * TIMEOUT_SECONDS):
                await self._ask_learner(session, key, target, base)
                if target.verifier_addresses:
                    self._waits[key] = await self._ask_verifiers(session, key, target.verifier_addresses)
            del self._failures[uid]
            self._due[uid] = time.monotonic() + POLL_SECONDS
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            logger.debug("%s/%s: %s does not answer as agreed: %s", *key, base, error)
            self._failures[uid] += 1
            wait = SILENT_SECONDS if isinstance(error, TimeoutError) else POLL_SECONDS * 2.0 ** min(self._failures[uid] - 1, 10)
            self._due[uid] = time.monotonic() + min(wait, SILENT_SECONDS)

    async def _ask_learner(self, session: aiohttp.ClientSession, key: Key, target: Target, base: str) -> None:
        progress = Progress.model_validate_json(await _get(session, f"{base}/status"))
        before, now = self._heard.get(key), time.monotonic()
        known = before if before is not None and before.learner_uid == target.learner_uid else None
        moved = known is None or known.progress.step != progress.step
        self._heard[key] = Heard(target.learner_uid, progress, now if moved or known is None else known.step_since, now)
        if known is None or _news(known.progress) != _news(progress):
            self._on_change(key)
        if progress.engines.keys() != target.engine_urls.keys():
            urls = {"urls": dict(target.engine_urls)}
            async with session.put(f"{base}/engines", json=urls, allow_redirects=False):
                pass
            logger.info("%s/%s: told the learner of engines %s", *key, ", ".join(target.engine_urls) or "(none)")

    async def _ask_verifiers(self, session: aiohttp.ClientSession, key: Key, addresses: tuple[str, ...]) -> float | None:
        texts = await asyncio.gather(*(_get(session, f"http://{_host(host)}:{VERIFIER_PORT}/metrics") for host in addresses))
        seconds = count = 0.0
        for address, text in zip(addresses, texts, strict=True):
            now = _sum_and_count(text.decode())
            before = self._sums.get((key, address), now)
            self._sums[key, address] = now
            seconds, count = seconds + max(0.0, now[0] - before[0]), count + max(0.0, now[1] - before[1])
        return seconds / count if count else None

    def _forget(self, targets: Mapping[Key, Target]) -> None:
        uids = {target.learner_uid for target in targets.values()}
        if self._due.keys() <= uids and self._heard.keys() <= targets.keys():
            return
        oldest = time.monotonic() - FORGET_SECONDS
        self._heard = {key: heard for key, heard in self._heard.items() if key in targets or heard.heard > oldest}
        self._due = {uid: at for uid, at in self._due.items() if uid in uids}
        self._failures = Counter({uid: count for uid, count in self._failures.items() if uid in uids})
        self._waits = {key: wait for key, wait in self._waits.items() if key in targets}
        self._sums = {slot: sums for slot, sums in self._sums.items() if slot[0] in targets}


def _news(progress: Progress) -> object:
    """What of a progress is worth a look at the job."""
    return progress.model_dump(exclude={"last_updated", "eta_seconds", "wait_shares", "tokens_per_second", "message"})


async def _get(session: aiohttp.ClientSession, url: str) -> bytes:
    """A body of bounded size."""
    async with session.get(url, allow_redirects=False) as response:
        body = bytearray()
        async for part in response.content.iter_chunked(1 << 16):
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise ValueError(f"{url} answers with more than {MAX_BODY_BYTES} bytes")
        return bytes(body)


def _sum_and_count(text: str) -> tuple[float, float]:
    seconds = count = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            seconds += sample.value if sample.name == f"{QUEUE_WAIT}_sum" else 0.0
            count += sample.value if sample.name == f"{QUEUE_WAIT}_count" else 0.0
    return seconds, count


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
