"""What the learner says of one weight update."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlvr_trainer.weights.engine_state import EngineState


@dataclass(slots=True)
class PublishReport:
    """What an update did. Seconds are wall time on the learner."""

    version: int
    engines: Mapping[str, EngineState] = field(default_factory=dict)
    """All engines, as they were when the update ended."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Engines that did not get it, and why."""
    size_bytes: int = 0
    """Bytes that were sent, or written into the store, in all rounds."""
    form_seconds: float = 0.0
    """Forming groups; 0 when the last one was still good."""
    broadcast_seconds: float = 0.0
    """From the first bucket until the last engine had staged all."""
    update_seconds: float = 0.0
    """From the call until all engines went on with the new weights."""
    paused_seconds: dict[str, float] = field(default_factory=dict)
    """How long each engine stood still."""
    probe_seconds: float = 0.0
    """Waiting until engines settled, sampling, and the trainer's own log-probs."""
    probe_gap_max: float = 0.0
    """Largest |log-prob difference| of a passed probe, in nats."""
    total_seconds: float = 0.0
    """The whole call."""
