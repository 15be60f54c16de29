"""The stage `distill`: ask a teacher about the environments' tasks, keep what the verifiers pass, learn from that.

    index -> task -> ask, score, ask again until enough passed -> answers/<index>.json
    all indices -> dataset/<attempt>/traces.jsonl -> MANIFEST.json -> the steps of `sft`

Resume: the document of an index is written once, when all that was asked about it is judged. A later attempt asks about the indices without
one, so what a crash can cost is the answers that were under way. The dataset is a pure function of the documents, and final once its
manifest is there. The budget counts the tokens of all documents and of what is under way.
"""

import asyncio
import itertools
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx

from rlvr_api.process import TEACHER_API_KEY
from rlvr_api.stages import Distill, Stage
from rlvr_api.wire import MAX_COMPLETION_CHARACTERS, Message, ScoreItem, Task, TaskRequest
from rlvr_trainer.chat import PromptTooLongError
from rlvr_trainer.collector.schedule import Schedule
from rlvr_trainer.context import BadInputError
from rlvr_trainer.integrity.rewards import is_learnable
from rlvr_trainer.provenance import scan
from rlvr_trainer.run import Run
from rlvr_trainer.stages.sft import TraceLearning
from rlvr_trainer.storage.checkpoint_reader import LoadedCheckpoint
from rlvr_trainer.storage.distilled import (
    DatasetManifest,
    KeptAnswer,
    TaskAnswers,
    commit_dataset,
    read_answers,
    read_dataset,
    total_statuses,
    trace_lines,
    write_answers,
)
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.lineage import Dataset, Verifier, running_code
from rlvr_trainer.teacher import Answer, TeacherClient, UnusableAnswerError
from rlvr_trainer.traces import TraceFile, make_examples

logger = logging.getLogger(__name__)

TRUNCATED, UNUSABLE, UNRENDERABLE = "truncated", "unusable", "unrenderable"
"""Statuses beside the verdicts'."""
USELESS_IN_A_ROW = 16
"""Unusable answers after which the endpoint cannot be a teacher."""


class TeacherUselessError(RuntimeError):
    """The endpoint answers, and with nothing that could be learned from."""


class DistillStage:
    """Runs one stage from where the store says it stands to its end; see `RlvrStage`."""

    def __init__(self, run: Run, index: int, stage: Stage, checkpoint: LoadedCheckpoint | None, steps_before: int) -> None:
        assert stage.distill is not None
        self._run, self._spec, self._keys = run, stage.distill, StageKeys(index, stage.name)
        self._checkpoint, self._before = checkpoint, steps_before

    def execute(self) -> int:
        """Collect what is missing, then run to the last step; returns it.

        Raises:
            BadInputError: key, address or model of the teacher are wrong, or nothing that it said passed.
            TeacherUnreachableError, TeacherUselessError: another attempt may fare better.
            StopRequestedError: asked to stop.
        """
        run, keys = self._run, self._keys
        run.board.update(stage=keys.name, stage_index=keys.index, step=self._before)
        manifest = read_dataset(run.store, keys) or self._collect()
        uri = run.store.uri(manifest.traces.key)
        file = TraceFile(uri, bytes(run.store.read(manifest.traces)))
        spec = run.context.job.spec
        found = scan(file.conversations(), run.references, spec.provenance.contamination, f"what {manifest.teacher} said")
        run.provenance.add(
            Dataset(
                uri=uri, sha256=manifest.traces.sha256, examples=manifest.examples, made_by=manifest.teacher, contamination=found
            )
        )  # fmt: skip
        traces = make_examples(file, self._spec, run.runner.chat, spec.model.max_model_len)
        checkpoint, self._checkpoint = self._checkpoint, None
        return TraceLearning(run, keys, self._spec, traces, uri, checkpoint, self._before).execute()

    def _collect(self) -> DatasetManifest:
        run, teacher = self._run, self._spec.teacher
        answers = dict(read_answers(run.store, self._keys))
        collection = Collection(run, self._keys, self._spec, answers)
        run.wait_for(run.loop.submit(collection.collect()))
        run.board.update(message="writing the dataset")
        ordered = [answers[index] for index in sorted(answers)]
        examples, statuses = sum(len(one.kept) for one in ordered), total_statuses(ordered)
        if not examples:
            raise BadInputError(
                f"stage {self._keys.name} keeps none of {sum(one.requests for one in ordered)} answers of {teacher.model} at "
                f"{teacher.endpoint} ({statuses}): look at {run.store.uri(self._keys.answers)}, and raise teacher.maxTokens, "
                "samplesPerPrompt or budgetTokens, or take another teacher"
            )
        name = f"{teacher.model} at {teacher.endpoint}"
        run.claim.check()
        blob = run.store.upload(self._keys.dataset(run.context.attempt), trace_lines(ordered, name))
        manifest = DatasetManifest(
            stage=self._keys.name,
            attempt=run.context.attempt,
            time=datetime.now(UTC),
            traces=blob,
            examples=examples,
            teacher=name,
            prompts=len(ordered),
            requests=sum(one.requests for one in ordered),
            tokens=sum(one.tokens for one in ordered),
            statuses=statuses,
            verifiers=tuple(Verifier(environment=info.name, kind=info.kind, version=info.version) for info in run.held_out),
            code=running_code(),
        )
        manifest = commit_dataset(run.store, self._keys, manifest)
        logger.info("%d answers of %s are kept, of %d about %d tasks", examples, name, manifest.requests, manifest.prompts)
        return manifest


