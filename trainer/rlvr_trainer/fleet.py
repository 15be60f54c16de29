"""The engines that the run should use, as whoever supervises it says, and what is known of each.

    RLVR_ENGINE_URLS at the start, `PUT /engines` later -> wanted addresses -> publisher (joiners, leavers) -> states -> `GET /status`

An engine that is not wanted any more gets no prompts from that moment on; what it still samples is asked of another one. The same name
under another address is another engine. Not covered: starting and stopping engines, which is the supervisor's.
"""

import logging
import threading
from collections import Counter
from collections.abc import Mapping

from rlvr_api.status import EngineProgress
from rlvr_trainer.weights.engine_client import EngineHandle
from rlvr_trainer.weights.engine_state import EngineEvent, EngineState, EngineStatus
from rlvr_trainer.weights.publisher import WeightPublisher

logger = logging.getLogger(__name__)

LONGEST_REASON = 512


class EngineFleet:
    """Wanted engines and their states; safe to use from any thread, and it never waits for an engine."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._urls = dict(urls)
        self._publisher: WeightPublisher | None = None
        self._incarnations: Counter[str] = Counter()

    def want(self, urls: Mapping[str, str]) -> None:
        """Use these engines, by name, and no others; saying it again changes nothing."""
        with self._lock:
            if self._urls == urls:
                return
            logger.info("engines are now %s", ", ".join(urls) or "none")
            self._urls = dict(urls)
            if self._publisher is not None:
                self._publisher.set_engines(self._handles())

    def attach(self, publisher: WeightPublisher) -> None:
        """Let a publisher bring weights to the engines."""
        with self._lock:
            self._publisher = publisher
            publisher.set_engines(self._handles())

    def handles(self) -> tuple[EngineHandle, ...]:
        """Names and addresses of the wanted engines."""
        with self._lock:
            return self._handles()

    def url(self, name: str) -> str | None:
        """Base URL of a wanted engine."""
        return self._urls.get(name)

    def has_engines(self) -> bool:
        """Whether any engine is wanted."""
        return bool(self._urls)

    def note(self, event: EngineEvent) -> None:
        """An engine changed: what it samples from before it was lost, quarantined or unwanted is not used."""
        if event.state.status in (EngineStatus.LOST, EngineStatus.QUARANTINED):
            self._incarnations[event.engine] += 1

    def clean_engines(self) -> tuple[str, ...]:
        """Engines that serve."""
        return self._publisher.clean_engines() if self._publisher is not None else ()

    def is_settled(self, name: str) -> bool:
        """No update of this engine is under way."""
        state = self._state(name)
        return state is None or state.status is not EngineStatus.DIRTY

    def incarnation(self, name: str) -> int:
        """Grows when the engine is lost, quarantined or not wanted any more."""
        return self._incarnations[name]

    def progress(self) -> dict[str, EngineProgress]:
        """Every wanted engine, for whoever supervises them."""
        states = self._publisher.states() if self._publisher is not None else {}
        waiting = EngineState(EngineStatus.DIRTY, reason="no weights published yet")
        return {name: _progress(states.get(name, waiting)) for name in self._urls}

    def _state(self, name: str) -> EngineState | None:
        try:
            return self._publisher.state(name) if self._publisher is not None else None
        except KeyError:
            return None

    def _handles(self) -> tuple[EngineHandle, ...]:
        return tuple(EngineHandle(name, url) for name, url in self._urls.items())


def _progress(state: EngineState) -> EngineProgress:
    return EngineProgress(
        status=state.status.value,
        version=state.version,
        reason=" ".join(state.reason.split())[:LONGEST_REASON],
        needs_restart=state.needs_restart,
    )
