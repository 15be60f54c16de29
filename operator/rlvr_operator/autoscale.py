"""How many verifiers a job needs, from how long completions wait for a scorer. Pure.

    mean queue wait above RAISE -> half as many again;  below LOWER for a while -> one less

The gap between the two bounds and the time between changes keep it from swinging. State is the Deployment itself: its replicas, and the
time of the last change in an annotation.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

RAISE_WAIT_SECONDS = 0.5
"""Above this the learner would notice."""
LOWER_WAIT_SECONDS = 0.05
RAISE_AFTER_SECONDS = 15.0
LOWER_AFTER_SECONDS = 300.0
"""Shortest time since the last change; a pod takes seconds to start, and a burst of verdicts lasts a step."""


@dataclass(frozen=True)
class Scale:
    """Replicas, and when they were last changed."""

    replicas: int
    changed: datetime | None


def next_scale(current: Scale, least: int, most: int, wait_seconds: float | None, now: datetime) -> Scale:
    """The scale that follows; the same object when nothing changes.

    Args:
        wait_seconds: mean time in the queue since the last look; None when no completion was judged.
    """
    bounded = min(max(current.replicas, least), most)
    if bounded != current.replicas:
        return Scale(bounded, now)
    since = timedelta.max if current.changed is None else now - current.changed
    if wait_seconds is not None and wait_seconds > RAISE_WAIT_SECONDS and since > timedelta(seconds=RAISE_AFTER_SECONDS):
        wanted = min(most, math.ceil(1.5 * current.replicas))
    elif (wait_seconds is None or wait_seconds < LOWER_WAIT_SECONDS) and since > timedelta(seconds=LOWER_AFTER_SECONDS):
        wanted = max(least, current.replicas - 1)
    else:
        wanted = current.replicas
    return current if wanted == current.replicas else Scale(wanted, now)
