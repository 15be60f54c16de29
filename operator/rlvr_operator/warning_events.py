"""What only events tell: volumes that cannot be mounted, pods that were not created. Asked for rarely, and only of what does not run.

For one question the API server reads all events of a namespace, also those of other jobs. So there are few of them a second, whatever the
number of jobs, and a job that waits for long is asked about less and less.
"""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from rlvr_api.process import Role
from rlvr_operator.cluster import Cluster
from rlvr_operator.observe import Children, role_object
from rlvr_operator.render import Object, Owner

SHORTEST_SECONDS, LONGEST_SECONDS = 10.0, 120.0
"""Between two questions about one job; the time doubles from one to the other."""
QUESTIONS_PER_SECOND = 2.0
"""About all jobs together."""
SETTLING_SECONDS = 8.0
"""A pod, or an object that makes pods, is just starting when it is younger than this."""
MAX_ASKED = 3
"""Objects that are asked about at a time; replicas of a role fail alike."""
REASONS = ("FailedMount", "FailedCreate", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedCreatePodContainer")


@dataclass
class Inquiry:
    """What was asked about one job."""

    again_at: float = float("-inf")
    pause_seconds: float = SHORTEST_SECONDS
    found: dict[str, str] = field(default_factory=dict)


class WarningEvents:
    """Finds the latest warning about children that do not run."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._inquiries: dict[str, Inquiry] = {}
        self._free_at = float("-inf")

    async def find(self, owner: Owner, seen: Children, attempt: int) -> dict[str, str]:
        """Messages by the name of the object that they are about; those that are known while it is too early to ask again."""
        suspects = _suspects(owner, seen, attempt)[:MAX_ASKED]
        if not suspects:
            self.forget(owner.uid)
            return {}
        inquiry, now = self._inquiries.setdefault(owner.uid, Inquiry()), time.monotonic()
        if now >= max(inquiry.again_at, self._free_at):
            self._free_at = now + len(suspects) / QUESTIONS_PER_SECOND
            found = {}
            for kind, name in suspects:
                fields = f"involvedObject.kind={kind},involvedObject.name={name},type=Warning"
                events = await self._cluster.list("Event", owner.namespace, fields=fields)
                if (message := _latest(events)) is not None:
                    found[name] = message
            inquiry.found, inquiry.again_at = found, time.monotonic() + inquiry.pause_seconds
            inquiry.pause_seconds = min(2 * inquiry.pause_seconds, LONGEST_SECONDS)
        return inquiry.found

    def forget(self, uid: str) -> None:
        """The job runs, or is gone."""
        self._inquiries.pop(uid, None)


def _suspects(owner: Owner, seen: Children, attempt: int) -> list[tuple[str, str]]:
    settled = datetime.now(UTC) - timedelta(seconds=SETTLING_SECONDS)
    pods = [
        ("Pod", pod.name)
        for pod in seen.pods
        if pod.scheduled and not (pod.ready or pod.ended or pod.deleting or pod.waiting or pod.termination)
        and pod.created < settled
    ]  # fmt: skip
    owners = []
    for role in (Role.ROLLOUT, Role.LEARNER):
        slot = role_object(owner.name, role, attempt)
        item = seen.objects.get(slot)
        if item is None or seen.of(role, attempt) or not item["spec"].get("replicas", 1):
            continue
        if datetime.fromisoformat(item["metadata"]["creationTimestamp"]) < settled:
            owners.append(slot)
    return [*owners, *pods]


def _latest(events: list[Object]) -> str | None:
    told = [event for event in events if event.get("reason") in REASONS]
    latest = max(told, key=lambda event: event.get("lastTimestamp") or event["metadata"]["creationTimestamp"], default=None)
    return None if latest is None else f"{latest['reason']}: {' '.join(latest.get('message', '').split())}"
