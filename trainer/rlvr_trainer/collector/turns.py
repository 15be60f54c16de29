"""Episodes of several turns, exact by token.

    first samples -> each by itself: step -> observation's tokens -> generate -> step ... -> TurnSequence -> score its transcript

What was sampled stays as it was sampled: the next turn's prompt is the prompt, all tokens so far, and the tokens that the chat template
puts around the observation. A turn that `sampling.maxTokens` cut off is a turn; the token that ends it is then an observed one. Where no
further turn fits `model.maxModelLen` the episode is scored as it is, as truncated. A turn that its engine lost is sampled again on another
one, and the turns before it are kept. Turns are sampled with the weights of their time, which the spans tell.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from rlvr_api.wire import MAX_COMPLETION_BYTES, StepItem, StepResult, Task, Transcript, Verdict, digest_observations
from rlvr_trainer.chat import ChatFormat
from rlvr_trainer.collector.engines import Completion, Sample
from rlvr_trainer.gathering import gather_all
from rlvr_trainer.rollout import Observation, Rollout, VersionSpan

TURN_SEED_STRIDE = 1_000_003
"""Between the seeds of a sample's turns; samples of one turn have neighbouring seeds."""

Generate = Callable[[tuple[int, ...], int, int], Awaitable[Completion]]
"""Prompt, number of samples, seed."""
Step = Callable[[StepItem], Awaitable[StepResult]]


@dataclass(slots=True)
class TurnSequence:
    """An episode as it grows."""

    interactive: bool
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[VersionSpan] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "stop"
    fault: str = ""
    """Why the environment could not be asked; the episode is masked."""

    @property
    def transcript(self) -> Transcript:
        """For the environment."""
        told = [observation.text for observation in self.observations]
        return Transcript(actions=tuple(self.actions), observed=digest_observations(told))

    @property
    def text(self) -> str:
        """What is scored and stored."""
        return self.transcript.completion if self.interactive else self.actions[0]

    def rollout(self, verdict: Verdict) -> Rollout:
        """With its verdict."""
        return Rollout(
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            spans=tuple(self.spans),
            finish_reason=self.finish_reason,
            text=self.text,
            verdict=verdict,
            observations=tuple(self.observations),
        )

    def act(self, sample: Sample, text: str) -> None:
        """Add a turn of the model."""
        start = len(self.token_ids)
        self.token_ids += sample.token_ids
        self.logprobs += sample.logprobs
        for span in sample.spans:
            self._add_span(VersionSpan(span.version, start + span.start, start + span.end))
        self.actions.append(text[:MAX_COMPLETION_BYTES] if self.interactive else text)  # one so long is refused, unread
        self.finish_reason = sample.finish_reason

    def observe(self, token_ids: tuple[int, ...], text: str) -> None:
        """Add what the environment says; its tokens have no log-prob, and count to the weights of the turn before."""
        start, end = len(self.token_ids), len(self.token_ids) + len(token_ids)
        self.token_ids += token_ids
        self.logprobs += [0.0] * len(token_ids)
        self._add_span(VersionSpan(self.spans[-1].version, start, end))
        self.observations.append(Observation(start, end, text))

    def _add_span(self, span: VersionSpan) -> None:
        if self.spans and self.spans[-1].version == span.version:
            span = VersionSpan(span.version, self.spans.pop().start, span.end)
        self.spans.append(span)


@dataclass(frozen=True)
class TurnTaker:
    """Plays the samples of one prompt to the end of their episodes."""

    chat: ChatFormat
    step: Step
    generate: Generate

    async def play(self, task: Task, prompt_ids: tuple[int, ...], samples: tuple[Sample, ...], seed: int) -> tuple[TurnSequence, ...]:
        """One sequence for each first sample, in their order; of an environment with one turn, the samples themselves.

        Raises:
            EngineLostError, RequestRefusedError, UnreachableError: from what it asks.
        """
        turns = (self._play(task, prompt_ids, sample, seed + number + TURN_SEED_STRIDE) for number, sample in enumerate(samples))
        return tuple(await gather_all(turns))

    async def _play(self, task: Task, prompt_ids: tuple[int, ...], sample: Sample, seed: int) -> TurnSequence:
        sequence = TurnSequence(interactive=task.max_turns > 1)
        while True:
            sequence.act(sample, self.chat.decode(sample.token_ids))
            if not sequence.interactive:
                return sequence
            item = StepItem(environment=task.environment, task_key=task.task_key, transcript=sequence.transcript)
            result = await self.step(item)
            sequence.fault = result.fault
            if result.done or result.observation is None:
                return sequence
            added = self.chat.continuation(result.observation, sequence.token_ids[-1])
            if not self.chat.fits(len(prompt_ids) + len(sequence.token_ids) + len(added)):
                sequence.finish_reason = "length"
                return sequence
            sequence.observe(added, result.observation)
            completion = await self.generate((*prompt_ids, *sequence.token_ids), 1, seed % 2**31)
            (sample,) = completion.samples
            seed += TURN_SEED_STRIDE
