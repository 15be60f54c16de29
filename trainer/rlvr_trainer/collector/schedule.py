"""Which task an index means: a pure function of (seed, stage, index), so that a re-issued index is the same task.

Level and, with `mixing`, environment also depend on how the run went; both are kept with the admission.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

from rlvr_api.environments import EnvironmentSpec


class Schedule:
    """Draws an environment and a seed for every index of a stage."""

    def __init__(self, seed: int, stage: str, environments: Sequence[EnvironmentSpec]) -> None:
        self._root = f"{seed}/{stage}"
        self._names = [environment.name for environment in environments]
        self._bounds = list(accumulate(environment.weight for environment in environments))

    def environment(self, index: int, shares: Mapping[str, float] | None = None) -> str:
        """Name of the environment, drawn by its share.

        Args:
            shares: by name, 1 together; None: those of the weights.
        """
        bounds = self._bounds if shares is None else list(accumulate(shares[name] for name in self._names))
        point = _hash(f"{self._root}/{index}/environment") / 2**63 * bounds[-1]
        return self._names[min(bisect_right(bounds, point), len(self._names) - 1)]

    def task_seed(self, index: int) -> int:
        """Seed of the task, in [0, 2^63)."""
        return _hash(f"{self._root}/{index}/task")

    def sampling_seed(self, index: int, issue: int) -> int:
        """Seed of the sampler, in [0, 2^31); `issue` counts how often the index was sent out."""
        return _hash(f"{self._root}/{index}/sampling/{issue}") >> 32


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
