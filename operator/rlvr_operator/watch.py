"""Watches: every event of a job or a child goes into the cache and puts the job's key on the queue.

    list (in pages, at one version) -> watch from that version -> the stream ends: go on from the last version; too old (410): list anew

What a list does not show is gone, so a deletion that no watch told is found when everything is listed again, every few minutes. A stream
that says nothing for longer than the API server's bookmarks are apart is half open, and is opened anew.

A namespace whose lists are refused is left alone with its jobs and tried again, since it may have been deleted; the others go on. Where it
is the only one, or everything is watched, the refusal ends the process, which says so. Kueue may be installed, or removed, at any time.
"""

import asyncio
import logging
import random
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from rlvr_api import names
from rlvr_operator.backoff import Backoff
from rlvr_operator.cache import Cache, name_of
from rlvr_operator.cluster import Cluster, ClusterError, ExpiredError, GoneError, RefusedError, UnavailableError
from rlvr_operator.kinds import CHILD_SELECTOR, KINDS, Kind
from rlvr_operator.work_queue import WorkQueue

logger = logging.getLogger(__name__)

JOBS = KINDS[names.KIND]
BACKOFF = Backoff(base_seconds=0.5, maximum_seconds=30.0)
SHORTEST_SECONDS = 1.0
"""A stream that the server ends sooner is not opened anew at once."""
UNSERVED_SECONDS = 30.0
"""How often a kind that need not be there is looked for."""


class Reflector:
    """Holds one kind of one namespace, or of all, in the cache."""

    def __init__(self, cluster: Cluster, cache: Cache, queue: WorkQueue, kind: Kind, namespace: str | None, resync_seconds: float) -> None:
        self._cluster, self._cache, self._queue = cluster, cache, queue
        self.kind, self._namespace, self._resync_seconds = kind, namespace, resync_seconds
        self._labels = "" if kind is JOBS else CHILD_SELECTOR
        self._version: str | None = None
        self._list_due = self._failures = 0.0
        self.heard = time.monotonic()
        """Monotonic time of the last word of the API server."""

    async def list(self) -> None:
        """List everything, and forget what is not there.

        Raises:
            ClusterError: what was listed before it is in the cache.
        """
        try:
            await self._list()
        except GoneError as error:
            if not self.kind.needs_kueue:
                raise
            logger.debug("%s; asks again in %.0f s", error, UNSERVED_SECONDS)
            self._version, self.heard = None, time.monotonic()
            self._cache.note_served(self.kind.name, is_served=False)
            for key in self._cache.retain(self.kind.name, (), None, self._namespace):
                self._queue.add(key)
        else:
            self._cache.note_served(self.kind.name, is_served=True)

    async def _list(self) -> None:
        is_first, listed, version = self._version is None, set(), "0"
        async for items, whole in self._cluster.pages(self.kind.name, self._namespace, labels=self._labels):
            version = whole
            for item in items:
                listed.add(name_of(item))
                if (key := self._cache.put(item)) is not None:
                    self._queue.add(key, is_routine=is_first)
            await asyncio.sleep(0)
        for key in self._cache.retain(self.kind.name, listed, int(version), self._namespace):
            self._queue.add(key)
        self._version, self.heard = version, time.monotonic()
        self._list_due = self.heard + self._resync_seconds * random.uniform(0.9, 1.0)  # noqa: S311 - not all kinds at once

    async def run(self) -> None:
        """Watch for ever.

        Raises:
            RefusedError, GoneError: lists or watches are not allowed, or the kind or the namespace is no more.
        """
        while True:
            try:
                if self._version is None or time.monotonic() >= self._list_due:
                    await self.list()
                if self._version is None:
                    await asyncio.sleep(UNSERVED_SECONDS)
                else:
                    await self._watch(self._version)
            except GoneError:
                if not self.kind.needs_kueue:
                    raise
                self._version = None
            except UnavailableError as error:
                if isinstance(error, ExpiredError):
                    self._version = None
                self._failures += 1
                delay = BACKOFF.delay_seconds(int(self._failures), random.random())  # noqa: S311 - jitter
                logger.log(logging.INFO if self._failures == 1 else logging.WARNING, "%s; goes on in %.1f s", error, delay)
                await asyncio.sleep(delay)

    async def _watch(self, version: str) -> None:
        """Until the server ends the stream, or the next list is due."""
        opened = time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, self._list_due - opened)):
                async for change, item in self._cluster.watch(self.kind.name, self._namespace, version, labels=self._labels):
                    self._failures, self.heard = 0.0, time.monotonic()
                    self._version = item["metadata"]["resourceVersion"]
                    if change != "BOOKMARK":
                        key = self._cache.remove(item) if change == "DELETED" else self._cache.put(item)
                        if key is not None:
                            self._queue.add(key)
        except TimeoutError:
            return
        self.heard = time.monotonic()
        if self.heard - opened < SHORTEST_SECONDS:
            await asyncio.sleep(SHORTEST_SECONDS)

    def forget(self) -> None:
        """Nothing is known any more; jobs that are not known are left alone."""
        self._version = None
        if self.kind is JOBS:
            for key in self._cache.retain(self.kind.name, (), None, self._namespace):
                self._queue.add(key)


