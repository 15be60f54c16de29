"""Levels rise when an environment's current level is solved.

Each environment keeps the pass rates of its last `window` groups at its current level; when their mean reaches `raiseAt` the next
level begins with an empty window. Groups of an earlier level that arrive late are ignored. Levels never fall.
"""

from collections import deque
from collections.abc import Iterable, Mapping

from pydantic import JsonValue

from rlvr_api.environments import EnvironmentSpec, Levels


class Curriculum:
    """Current level of each environment.

    Args:
        environments: the job's environments.
        frozen: levels stay where they start, for runs that must repeat.
        state: what `state` of an earlier curriculum gave; None starts at each environment's first level.
    """

    def __init__(
        self, environments: Iterable[EnvironmentSpec], *, frozen: bool = False, state: Mapping[str, JsonValue] | None = None
    ) -> None:
        self._levels: dict[str, Levels] = {environment.name: environment.levels for environment in environments}
        self._frozen = frozen
        self._current = {name: levels.start for name, levels in self._levels.items()}
        self._window: dict[str, deque[float]] = {name: deque(maxlen=levels.window) for name, levels in self._levels.items()}
        for name, saved in (state or {}).items():
            if name in self._levels and isinstance(saved, dict):
                level, rates = saved["level"], saved["passRates"]
                assert isinstance(level, int)
                assert isinstance(rates, list)
                self._current[name] = level
                self._window[name].extend(float(rate) for rate in rates if isinstance(rate, int | float))

    @property
    def levels(self) -> dict[str, int]:
        """Current level by environment."""
        return dict(self._current)

    def observe(self, environment: str, level: int, pass_rate: float) -> bool:
        """Take note of a finished group; True when the environment's level rose because of it."""
        if self._frozen or level != self._current[environment]:
            return False
        levels, window = self._levels[environment], self._window[environment]
        window.append(pass_rate)
        if level >= levels.maximum or len(window) < levels.window or sum(window) / len(window) < levels.raise_at:
            return False
        self._current[environment] += 1
        window.clear()
        return True

    def state(self) -> dict[str, JsonValue]:
        """What a checkpoint or record keeps."""
        return {name: {"level": level, "passRates": list(self._window[name])} for name, level in self._current.items()}
