"""One replica acts at a time: a Lease, taken when it is free or has not been renewed for its duration.

    acquire (wait) -> renew every RENEW_SECONDS -> lost: the process ends at once
    release on a stop in order, so that the next replica does not wait for the Lease to run out

Time is measured from when *this* process first saw a Lease's version, so clocks of machines need not agree. A request takes shorter than
the time that is left, so a frozen connection cannot make two leaders.
"""

import asyncio
import logging
import time
from datetime import UTC, datetime

from rlvr_operator.cluster import Cluster, ClusterError, ConflictError
from rlvr_operator.metrics import IS_LEADER
from rlvr_operator.render import Object

logger = logging.getLogger(__name__)

DURATION_SECONDS = 15
RENEW_SECONDS = 3.0
RENEW_DEADLINE_SECONDS = 10.0
"""Without a renewal for this long the leader ends: before another may take over."""
CALL_SECONDS = 4.0


class LeadershipLostError(Exception):
    """The Lease could not be renewed in time, or somebody else holds it."""


class Election:
    """This process's part in the election for one Lease."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, identity: str) -> None:
        self._cluster, self._namespace, self._name, self._identity = cluster, namespace, name, identity
        self._seen_version = ""
        self._seen_at = 0.0
        self._held: Object | None = None

    async def acquire(self) -> None:
        """Return once this process is the leader."""
        IS_LEADER.labels(name=self._name).set(0)
        told = ""
        while True:
            try:
                holder = await self._try()
            except (ClusterError, TimeoutError) as error:
                holder = f"unknown ({error})"
            if holder == self._identity:
                IS_LEADER.labels(name=self._name).set(1)
                logger.info("leads with lease %s/%s as %s", self._namespace, self._name, self._identity)
                return
            if holder != told:
                logger.info("waits for lease %s/%s, held by %s", self._namespace, self._name, holder)
                told = holder
            await asyncio.sleep(RENEW_SECONDS)

    async def keep(self) -> None:
        """Renew for ever.

        Raises:
            LeadershipLostError: another process may act from now on; this one must not.
        """
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            problem = ""
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    self._held = await self._cluster.replace(self._lease(self._held))
                renewed = time.monotonic()
            except ConflictError as error:
                IS_LEADER.labels(name=self._name).set(0)
                raise LeadershipLostError(str(error)) from error
            except (ClusterError, TimeoutError) as error:
                problem = str(error) or type(error).__name__
            if time.monotonic() - renewed > RENEW_DEADLINE_SECONDS - CALL_SECONDS:
                IS_LEADER.labels(name=self._name).set(0)
                raise LeadershipLostError(f"not renewed for {time.monotonic() - renewed:.0f} s: {problem}")

    async def release(self) -> None:
        """Let the next replica lead at once."""
        if self._held is None:
            return
        free = self._lease(self._held)
        free["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._cluster.replace(free)
        except (ClusterError, TimeoutError) as error:
            logger.warning("cannot release the lease; the next replica waits %d s: %s", DURATION_SECONDS, error)

    async def _try(self) -> str:
        """Take the Lease if it is free; returns who holds it."""
        async with asyncio.timeout(CALL_SECONDS):
            found = await self._cluster.get("Lease", self._namespace, self._name)
        if found is None:
            async with asyncio.timeout(CALL_SECONDS):
                await self._cluster.create(self._lease(None))
            return await self._try()
        holder = str(found["spec"].get("holderIdentity") or "")
        version = found["metadata"]["resourceVersion"]
        if version != self._seen_version:
            self._seen_version, self._seen_at = version, time.monotonic()
        expired = time.monotonic() - self._seen_at > float(found["spec"].get("leaseDurationSeconds") or DURATION_SECONDS)
        if holder and holder != self._identity and not expired:
            return holder
        async with asyncio.timeout(CALL_SECONDS):
            self._held = await self._cluster.replace(self._lease(found))
        return self._identity

    def _lease(self, found: Object | None) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = {} if found is None else found["spec"]
        mine = before.get("holderIdentity") == self._identity
        meta = {"name": self._name, "namespace": self._namespace} if found is None else found["metadata"]
        spec: Object = {
            "holderIdentity": "" if found is None else self._identity,
            "leaseDurationSeconds": DURATION_SECONDS,
            "acquireTime": before.get("acquireTime", now) if mine else now,
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions", 0)) + (0 if mine else 1),
        }
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}
