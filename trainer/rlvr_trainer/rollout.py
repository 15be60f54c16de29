"""What one prompt brought: a group of completions with their log-probs, weight versions and verdicts.

These values flow from the collector to the object store and the learner. They hold no gold answer and no tensor.
"""

from dataclasses import dataclass
from typing import Literal

from rlvr_api.wire import Transcript, Verdict, VerdictStatus


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
class Observation:
    """Tokens `start` to `end` (exclusive) of a completion were written by its environment, between two turns of the model."""

    start: int
    end: int
    text: str
    """The environment's words, without the chat template around them."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion, of one turn or of several with the environment's observations between them."""

    token_ids: tuple[int, ...]
    """Sampled tokens, the stop tokens included, and observed ones."""
    logprobs: tuple[float, ...]
    """The sampler's log-prob of each token, after temperature; as long as `token_ids`, and 0 where a token was observed."""
    spans: tuple[VersionSpan, ...]
    """Weight versions; they cover `token_ids` without gap or overlap. Observed tokens count to the turn before them."""
    finish_reason: Literal["stop", "length"]
    text: str
    """Decoded completion without special tokens; of an interactive environment, the JSON of its `rlvr_api.wire.Transcript`."""
    verdict: Verdict
    observations: tuple[Observation, ...] = ()
    """In their order; one fewer than there are turns."""

    @property
    def observed(self) -> tuple[tuple[int, int], ...]:
        """Ranges of the tokens that were observed, as `rlvr_trainer.packing.Branch` has them."""
        return tuple((observation.start, observation.end) for observation in self.observations)

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the model sampled."""
        return len(self.token_ids) - sum(end - start for start, end in self.observed)

    @property
    def turns(self) -> tuple[tuple[str, str | None], ...]:
        """What the model said in each turn, and what it was told then; None where nothing was."""
        actions = Transcript.of(self.text).actions if self.text.startswith('{"actions":') else (self.text,)
        told = (observation.text for observation in self.observations)
        return tuple((said, next(told, None)) for said in actions)

    @property
    def longest_turn_tokens(self) -> int:
        """Sampled tokens of the longest turn, which `sampling.maxTokens` bounds."""
        ends = (*(start for start, _ in self.observed), len(self.token_ids))
        starts = (0, *(end for _, end in self.observed))
        return max(end - start for start, end in zip(starts, ends, strict=True))

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
    """Name of the engine that sampled it; of several turns, the first."""
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