class Scope:
    """All kinds of one namespace, or of all."""

    def __init__(self, reflectors: Sequence[Reflector], namespace: str | None) -> None:
        self.name = "all namespaces" if namespace is None else f"namespace {namespace}"
        self._reflectors = reflectors
        self._is_listed = False

    @property
    def heard(self) -> float:
        """Monotonic time since which each kind was heard."""
        return min(reflector.heard for reflector in self._reflectors)

    async def list(self) -> None:
        """List every kind once, jobs last.

        Raises:
            ClusterError: a list failed; what was listed before it is in the cache.
        """
        for reflector in self._reflectors:
            await reflector.list()
        self._is_listed = True

    async def run(self) -> None:
        """Watch until something is refused, which is raised; jobs are left alone from then on."""
        if not self._is_listed:
            await self.list()
        self._is_listed = False
        await _until_one_fails(reflector.run() for reflector in self._reflectors)

    def forget(self) -> None:
        """See `Reflector.forget`."""
        for reflector in self._reflectors:
            reflector.forget()


class Watches:
    """Keeps a cache true."""

    def __init__(
        self, cluster: Cluster, cache: Cache, queue: WorkQueue, namespaces: tuple[str, ...], resync_seconds: float, children: Sequence[Kind]
    ) -> None:
        self._cache, self._queue, self._resync_seconds = cache, queue, resync_seconds
        order = (*children, JOBS)  # a job is known once its children are: without them it would look as if they were lost
        self._scopes = [
            Scope([Reflector(cluster, cache, queue, kind, namespace, resync_seconds) for kind in order], namespace)
            for namespace in namespaces or (None,)
        ]

    @property
    def heard(self) -> float:
        """Monotonic time since which all of some namespace was heard."""
        return max(scope.heard for scope in self._scopes)

    async def list_all(self) -> None:
        """List everything once.

        Raises:
            ClusterError: a list failed; if it was refused, then in every namespace.
        """
        refused = []
        for scope in self._scopes:
            try:
                await scope.list()
            except (RefusedError, GoneError) as error:
                refused.append(error)
                if len(self._scopes) > 1:
                    logger.warning("%s: %s; the others are watched, and this one is tried again", scope.name, error)
        if len(refused) == len(self._scopes):
            raise refused[0]

    async def run(self) -> None:
        """Watch for ever.

        Raises:
            ClusterError: a list or a watch was refused, and there is no other namespace.
        """
        await _until_one_fails([*map(self._keep, self._scopes), self._revisit()])

    async def _keep(self, scope: Scope) -> None:
        for failures in range(1, 1 << 62):
            try:
                await scope.run()
            except ClusterError as error:
                if len(self._scopes) == 1:
                    raise
                scope.forget()
                delay = BACKOFF.delay_seconds(failures, random.random())  # noqa: S311 - jitter
                logger.warning("%s: %s; its jobs are left alone, and it is tried again in %.0f s", scope.name, error, delay)
                await asyncio.sleep(delay)

    async def _revisit(self) -> None:
        """Look at every job now and then, also when nothing is heard of it."""
        while True:
            await asyncio.sleep(self._resync_seconds)
            for key in self._cache.jobs():
                self._queue.add(key, is_routine=True)


async def _until_one_fails(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Raises the first error, and ends the others."""
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()
