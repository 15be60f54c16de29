"""Lists and watches: what the API server holds is what the cache holds, whatever breaks in between."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from operator_jobs import manifest

from rlvr_api import names
from rlvr_operator import watch
from rlvr_operator.cache import Cache
from rlvr_operator.cluster import ExpiredError, GoneError, RefusedError, UnavailableError
from rlvr_operator.kinds import WATCHED, WATCHED_WITH_KUEUE
from rlvr_operator.watch import JOBS, Watches
from rlvr_operator.work_queue import WorkQueue

HERE, THERE = "research", "elsewhere"


class Server:
    """Lists and watches of an API server, as `Cluster` gives them."""

    def __init__(self):
        self.version, self.objects, self.streams, self.asked = 10, {}, {}, []
        self.refused, self.failures, self.unknown = set(), [], set()
        """Namespaces that may not be listed; errors of the next watches; kinds that are not served."""

    async def pages(self, kind, namespace, labels=""):
        self.asked.append(("list", kind, namespace))
        if kind in self.unknown:
            raise GoneError(f"the server could not find the requested resource ({kind})")
        if namespace in self.refused:
            raise RefusedError(f"{kind} is forbidden in {namespace}")
        found = [item for (found, where, _), item in self.objects.items() if found == kind and namespace in (None, where)]
        for start in range(0, max(len(found), 1), 2):
            yield found[start : start + 2], str(self.version)

    async def watch(self, kind, namespace, version, labels=""):
        self.asked.append(("watch", kind, version))
        if namespace in self.refused:
            raise RefusedError(f"{kind} is forbidden in {namespace}")
        if self.failures and kind == names.KIND:
            raise self.failures.pop(0)
        stream = self.streams.setdefault((kind, namespace), asyncio.Queue())
        while (event := await stream.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    def put(self, kind, namespace, name, tell=True):
        self.version += 1
        change = "MODIFIED" if (kind, namespace, name) in self.objects else "ADDED"
        meta = {"name": name, "namespace": namespace, "uid": f"{kind}-{name}", "resourceVersion": str(self.version)}
        meta["labels"] = {names.LABEL_JOB: name.partition("-")[0]}
        item = {**manifest(), "metadata": meta} if kind == names.KIND else {"kind": kind, "metadata": meta}
        self.objects[kind, namespace, name] = item
        if tell:
            self.tell(change, item)

    def remove(self, kind, namespace, name, tell=True):
        item = self.objects.pop((kind, namespace, name))
        self.version += 1
        if tell:
            self.tell("DELETED", item)

    def tell(self, change, item):
        for (kind, namespace), stream in self.streams.items():
            if kind == item["kind"] and namespace in (None, item["metadata"]["namespace"]):
                stream.put_nowait((change, item))

    def end(self, kind, namespace=None):
        self.streams[kind, namespace].put_nowait(None)

    def count(self, *question):
        return self.asked.count(question)


@asynccontextmanager
async def watching(server, monkeypatch, namespaces=(), resync_seconds=1000.0, children=WATCHED, streams=None):
    """Watches at work; yields cache and queue."""
    monkeypatch.setattr(watch, "SHORTEST_SECONDS", 0.0)
    monkeypatch.setattr(watch.BACKOFF.__class__, "delay_seconds", lambda *_: 0.01)
    cache, queue = Cache(), WorkQueue()
    watches = Watches(server, cache, queue, namespaces, resync_seconds, children)
    await watches.list_all()
    running = asyncio.create_task(watches.run())
    wanted = streams or (len(children) + 1) * len(set(namespaces or (None,)) - server.refused)
    await until(lambda: len(server.streams) >= wanted or running.done())
    try:
        yield cache, queue
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - bounded by the deadline
            await asyncio.sleep(0.001)


async def waiting(queue):
    """Keys on the queue, in order."""
    keys = []
    while len(queue):
        keys.append(await queue.get())
        queue.done(keys[-1])
    return keys


def test_jobs_are_listed_after_their_children_and_watched_from_the_version_of_the_list(monkeypatch):
    server = Server()
    server.put(names.KIND, HERE, "one")
    server.put("Pod", HERE, "one-0")

    async def scenario():
        async with watching(server, monkeypatch) as (cache, queue):
            assert [kind for _, kind, _ in server.asked[: (len(WATCHED) + 1)]][-1] == JOBS.name
            assert server.count("watch", "Pod", str(server.version)) == 1
            assert await waiting(queue) == [(HERE, "one")]
            server.put("Pod", HERE, "one-1")
            server.put(names.KIND, HERE, "two")
            await until(lambda: len(queue) == 2)
            assert sorted(await waiting(queue)) == [(HERE, "one"), (HERE, "two")]
            server.remove("Pod", HERE, "one-0")
            await until(lambda: len(queue) == 1)
            assert [item["metadata"]["name"] for item in cache.children((HERE, "one"))] == ["one-1"]

    asyncio.run(scenario())


def test_a_stream_that_ends_goes_on_from_its_last_version_without_a_list(monkeypatch):
    server = Server()

    async def scenario():
        async with watching(server, monkeypatch) as (cache, _):
            server.put("Pod", HERE, "one-0")
            version = server.version
            await until(lambda: cache.children((HERE, "one")))
            server.end("Pod")
            await until(lambda: server.count("watch", "Pod", str(version)) == 1)
            assert server.count("list", "Pod", None) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(("error", "lists"), [(ExpiredError("410: too old"), 2), (UnavailableError("reset"), 1)])
def test_only_a_version_that_is_too_old_needs_another_list(monkeypatch, error, lists):
    server = Server()
    server.put(names.KIND, HERE, "gone")
    server.failures = [error]

    async def scenario():
        async with watching(server, monkeypatch) as (cache, _):
            await until(lambda: sum(what == "watch" and kind == JOBS.name for what, kind, _ in server.asked) == 2)
            assert server.count("list", JOBS.name, None) == lists
            assert cache.jobs() == ((HERE, "gone"),)

    asyncio.run(scenario())


def test_what_no_watch_told_is_found_by_the_next_lists(monkeypatch):
    server = Server()
    server.put(names.KIND, HERE, "one")
    server.put("Pod", HERE, "one-0")

    async def scenario():
        async with watching(server, monkeypatch, resync_seconds=0.2) as (cache, _):
            server.remove("Pod", HERE, "one-0", tell=False)
            server.put("Pod", HERE, "one-1", tell=False)
            await until(lambda: [item["metadata"]["name"] for item in cache.children((HERE, "one"))] == ["one-1"])

    asyncio.run(scenario())


def test_every_job_is_looked_at_now_and_then_after_those_with_news(monkeypatch):
    server = Server()
    for name in ("one", "two", "three"):
        server.put(names.KIND, HERE, name)

    async def scenario():
        async with watching(server, monkeypatch, resync_seconds=0.2) as (_, queue):
            assert len(await waiting(queue)) == 3
            await until(lambda: len(queue) == 3)
            server.put(names.KIND, HERE, "new")
            await until(lambda: len(queue) == 4)
            assert (await waiting(queue))[0] == (HERE, "new")

    asyncio.run(scenario())


def test_a_namespace_that_is_refused_is_left_alone_and_the_others_go_on(monkeypatch):
    server = Server()
    server.put(names.KIND, HERE, "kept")
    server.put(names.KIND, THERE, "doomed")

    async def scenario():
        async with watching(server, monkeypatch, (HERE, THERE)) as (cache, _):
            server.refused = {THERE}
            server.end("Pod", THERE)
            await until(lambda: cache.jobs() == ((HERE, "kept"),))
            server.put(names.KIND, HERE, "new")
            await until(lambda: (HERE, "new") in cache.jobs())
            server.refused, asked = set(), len(server.asked)
            server.put("Pod", THERE, "doomed-0", tell=False)
            await until(lambda: (THERE, "doomed") in cache.jobs())
            again = [kind for what, kind, where in server.asked[asked:] if (what, where) == ("list", THERE)]
            assert again.index("Pod") < again.index(JOBS.name)
            assert cache.children((THERE, "doomed"))

    asyncio.run(scenario())


def test_a_namespace_that_was_never_allowed_keeps_nobody_from_starting(monkeypatch):
    server = Server()
    server.refused = {THERE}
    server.put(names.KIND, HERE, "kept")

    async def scenario():
        async with watching(server, monkeypatch, (HERE, THERE)) as (cache, _):
            assert cache.jobs() == ((HERE, "kept"),)
            server.refused = set()
            server.put(names.KIND, THERE, "late", tell=False)
            await until(lambda: (THERE, "late") in cache.jobs())

    asyncio.run(scenario())


@pytest.mark.parametrize("namespaces", [(HERE,), (HERE, THERE)])
def test_where_nothing_may_be_watched_it_ends_with_the_words_of_the_server(namespaces):
    server = Server()
    server.refused = set(namespaces)
    with pytest.raises(RefusedError, match="forbidden"):
        asyncio.run(Watches(server, Cache(), WorkQueue(), namespaces, 1000.0, WATCHED).list_all())


def test_the_only_namespace_that_is_refused_later_ends_it_too(monkeypatch):
    server = Server()

    async def scenario():
        watches = Watches(server, Cache(), WorkQueue(), (HERE,), 1000.0, WATCHED)
        await watches.list_all()
        server.refused = {HERE}
        async with asyncio.timeout(20):
            await watches.run()

    with pytest.raises(RefusedError, match="forbidden"):
        asyncio.run(scenario())


def test_kueue_may_come_and_go(monkeypatch):
    server = Server()
    server.unknown = {"Workload"}
    monkeypatch.setattr(watch, "UNSERVED_SECONDS", 0.01)
    server.put(names.KIND, HERE, "a")

    async def scenario():
        async with watching(server, monkeypatch, children=WATCHED_WITH_KUEUE, streams=len(WATCHED) + 1) as (cache, queue):
            assert not cache.is_served("Workload")
            server.unknown = set()
            server.put("Workload", HERE, "a-kueue")
            await until(lambda: cache.is_served("Workload") and ("Workload", None) in server.streams)
            assert [item["kind"] for item in cache.children((HERE, "a"))] == ["Workload"]
            await waiting(queue)
            server.unknown = {"Workload"}
            server.streams["Workload", None].put_nowait(GoneError("the server could not find the requested resource"))
            await until(lambda: not cache.is_served("Workload"))
            assert cache.children((HERE, "a")) == ()
            assert await waiting(queue) == [(HERE, "a")]
            server.put(names.KIND, HERE, "b")
            await until(lambda: cache.job((HERE, "b")) is not None)

    asyncio.run(scenario())
