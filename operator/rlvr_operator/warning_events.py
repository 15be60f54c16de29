"""What only events tell: volumes that cannot be mounted, pods that were not created. Asked for rarely, and only of what does not run."""

import time
from datetime import UTC, datetime

from rlvr_api.process import Role
from rlvr_operator.cluster import Cluster
from rlvr_operator.observe import Children, role_object
from rlvr_operator.render import Object, Owner

ASK_SECONDS = 10.0
"""Shortest time between two questions about one job."""
SETTLING_SECONDS = 3.0
"""A pod younger than this is just starting."""
MAX_ASKED = 3
"""Objects that are asked about at a time; replicas of a role fail alike."""
REASONS = ("FailedMount", "FailedCreate", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedCreatePodContainer")


class WarningEvents:
    """Finds the latest warning about children that do not run."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._asked: dict[str, tuple[float, dict[str, str]]] = {}

    async def find(self, owner: Owner, seen: Children, attempt: int) -> dict[str, str]:
        """Messages by the name of the object that they are about."""
        suspects = _suspects(owner, seen, attempt)
        if not suspects:
            self._asked.pop(owner.uid, None)
            return {}
        at, found = self._asked.get(owner.uid, (float("-inf"), {}))
        if time.monotonic() - at > ASK_SECONDS:
            found = {}
            for kind, name in suspects[:MAX_ASKED]:
                fields = f"involvedObject.kind={kind},involvedObject.name={name},type=Warning"
                events = await self._cluster.list("Event", owner.namespace, fields=fields)
                if (message := _latest(events)) is not None:
                    found[name] = message
            self._asked[owner.uid] = (time.monotonic(), found)
        return found


def _suspects(owner: Owner, seen: Children, attempt: int) -> list[tuple[str, str]]:
    now = datetime.now(UTC)
    pods = [
        ("Pod", pod.name)
        for pod in seen.pods
        if pod.scheduled and not (pod.ready or pod.ended or pod.deleting or pod.waiting or pod.termination)
        and (now - pod.created).total_seconds() > SETTLING_SECONDS
    ]  # fmt: skip
    owners = []
    for role in (Role.ROLLOUT, Role.LEARNER):
        slot = role_object(owner.name, role, attempt)
        item = seen.objects.get(slot)
        if item is not None and not seen.of(role, attempt) and item["spec"].get("replicas", 1):
            owners.append(slot)
    return [*owners, *pods]


def _latest(events: list[Object]) -> str | None:
    told = [event for event in events if event.get("reason") in REASONS]
    latest = max(told, key=lambda event: event.get("lastTimestamp") or event["metadata"]["creationTimestamp"], default=None)
    return None if latest is None else f"{latest['reason']}: {' '.join(latest.get('message', '').split())}"
