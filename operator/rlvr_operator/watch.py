"""kopf, and nothing but its watches: every event of a job or a child goes into the cache and puts the job's key on the queue.

kopf's own handlers for creation, change and timers are not used: they write annotations, and end for good after an API error. A watch that
breaks off can miss deletions, so `Resync` lists everything at start, soon after, and every few minutes. When kopf's watching fails as a
whole the process ends; a restart costs seconds and no job notices.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import kopf

from rlvr_api import names
from rlvr_operator import metrics
from rlvr_operator.cache import Cache, name_of
from rlvr_operator.cluster import Cluster, ClusterError, GoneError
from rlvr_operator.kinds import CHILD_SELECTOR, KINDS, WATCHED, WATCHED_WITH_KUEUE, Kind
from rlvr_operator.kueue import Kueue
from rlvr_operator.work_queue import WorkQueue

logger = logging.getLogger(__name__)

JOBS = KINDS[names.KIND]
SECOND_LIST_SECONDS = 20.0
"""After this the watches are up, and what was deleted before they were is found missing."""


class Watches:
    """Fills a cache from watches."""

    def __init__(self, cache: Cache, queue: WorkQueue, namespaces: tuple[str, ...], kinds: tuple[Kind, ...] = WATCHED) -> None:
        self._cache, self._queue, self._namespaces, self._kinds = cache, queue, namespaces, kinds
        self.heard = time.monotonic()
        """Monotonic time of the last event or list."""

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until `stop` is set."""
        registry, settings = kopf.OperatorRegistry(), _settings(self._kinds)
        kopf.on.login(registry=registry)(_login)
        for kind in (JOBS, *self._kinds):
            kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=f"watch-{kind.plural}")(self._handler(kind))
        scope: dict[str, Any] = {"namespaces": self._namespaces} if self._namespaces else {"clusterwide": True}
        await kopf.operator(registry=registry, settings=settings, standalone=True, stop_flag=stop, **scope)

    def _handler(self, kind: Kind) -> Any:
        async def on_event(event: Mapping[str, Any], **_: Any) -> None:
            self.heard = time.monotonic()
            metrics.WATCH_AGE_SECONDS.set(0)
            item = {"kind": kind.name, "apiVersion": kind.api_version, **event["object"]}
            key = self._cache.remove(item) if event["type"] == "DELETED" else self._cache.put(item)
            if key is not None:
                self._queue.add(key)

        return on_event


class Resync:
    """Puts the cache right by lists, and has every job looked at now and then."""

    def __init__(
        self, cluster: Cluster, cache: Cache, queue: WorkQueue, watches: Watches, namespaces: tuple[str, ...], kueue: Kueue
    ) -> None:
        self._cluster, self._cache, self._queue, self._watches, self._kueue = cluster, cache, queue, watches, kueue
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)

    async def list_all(self) -> None:
        """List every kind once.

        Raises:
            ClusterError: a list failed; what was listed before it is in the cache.
            KueueArrivedError: Kueue is there since the last time.
        """
        for kind in (*(WATCHED_WITH_KUEUE if self._kueue.is_enabled else WATCHED), JOBS):
            try:
                await self._list(kind)
            except GoneError:
                if not kind.needs_kueue:
                    raise
                self._kueue.note(is_there=False)
            else:
                if kind.needs_kueue:
                    self._kueue.note(is_there=True)
            self._watches.heard = time.monotonic()

    async def _list(self, kind: Kind) -> None:
        newest, listed = self._cache.newest(), set()
        for namespace in self._namespaces:
            async for item in self._cluster.each(kind.name, namespace, labels="" if kind is JOBS else CHILD_SELECTOR):
                listed.add(name_of(item))
                if (key := self._cache.put(item)) is not None:
                    self._queue.add(key)
        for key in self._cache.retain(kind.name, listed, newest):
            self._queue.add(key)

    async def run(self, seconds: float) -> None:
        """List every `seconds`, for ever."""
        await asyncio.sleep(min(SECOND_LIST_SECONDS, seconds))
        while True:
            try:
                await self.list_all()
                for key in self._cache.jobs():
                    self._queue.add(key)
            except ClusterError as error:
                logger.warning("the lists failed and are tried again: %s", error)
            await asyncio.sleep(seconds)


def _login(**context: Any) -> kopf.ConnectionInfo | None:
    """The pod's own identity, or that of KUBECONFIG; kopf asks again when the API server does not take it any more."""
    return kopf.login_with_service_account(**context) or kopf.login_with_kubeconfig(**context)


def _settings(kinds: Iterable[Kind]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # else it is blind for a minute where it may not list CRDs and namespaces
    settings.watching.server_timeout = 240
    settings.watching.client_timeout = 300
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = 70
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.enforce_retry_after = True
    settings.peering.standalone = True
    settings.process.ultimate_exiting_timeout = 10
    for kind in kinds:
        settings.watching.label_selectors[(kind.group, kind.version, kind.plural) if kind.group else (kind.version, kind.plural)] = (
            CHILD_SELECTOR
        )
    return settings
