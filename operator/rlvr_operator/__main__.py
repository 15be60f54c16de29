"""`python -m rlvr_operator`: the operator of a cluster, or of some namespaces.

    settings -> API server -> list all -> Lease -> watches, workers, pollers -> until SIGTERM

A replica without the Lease watches and waits. Whatever fails as a whole ends the process: a restart costs seconds, and no job notices.
"""

import asyncio
import logging
import os
import signal
import sys
import time

from kubernetes.aio.config.config_exception import ConfigException

from rlvr_operator import metrics
from rlvr_operator.cache import Cache
from rlvr_operator.cluster import Cluster, ClusterError, ConflictError, UnavailableError
from rlvr_operator.election import Election, LeadershipLostError
from rlvr_operator.kinds import WATCHED, WATCHED_WITH_KUEUE
from rlvr_operator.kueue import Kueue
from rlvr_operator.reconcile import Reconciler
from rlvr_operator.server import Health, serve
from rlvr_operator.settings import Settings, SettingsError, read_settings
from rlvr_operator.tracing import reconcile_span, start_tracing
from rlvr_operator.watch import Watches
from rlvr_operator.work_queue import CONFLICT_BACKOFF, Key, WorkQueue

logger = logging.getLogger("rlvr_operator")

LIST_ATTEMPTS = 10
LIST_PAUSE_SECONDS = 3.0


def main() -> int:
    """Run the operator; returns an exit code."""
    try:
        settings = read_settings()
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        return asyncio.run(_run(settings))
    except ConfigException as error:
        print(f"error: no cluster: {error}; run in a pod, or set KUBECONFIG", file=sys.stderr)
        return 2
    except (LeadershipLostError, ClusterError) as error:
        logger.error("ends: %s", error)
        logging.shutdown()
        os._exit(1)  # at once: another replica may act from now on


async def _run(settings: Settings) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    queue, cache, phases = WorkQueue(), Cache(), metrics.JobPhases()
    tracing = start_tracing()
    try:
        async with await Cluster.connect() as cluster:
            children = WATCHED_WITH_KUEUE if settings.uses_kueue else WATCHED
            watches = Watches(cluster, cache, queue, settings.watch_namespaces, settings.resync_seconds, children)
            health = Health(lambda: watches.heard, queue.oldest_seconds)
            server = await serve(health, settings.http_port)
            try:
                await _list_patiently(watches)
                health.is_ready = True
                election = Election(cluster, settings.namespace, settings.lease_name, settings.pod_name)
                kueue = Kueue(cluster, cache, settings.uses_kueue)
                reconciler = Reconciler(cluster, cache, settings.site, queue, phases, kueue)
                await _lead(settings, stop, election, reconciler, watches, queue)
            finally:
                await server.cleanup()
    finally:
        tracing.shutdown()
    return 0


async def _list_patiently(watches: Watches) -> None:
    """The first lists: a missing right or CRD is said at once, and again until it is mended or patience ends."""
    for _ in range(LIST_ATTEMPTS - 1):
        try:
            await watches.list_all()
        except ClusterError as error:
            logger.warning("cannot list what is to be watched: %s", error)
            await asyncio.sleep(LIST_PAUSE_SECONDS)
        else:
            return
    await watches.list_all()


async def _lead(
    settings: Settings, stop: asyncio.Event, election: Election, reconciler: Reconciler, watches: Watches, queue: WorkQueue
) -> None:
    """Wait for the Lease, then act until told to stop."""
    stopped = asyncio.create_task(stop.wait())
    watching = asyncio.create_task(watches.run())
    acquiring = asyncio.create_task(election.acquire())
    tasks: set[asyncio.Task[object]] = {stopped, watching, acquiring}
    try:
        await asyncio.wait({stopped, watching, acquiring}, return_when=asyncio.FIRST_COMPLETED)
        _raise_first(watching, acquiring)
        if not stop.is_set():
            leading = {
                asyncio.create_task(election.keep()),
                asyncio.create_task(reconciler.pollers.run()),
                *(asyncio.create_task(_work(queue, reconciler)) for _ in range(settings.workers)),
            }
            tasks |= leading
            await asyncio.wait({stopped, watching, *leading}, return_when=asyncio.FIRST_COMPLETED)
            _raise_first(watching, *leading)
            logger.info("stops on request; jobs go on without it")
            await _end({task for task in tasks if task not in (stopped, watching)})
            await election.release()
    finally:
        await _end(tasks)


def _raise_first(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled() and task.exception() is not None:
            raise task.exception() or RuntimeError


async def _end(tasks: set[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _work(queue: WorkQueue, reconciler: Reconciler) -> None:
    while True:
        key = await queue.get()
        started = time.monotonic()
        try:
            with reconcile_span(key, reconciler.uid(key)):
                result = await _look(queue, reconciler, key)
            metrics.RECONCILES.labels(controller=metrics.CONTROLLER, result=result).inc()
        finally:
            metrics.RECONCILE_SECONDS.labels(controller=metrics.CONTROLLER).observe(time.monotonic() - started)
            queue.done(key)


async def _look(queue: WorkQueue, reconciler: Reconciler, key: Key) -> str:
    """One look; returns its result as controller-runtime names them."""
    try:
        await reconciler.reconcile(key)
    except ConflictError as error:
        logger.debug("%s/%s: %s; looks again in %.1f s", *key, error, queue.retry(key, backoff=CONFLICT_BACKOFF))
        return "requeue"
    except ClusterError as error:
        metrics.RECONCILE_ERRORS.labels(controller=metrics.CONTROLLER).inc()
        wait = error.retry_after_seconds if isinstance(error, UnavailableError) else None
        delay = queue.retry(key, wait or 0.0)
        logger.warning("%s/%s: %s; looks again in %.1f s", *key, error, delay)
        return "error"
    except Exception:  # the border of a look: a bug that one job meets must not keep the others waiting
        metrics.RECONCILE_ERRORS.labels(controller=metrics.CONTROLLER).inc()
        logger.exception("%s/%s: the look failed; looks again in %.1f s", *key, queue.retry(key))
        return "error"
    queue.forget(key)
    return "success"


if __name__ == "__main__":
    sys.exit(main())
