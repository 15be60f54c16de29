"""Which engines may serve, as the learner knows it.

    start, restart -> dirty -> (update begins its swap) dirty -> (probe passed) clean -> dirty -> ...
                       |  probe failed -> quarantined -> reloaded once: clean, or lost until it is restarted
                       +  gone or late  -> lost -> answers again: dirty

The learner's main thread, its watcher and the collector share this book. Changes are told to a callback, outside the lock.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum


class EngineStatus(StrEnum):
    """What an engine is good for."""

    DIRTY = "dirty"
    """Reachable as far as known, with weights that are not known to be right: gets no prompts, takes part in the next update."""
    CLEAN = "clean"
    """Updated and probed: gets prompts."""
    LOST = "lost"
    """Does not answer, or cannot be mended from outside: waits until it is back, or restarted."""
    QUARANTINED = "quarantined"
    """Its log-probs are not the trainer's: gets no prompts, and is loaded anew."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """One engine at one moment."""

    status: EngineStatus
    version: int | None = None
    """Version of its weights, as last installed."""
    epoch: int | None = None
    """Epoch of the group that brought them."""
    reason: str = ""
    """Why it is not clean, in words."""
    needs_restart: bool = False
    """Lost, and an answer is not enough: only a new process is."""
    since: float = field(default_factory=time.time)
    """Seconds since the Unix epoch."""


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """An engine changed its status or version."""

    engine: str
    state: EngineState
    previous: EngineStatus


class EngineBook:
    """The states of all engines; safe to use from several threads."""

    def __init__(self, names: Iterable[str], on_event: Callable[[EngineEvent], None]) -> None:
        self._lock = threading.Lock()
        self._states = {name: EngineState(EngineStatus.DIRTY, reason="no weights published yet") for name in names}
        self._on_event = on_event

    def state(self, name: str) -> EngineState:
        """The state of one engine. Raises KeyError for a name that is not wanted."""
        with self._lock:
            return self._states[name]

    def states(self) -> dict[str, EngineState]:
        """All states, in the order of the engines."""
        with self._lock:
            return dict(self._states)

    def clean(self) -> tuple[str, ...]:
        """Engines that may serve."""
        with self._lock:
            return tuple(name for name, state in self._states.items() if state.status is EngineStatus.CLEAN)

    def add(self, name: str) -> None:
        """A new engine."""
        with self._lock:
            self._states[name] = EngineState(EngineStatus.DIRTY, reason="is new, and waits for weights")

    def remove(self, name: str) -> None:
        """Forget an engine; the callback hears that it is lost."""
        with self._lock:
            before = self._states.pop(name)
        self._on_event(EngineEvent(name, EngineState(EngineStatus.LOST, reason="is not wanted any more"), before.status))

    def change(self, name: str, state: EngineState, expected: EngineState | None = None) -> bool:
        """Write a state; with `expected`, only if nothing was written since that was read."""
        with self._lock:
            before = self._states.get(name)
            if before is None or (expected is not None and before is not expected):
                return False
            self._states[name] = state
        self._on_event(EngineEvent(name, state, before.status))
        return True

    def mark(self, name: str, status: EngineStatus, reason: str, needs_restart: bool = False) -> None:
        """Change the status and keep version and epoch."""
        before = self.state(name)
        self.change(name, replace(before, status=status, reason=reason, needs_restart=needs_restart, since=time.time()))
