"""Events: what happened to a job, for `kubectl describe`. Pure but for `Recorder`, which writes them.

Told are changes between two statuses: the phase, a new attempt, what it waits for. The same event again raises the count of the first.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from rlvr_api import names
from rlvr_api.conditions import Phase, Reason
from rlvr_api.status import RLVRJobStatus
from rlvr_operator.cluster import Cluster, ClusterError
from rlvr_operator.render import Object, Owner

logger = logging.getLogger(__name__)

COMPONENT = "rlvr-operator"
MAX_REMEMBERED = 10_000


@dataclass(frozen=True)
class Notice:
    """One event."""

    reason: str
    message: str
    is_warning: bool = False


def notices(before: RLVRJobStatus, after: RLVRJobStatus) -> Iterator[Notice]:
    """What a person would want to know of the change."""
    if after.execution_attempt > before.execution_attempt:
        words = f"; the last one: {after.message}" if after.message and before.execution_attempt else ""
        yield Notice("AttemptStarted", f"attempt {after.execution_attempt} of the learner begins{words}", is_warning=after.restarts > 0)
    starts = after.execution_attempt > before.execution_attempt and after.phase is Phase.PROVISIONING
    if after.phase is not before.phase and not starts:
        bad = after.phase in (Phase.FAILED, Phase.RECOVERING)
        yield Notice(str(after.phase), after.message or f"was {before.phase}", bad)
    elif after.reason not in (None, Reason.STARTING, before.reason) and after.message:
        yield Notice(str(after.reason), after.message, is_warning=True)


class Recorder:
    """Writes events; one that cannot be written is logged and forgotten."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._counts: dict[str, int] = {}

    async def record(self, owner: Owner, notice: Notice) -> None:
        """Write one event, or count it once more."""
        digest = hashlib.sha256(f"{owner.uid}/{notice.reason}/{notice.message}".encode()).hexdigest()[:16]
        name, now = f"{owner.name}.{digest}", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        logger.info("%s/%s: %s: %s", owner.namespace, owner.name, notice.reason, notice.message)
        if len(self._counts) > MAX_REMEMBERED:
            self._counts.clear()
        count = self._counts[name] = self._counts.get(name, 0) + 1
        try:
            if count == 1 and await self._cluster.create(_event(owner, notice, name, now)):
                return
            await self._cluster.merge("Event", owner.namespace, name, {"count": count, "lastTimestamp": now})
        except ClusterError as error:
            logger.warning("cannot write event %s: %s", name, error)


def _event(owner: Owner, notice: Notice, name: str, now: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": owner.namespace},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": owner.name,
            "namespace": owner.namespace,
            "uid": owner.uid,
        },
        "type": "Warning" if notice.is_warning else "Normal",
        "reason": notice.reason,
        "message": notice.message[:1024],
        "source": {"component": COMPONENT},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
