"""How long to wait after failures in a row: the one rule of both runtimes. Pure; the randomness comes in as an argument."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off with jitter, so that replicas that fail together do not return together."""

    base_seconds: float = 1.0
    maximum_seconds: float = 60.0
    jitter: float = 0.25
    """Largest relative deviation."""

    def delay_seconds(self, failures: int, unit_random: float) -> float:
        """Wait before the next start after `failures` (from 1) in a row; `unit_random` is uniform in [0, 1)."""
        delay = min(self.maximum_seconds, self.base_seconds * 2.0 ** min(failures - 1, 30))
        return delay * (1.0 + self.jitter * (2.0 * unit_random - 1.0))


DEFAULT_BACKOFF = Backoff()