@dataclass
class Collection:
    """Asks about every index that has no answers yet; the event loop owns it.

    Args:
        answers: by index; grows.
    """

    run: Run
    keys: StageKeys
    spec: Distill
    answers: dict[int, TaskAnswers]
    _useless: int = 0
    _spent: int = 0
    _levels: Mapping[str, int] = field(default_factory=dict)

    async def collect(self) -> None:
        """Ask until all indices have answers, or the budget is spent."""
        job, teacher = self.run.context.job.spec, self.spec.teacher
        self._spent = sum(one.tokens for one in self.answers.values())
        self._levels = {environment.name: environment.levels.start for environment in job.environments}
        schedule = Schedule(job.seed, self.keys.name, job.environments)
        missing = iter([index for index in range(self.spec.prompts) if index not in self.answers])
        limits = httpx.Limits(max_connections=teacher.requests_in_flight)
        async with httpx.AsyncClient(timeout=teacher.timeout_seconds, limits=limits, follow_redirects=False) as http:
            client = TeacherClient(teacher, os.environ.get(TEACHER_API_KEY), http, job.deadlines.stall_seconds)

            async def work() -> None:
                for index in missing:  # shared: each index is taken by one worker
                    if not self._may_ask():
                        return
                    await self._ask_about(client, index, schedule)

            try:
                async with asyncio.TaskGroup() as workers:
                    for _ in range(min(teacher.requests_in_flight, self.spec.prompts)):
                        workers.create_task(work())
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None
        if len(self.answers) < self.spec.prompts:
            logger.warning("the budget of %s tokens is spent; %d of %d tasks were asked", self._spent, len(self.answers), self.spec.prompts)

    def _may_ask(self) -> bool:
        budget = self.spec.teacher.budget_tokens
        return budget is None or self._spent < budget

    async def _ask_about(self, client: TeacherClient, index: int, schedule: Schedule) -> None:
        environment = schedule.environment(index)
        request = TaskRequest(environment=environment, split="train", seed=schedule.task_seed(index), level=self._levels[environment])
        task = await self.run.runner.verifiers.sample(request)
        held_out = task.problem_id in self.run.held_out_problems
        statuses: Counter[str] = Counter()
        kept: dict[str, KeptAnswer] = {}
        spent = 0
        for number in itertools.count():
            if held_out or number == self.spec.samples_per_prompt or len(kept) == self.spec.keep_per_prompt or not self._may_ask():
                break
            status = UNUSABLE
            try:
                answer = await client.ask(self.spec.teacher, task.messages, schedule.sampling_seed(index, number))
            except UnusableAnswerError as error:
                self._note_useless(error)
            else:
                self._useless = 0
                tokens = self._count(answer)
                spent, self._spent = spent + tokens, self._spent + tokens
                status = await self._judge(answer, task, request, f"{index}/{number}", kept)
            statuses[status] += 1
        asked = sum(statuses.values())
        if asked or held_out:
            await self._commit(
                TaskAnswers(
                    index=index,
                    environment=environment,
                    level=request.level,
                    problem_id=task.problem_id,
                    messages=task.messages,
                    requests=asked,
                    tokens=spent,
                    statuses=dict(statuses),
                    kept=tuple(kept.values()),
                )
            )

    async def _judge(self, answer: Answer, task: Task, request: TaskRequest, number: str, kept: dict[str, KeptAnswer]) -> str:
        if not answer.complete:
            return TRUNCATED
        if not self._can_be_learned(task, answer.text):
            return UNRENDERABLE
        name = f"{self.run.context.job.metadata.name}/{self.keys.name}/{self.run.context.attempt}/{number}"
        item = ScoreItem(id=name, environment=task.environment, task_key=task.task_key, completion=answer.text, audited=True)
        (verdict,) = await self.run.runner.verifiers.score([item], request)
        if is_learnable(verdict, self.run.context.job.spec.integrity.audit):
            kept.setdefault(
                answer.text,
                KeptAnswer(
                    text=answer.text,
                    score=verdict.score or 0.0,
                    verifier=verdict.verifier,
                    verifier_version=verdict.verifier_version,
                ),
            )
        return verdict.status.value

    def _can_be_learned(self, task: Task, text: str) -> bool:
        """Whether it can be said in the model's own format: words that hold an end token, for example, cannot."""
        if not text or len(text) > MAX_COMPLETION_CHARACTERS:
            return False
        try:
            self.run.runner.chat.answer((*task.messages, Message(role="assistant", content=text)))
        except (ValueError, PromptTooLongError):
            return False
        return True

    def _count(self, answer: Answer) -> int:
        if answer.tokens is None and self.spec.teacher.budget_tokens is not None:
            raise BadInputError(
                f"the teacher at {self.spec.teacher.endpoint} does not say how many tokens an answer took (usage.total_tokens), so "
                "teacher.budgetTokens cannot be kept to: remove it, and bound the stage by prompts and samplesPerPrompt"
            )
        return answer.tokens or 0

    def _note_useless(self, error: UnusableAnswerError) -> None:
        self._useless += 1
        logger.warning("an answer of the teacher is of no use: %s", error)
        if self._useless >= USELESS_IN_A_ROW:
            raise TeacherUselessError(f"{self._useless} answers of the teacher in a row were of no use, the last one: {error}")

    async def _commit(self, answers: TaskAnswers) -> None:
        self.answers[answers.index] = await asyncio.to_thread(write_answers, self.run.store, self.keys, self.run.claim, answers)
        kept = sum(len(one.kept) for one in self.answers.values())
        self.run.board.update(message=f"asked the teacher about {len(self.answers)} of {self.spec.prompts} tasks, {kept} answers kept")
