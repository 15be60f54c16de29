"""One prompt from its task to its verdicts.

    sample the task -> render it -> generate G completions -> play on where there are turns -> score them -> a RolloutGroup

Training and evaluation run the same episodes. A failure of infrastructure never becomes a reward: a lost engine means that the whole
group is generated again, and a group with too few verdicts is generated again under the same index, or given up with a reason.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlvr_api.wire import ScoreItem, Split, Task, TaskRequest, Verdict, VerdictStatus
from rlvr_trainer.chat import ChatFormat
from rlvr_trainer.collector.engines import Completion, EngineLostError, EnginePool
from rlvr_trainer.collector.turns import TurnSequence, TurnTaker
from rlvr_trainer.collector.verifiers import VerifierClient
from rlvr_trainer.rollout import Admission, RolloutGroup
from rlvr_trainer.telemetry import Attribute, SpanName, current_traceparent, root_span, tracer

MAX_ISSUES = 5
"""How often an index is generated before a group that stays unjudged is given up."""


class SkippedError(RuntimeError):
    """The task is not to be sampled; nothing was generated."""

    def __init__(self, reason: str, problem_id: str) -> None:
        super().__init__(f"problem {problem_id} is left alone")
        self.reason = reason


class UnjudgedError(RuntimeError):
    """Too few completions of a group were judged, each time it was generated."""


@dataclass(frozen=True, slots=True)
class Episode:
    """What is to be collected."""

    id: str
    """Unique in the run; prefix of the idempotency keys."""
    admission: Admission
    split: Split
    samples: int
    seed: int
    reason_to_skip: Callable[[str], str | None] = lambda _: None
    """Of a problem, by its id; None: it is sampled."""
    audited: bool = False
    """Every completion is audited for certain, as held-out ones are."""


@dataclass(frozen=True)
class EpisodeRunner:
    """Runs episodes against the engines and the verifier service."""

    engines: EnginePool
    verifiers: VerifierClient
    chat: ChatFormat
    timeout_seconds: float
    """Bound of the search for an engine, and of the wait for an update to end."""

    async def run(self, episode: Episode) -> RolloutGroup:
        """Collect one group.

        Raises:
            SkippedError: there is a reason to leave its problem alone.
            PromptTooLongError: the task does not fit the model.
            UnjudgedError: the verifiers did not judge enough of it.
            EngineLostError: no engine became ready in time.
            RequestRefusedError, UnreachableError: from the verifier service.
        """
        admission = episode.admission
        attributes: dict[str, str | int] = {
            Attribute.EPISODE: episode.id,
            Attribute.ENVIRONMENT: admission.environment,
            Attribute.LEVEL: admission.level,
        }
        # A root of its own: the trace of a group ends in the training step that consumes it, which links to it.
        with root_span(SpanName.ROLLOUT_GROUP, {**attributes}):
            return await self._collect(episode, current_traceparent())

    async def _collect(self, episode: Episode, traceparent: str) -> RolloutGroup:
        admission = episode.admission
        request = TaskRequest(environment=admission.environment, split=episode.split, seed=admission.task_seed, level=admission.level)
        with tracer().start_as_current_span(SpanName.SAMPLE):
            task = await self.verifiers.sample(request)
        if (reason := episode.reason_to_skip(task.problem_id)) is not None:
            raise SkippedError(reason, task.problem_id)
        prompt_ids = self.chat.render(task.messages)
        for issue in range(MAX_ISSUES):
            group = await self._issue(request, task, prompt_ids, episode, issue, traceparent)
            if sum(reward is not None for reward in group.rewards) >= max(2, episode.samples / 2):
                return group
        raise UnjudgedError(f"{episode.id}: fewer than half of {episode.samples} completions were judged, in {MAX_ISSUES} tries")

    async def _issue(
        self, request: TaskRequest, task: Task, prompt_ids: tuple[int, ...], episode: Episode, issue: int, traceparent: str
    ) -> RolloutGroup:
        started, seed = time.monotonic(), (episode.seed + issue) % 2**31
        completion = await self._generate(prompt_ids, episode.samples, seed)
        taker = TurnTaker(self.chat, lambda item: self.verifiers.step(item, request), self._generate)
        played = await taker.play(task, prompt_ids, completion.samples, seed)
        generated = time.monotonic()
        verdicts = await self._score(request, task, played, episode, issue)
        return RolloutGroup(
            admission=episode.admission,
            problem_id=task.problem_id,
            prompt_ids=prompt_ids,
            prompt=task.messages[-1].content,
            rollouts=tuple(sequence.rollout(verdict) for sequence, verdict in zip(played, verdicts, strict=True)),
            engine=completion.engine,
            traceparent=traceparent,
            generate_seconds=completion.seconds if task.max_turns == 1 else generated - started,
            score_seconds=time.monotonic() - generated,
        )

    async def _generate(self, prompt_ids: tuple[int, ...], samples: int, seed: int) -> Completion:
        lost = 0
        while True:
            with tracer().start_as_current_span(SpanName.GENERATE) as span:
                try:
                    completion = await self.engines.generate(prompt_ids, samples, seed, self.timeout_seconds)
                except EngineLostError as error:
                    span.record_exception(error)
                    lost += 1
                    if lost >= MAX_ISSUES:
                        raise
                    continue
                span.set_attribute(Attribute.ENGINE, completion.engine)
                span.set_attribute(Attribute.TOKENS, sum(len(sample.token_ids) for sample in completion.samples))
                return completion

    async def _score(
        self, request: TaskRequest, task: Task, played: Sequence[TurnSequence], episode: Episode, issue: int
    ) -> tuple[Verdict, ...]:
        names = [f"{episode.id}/{issue}/{number}" for number in range(len(played))]
        items = [
            ScoreItem(
                id=name,
                environment=task.environment,
                task_key=task.task_key,
                completion=sequence.text,
                truncated=sequence.finish_reason == "length",
                audited=episode.audited or episode.split == "heldOut",
            )
            for name, sequence in zip(names, played, strict=True)
            if not sequence.fault
        ]
        with tracer().start_as_current_span(SpanName.SCORE) as span:
            found = await self.verifiers.score(items, request) if items else ()
            span.set_attribute(Attribute.PASSED, sum((verdict.score or 0) > 0 for verdict in found))
        verdicts = {verdict.id: verdict for verdict in found}
        return tuple(
            verdicts[name] if name in verdicts else _unjudged(name, task, sequence.fault)
            for name, sequence in zip(names, played, strict=True)
        )


def _unjudged(name: str, task: Task, fault: str) -> Verdict:
    """The verdict on an episode that its environment did not play to the end: it is masked."""
    return Verdict(
        id=name,
        status=VerdictStatus.INFRA_ERROR,
        score=None,
        verifier=task.environment,
        verifier_version=task.environment_version,
        reason=fault[:500],
    )
