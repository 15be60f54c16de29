"""What one prompt brought: a group of completions with their log-probs, weight versions and verdicts.

These values flow from the collector to the object store and the learner. They hold no gold answer and no tensor.
"""

from dataclasses import dataclass
from typing import Literal

from rlvr_api.wire import Verdict, VerdictStatus


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens `start` to `end` (exclusive) of a completion were sampled by weight version `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Admission:
    """The identity of a group, fixed when it is admitted: the same index is always the same task."""

    index: int
    """Position in the stage's sequence of prompts, from 0."""
    environment: str
    level: int
    task_seed: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion."""

    token_ids: tuple[int, ...]
    """Sampled tokens, the stop token included."""
    logprobs: tuple[float, ...]
    """The sampler's log-prob of each token, after temperature; as long as `token_ids`."""
    spans: tuple[VersionSpan, ...]
    """Weight versions; they cover `token_ids` without gap or overlap."""
    finish_reason: Literal["stop", "length"]
    text: str
    """Decoded completion without special tokens."""
    verdict: Verdict

    @property
    def reward(self) -> float | None:
        """The score; None when the completion was not judged, which masks it."""
        return None if self.verdict.status is VerdictStatus.INFRA_ERROR else self.verdict.score

    @property
    def oldest_version(self) -> int:
        """Smallest weight version of any token."""
        return min(span.version for span in self.spans)


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """A prompt and all its completions."""

    admission: Admission
    problem_id: str
    prompt_ids: tuple[int, ...]
    prompt: str
    """The user's words, for people."""
    rollouts: tuple[Rollout, ...]
    engine: str
    """Name of the engine that sampled it."""
    traceparent: str
    """W3C trace context of the group's root span; empty when tracing is off."""
    generate_seconds: float
    score_seconds: float

    @property
    def rewards(self) -> tuple[float | None, ...]:
        """Reward of each rollout; None is masked."""
        return tuple(rollout.reward for rollout in self.rollouts)

    @property
    def oldest_version(self) -> int:
        """Smallest weight version of any token."""
        return min(rollout.oldest_version for rollout in self.rollouts)
