"""Time limits in processor time, so that a verdict does not depend on how busy the machine is.

A limit of N seconds is N of processor time of all threads. Wall time is bounded by `WALL_FACTOR` times as much, for what only sleeps; a
machine that gives a process less than half a core makes it late as well. Standard library alone: the untrusted side reads it, too.
"""

import time

WALL_FACTOR = 2.0
"""Wall seconds for each second of a limit."""


def describe_limit(seconds: float) -> str:
    """A limit in words."""
    return f"{seconds:g} s of processor time, or {WALL_FACTOR * seconds:g} s by the clock"


def processor_seconds(pid: int) -> float:
    """What a process has used, all its threads together.

    Raises:
        OSError: there is no such process.
    """
    # The clock of another process, as clock_getcpuclockid(3) makes it, which Python does not offer: CPUCLOCK_SCHED of `pid`.
    return time.clock_gettime((~pid << 3) | 2)
