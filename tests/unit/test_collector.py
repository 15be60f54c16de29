"""The collector against engines and a verifier that misbehave on purpose: no fault becomes a reward, and no group is lost."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from pydantic import JsonValue

from rlvr_api.environments import Arithmetic, EnvironmentSpec
from rlvr_api.off_policy import OffPolicy
from rlvr_api.spec import Sampling
from rlvr_api.stages import Revisit, Rlvr
from rlvr_api.wire import (
    CanaryTag,
    CanaryVerdict,
    Message,
    SampleRequest,
    SampleResponse,
    ScoreRequest,
    ScoreResponse,
    Task,
    Verdict,
    VerdictStatus,
)
from rlvr_trainer.chat import ChatFormat
from rlvr_trainer.collector.collector import CollectionStalledError, Collector, EventLoopThread, HeldOutOnlyError
from rlvr_trainer.collector.curriculum import SOLVED, Curriculum
from rlvr_trainer.collector.engines import EnginePool
from rlvr_trainer.collector.episode import Episode, EpisodeRunner
from rlvr_trainer.collector.http import RequestRefusedError
from rlvr_trainer.collector.ledger import UNJUDGED, Batch, GroupLedger
from rlvr_trainer.collector.schedule import Schedule
from rlvr_trainer.collector.verifiers import VerifierClient
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.rollout import Admission, RolloutGroup

ENVIRONMENT = EnvironmentSpec(name="sums", arithmetic=Arithmetic())
Fault = Callable[[int], Response | None]


@dataclass
class World:
    """Engines and a verifier in one ASGI app; `fault` may answer a request itself, by the number of the call."""

    engine_fault: Fault = lambda _: None
    sample_fault: Fault = lambda _: None
    score_fault: Fault = lambda _: None
    status_of: Callable[[str], VerdictStatus] = lambda _: VerdictStatus.FAIL
    versions: Callable[[int], list[JsonValue]] = lambda length: [{"version": "3", "start": 0, "end": length}]
    incarnations: dict[str, int] = field(default_factory=lambda: {"a": 0, "b": 0})
    clean: tuple[str, ...] = ("a", "b")
    problem_of: Callable[[int], str] = lambda seed: f"{seed % 2**60:016x}"
    calls: dict[str, int] = field(default_factory=dict)
    engines_asked: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)

    audited: dict[str, bool] = field(default_factory=dict)
    """Whether an item asked for a certain audit, by id."""
    send_canaries: bool = False
    gone: set[str] = field(default_factory=set)
    leave_once: bool = False
    """Engines that are gone are chosen until their address was asked for."""
    hang_on: int = 0
    """The call of an engine, by number, that gets no answer."""

    def url(self, name: str) -> str | None:
        if self.leave_once and name in self.gone:
            self.clean = tuple(other for other in self.clean if other != name)
        return None if name in self.gone else f"http://world/{name}"

    def has_engines(self) -> bool:
        return bool(self.clean)

    def clean_engines(self) -> tuple[str, ...]:
        return self.clean

    def is_settled(self, name: str) -> bool:
        return True

    def incarnation(self, name: str) -> int:
        return self.incarnations[name]

    def _call(self, name: str) -> int:
        self.calls[name] = self.calls.get(name, 0) + 1
        return self.calls[name]

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/{engine}/inference/v1/generate")
        async def generate(engine: str, request: Request) -> Response:
            self.engines_asked.append(engine)
            call = self._call("generate")
            if call == self.hang_on:
                await asyncio.sleep(60)
            fault = self.engine_fault(call)
            if fault is not None:
                return fault
            samples = (await request.json())["sampling_params"]["n"]
            choice = {"token_ids": [9, 10, 1], "finish_reason": "stop", "logprobs": {"content": [{"logprob": -0.5}] * 3}}
            choices = [{**choice, "index": index, "weight_versions": self.versions(3)} for index in range(samples)]
            return Response(httpx.Response(200, json={"choices": choices}).content, media_type="application/json")

        @app.post("/verifier/v1/sample")
        async def sample(request: SampleRequest) -> Response:
            fault = self.sample_fault(self._call("sample"))
            if fault is not None:
                return fault
            item = request.items[0]
            task = Task(
                environment=item.environment, environment_version="1", level=item.level, problem_id=self.problem_of(item.seed),
                messages=(Message(role="user", content="1+1="),), task_key=f"key-{self.calls['sample']}",
            )  # fmt: skip
            return Response(SampleResponse(tasks=(task,)).model_dump_json(), media_type="application/json")

        @app.post("/verifier/v1/score")
        async def score(request: ScoreRequest) -> Response:
            self.audited.update({item.id: item.audited for item in request.items})
            fault = self.score_fault(self._call("score"))
            if fault is not None:
                return fault
            verdicts = tuple(self._judge(item.id) for item in request.items)
            canary = CanaryVerdict(environment="sums", tag=CanaryTag.EXPLOIT, probe="question-echo", kept=False)
            answer = ScoreResponse(verdicts=verdicts, canaries=(canary,) if self.send_canaries else ())
            return Response(answer.model_dump_json(), media_type="application/json")

        return app

    def _judge(self, id: str) -> Verdict:
        status = self.status_of(id)
        score = None if status is VerdictStatus.INFRA_ERROR else float(status is VerdictStatus.PASS)
        return Verdict(id=id, status=status, score=score, verifier="v", verifier_version="1")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    folder: Path = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_model(folder)
    return ChatFormat(folder, None, 60)


@pytest.fixture
def loop() -> Iterator[EventLoopThread]:
    loop = EventLoopThread("test-collector")
    yield loop
    loop.close()


def collect(
    world: World,
    chat: ChatFormat,
    loop: EventLoopThread,
    *,
    steps: int = 1,
    stall_seconds: float = 30.0,
    curriculum: Curriculum | None = None,
    ordered: bool = False,
) -> list[Batch]:
    """Run a collector over `steps` batches of two groups of four."""
    client = httpx.AsyncClient(transport=httpx.ASGITransport(world.app()), base_url="http://world")
    stage = Rlvr(steps=steps, prompts_per_step=2, group_size=4, ordered=ordered)
    off_policy = OffPolicy(max_staleness=0) if ordered else OffPolicy()
    ledger = GroupLedger(stage, off_policy, Schedule(0, "climb", [ENVIRONMENT]), curriculum or Curriculum([ENVIRONMENT]))
    engines = EnginePool(world, client, Sampling(max_tokens=3), chat.end_token_ids)
    runner = EpisodeRunner(engines, VerifierClient("http://world/verifier", client, 5.0), chat, 1.0)
    collector = Collector(ledger, runner, loop, "job/climb", 1, stall_seconds)
    batches = []
    try:
        for _ in range(steps):
            batches.append(wait_for_batch(collector))
            collector.step_done()
    finally:
        collector.close()
        loop.submit(client.aclose()).result(5)
    return batches


def wait_for_batch(collector: Collector) -> Batch:
    while (batch := collector.poll_batch(lambda _: 0, 0.1)) is None:
        pass
    return batch


def groups_of(batches: list[Batch]) -> list[RolloutGroup]:
    return [group for batch in batches for group in batch.groups]


def passing(*numbers: int) -> Callable[[int], Response | None]:
    """A fault at each call whose number is listed."""
    return lambda call: Response(status_code=503) if call in numbers else None


def test_groups_are_collected_step_by_step_and_carry_what_the_engine_said(chat: ChatFormat, loop: EventLoopThread) -> None:
    batches = collect(World(), chat, loop, steps=3)
    groups = groups_of(batches)
    assert sorted(group.admission.index for group in groups) == list(range(6))
    rollout = groups[0].rollouts[0]
    assert (rollout.token_ids, rollout.logprobs, rollout.oldest_version) == ((9, 10, 1), (-0.5, -0.5, -0.5), 3)
    assert rollout.text == "34"
    assert batches[-1].pending == ()


def test_canaries_are_kept_apart_from_rewards_and_held_out_tasks_are_audited_for_certain(chat: ChatFormat, loop: EventLoopThread) -> None:
    world = World(send_canaries=True)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(world.app()), base_url="http://world")
    engines = EnginePool(world, client, Sampling(max_tokens=3), chat.end_token_ids)
    verifiers = VerifierClient("http://world/verifier", client, 5.0)
    runner = EpisodeRunner(engines, verifiers, chat, 1.0)
    admission = Admission(0, "sums", 0, 7)
    for split in ("train", "heldOut"):
        group = loop.submit(runner.run(Episode(split, admission, split, 3, 1))).result(10)
        assert len(group.rollouts) == 3
    loop.submit(client.aclose()).result(5)
    assert {id.split("/")[0]: audited for id, audited in world.audited.items()} == {"train": False, "heldOut": True}
    assert [canary.probe for canary in verifiers.take_canaries()] == ["question-echo"] * 2
    assert verifiers.take_canaries() == ()


def test_a_lost_engine_means_another_try_of_the_same_index(chat: ChatFormat, loop: EventLoopThread) -> None:
    world = World(engine_fault=passing(1, 2))
    groups = groups_of(collect(world, chat, loop))
    assert sorted(group.admission.index for group in groups) == [0, 1]
    assert len(world.engines_asked) == 4


def test_an_engine_that_was_dropped_while_it_sampled_is_not_believed(chat: ChatFormat, loop: EventLoopThread) -> None:
    world = World()

    def drop_on_first_call(call: int) -> None:
        if call == 1:
            world.incarnations = {"a": 1, "b": 1}

    world.engine_fault = drop_on_first_call
    groups = groups_of(collect(world, chat, loop))
    assert len(groups) == 2
    assert len(world.engines_asked) >= 3


def test_an_engine_that_is_lost_and_never_answers_holds_its_group_for_a_second_only(chat: ChatFormat, loop: EventLoopThread) -> None:
    world = World(hang_on=1)
    threading.Timer(0.1, lambda: world.incarnations.update(a=1, b=1)).start()
    groups = groups_of(collect(world, chat, loop))
    assert sorted(group.admission.index for group in groups) == [0, 1]
    assert len(world.engines_asked) >= 3


def test_prompts_wait_while_no_engine_is_wanted_and_go_on_when_one_is(chat: ChatFormat, loop: EventLoopThread) -> None:
    world = World(clean=())
    threading.Timer(1.5, lambda: setattr(world, "clean", ("b",))).start()  # longer than a prompt waits for an engine to be ready
    groups = groups_of(collect(world, chat, loop))
    assert [group.engine for group in groups] == ["b", "b"]


def test_an_engine_that_was_left_out_between_choice_and_request_means_another_one(chat: ChatFormat, loop: EventLoopThread) -> None:
    world = World(gone={"a"}, leave_once=True)
    groups = groups_of(collect(world, chat, loop))
    assert len(groups) == 2
    assert set(world.engines_asked) == {"b"}


@pytest.mark.parametrize(
    "versions",
    [
        lambda length: [{"version": None, "start": 0, "end": length}],
        lambda length: [{"version": "default", "start": 0, "end": length}],
        lambda length: [{"version": "1", "start": 0, "end": length - 1}],
        lambda length: [{"version": "1", "start": 0, "end": 1}, {"version": "2", "start": 2, "end": length}],
        lambda length: [],
    ],
)
def test_spans_that_were_never_published_or_leave_gaps_are_refused(
    versions: Callable[[int], list[JsonValue]], chat: ChatFormat, loop: EventLoopThread
) -> None:
    world = World(versions=versions)
    with pytest.raises(RuntimeError, match="version"):
        collect(world, chat, loop)


def test_passing_faults_of_the_verifier_are_retried_and_change_nothing(chat: ChatFormat, loop: EventLoopThread) -> None:
    world = World(sample_fault=passing(1, 3), score_fault=passing(1, 2), status_of=lambda _: VerdictStatus.PASS)
    groups = groups_of(collect(world, chat, loop))
    assert [group.rewards for group in groups] == [(1.0,) * 4] * 2


def test_an_infra_error_is_asked_again_under_the_same_id_then_masked(chat: ChatFormat, loop: EventLoopThread) -> None:
    seen: list[str] = []

    def status(id: str) -> VerdictStatus:
        seen.append(id)
        return VerdictStatus.INFRA_ERROR if id.endswith("/0") else VerdictStatus.PASS

    groups = groups_of(collect(World(status_of=status), chat, loop))
    assert [group.rewards for group in groups] == [(None, 1.0, 1.0, 1.0)] * 2
    first = next(id for id in seen if id.endswith("/0"))
    assert seen.count(first) == 3


def test_a_group_that_stays_unjudged_is_discarded_with_its_reason_never_scored(chat: ChatFormat, loop: EventLoopThread) -> None:
    world = World(status_of=lambda id: VerdictStatus.INFRA_ERROR if "/1/0/" in id else VerdictStatus.PASS)
    batch = collect(world, chat, loop)[0]
    assert batch.discarded == ((0, UNJUDGED),)
    assert sorted(group.admission.index for group in batch.groups) == [1, 2]


def test_problems_on_which_all_samples_agreed_are_left_alone_without_a_token_sampled(chat: ChatFormat, loop: EventLoopThread) -> None:
    problems = ["a" * 16, "b" * 16, "c" * 16]
    world = World(problem_of=lambda seed: problems[seed % 3], status_of=lambda _: VerdictStatus.PASS)
    curriculum = Curriculum([ENVIRONMENT], revisit=Revisit(solved_after=40))
    batches = collect(world, chat, loop, steps=4, curriculum=curriculum, ordered=True)
    skipped = [(index, reason) for batch in batches for index, reason in batch.discarded]
    assert {reason for _, reason in skipped} == {SOLVED}
    taken = [group.admission.index for group in groups_of(batches)]
    assert sorted([*taken, *(index for index, _ in skipped)]) == list(range(batches[-1].cursor)), "every index once"
    assert world.calls["generate"] == len(taken) == 8
    assert world.calls["sample"] == len(taken) + len(skipped)
    again = collect(
        World(problem_of=world.problem_of, status_of=world.status_of), chat, loop, steps=4, ordered=True,
        curriculum=Curriculum([ENVIRONMENT], revisit=Revisit(solved_after=40)),
    )  # fmt: skip
    assert [(batch.discarded, batch.cursor, batch.curriculum) for batch in again] == [
        (batch.discarded, batch.cursor, batch.curriculum) for batch in batches
    ]


def test_held_out_problems_are_discarded_and_training_on_nothing_else_is_refused(chat: ChatFormat, loop: EventLoopThread) -> None:
    held_out = "a" * 16
    world = World(problem_of=lambda seed: held_out if seed % 2 else "b" * 16)
    batches = collect(world, chat, loop, steps=3, curriculum=Curriculum([ENVIRONMENT], held_out={held_out}))
    assert {group.problem_id for group in groups_of(batches)} == {"b" * 16}
    with pytest.raises(HeldOutOnlyError, match="64 tasks in a row, the last of sums, are held-out ones"):
        collect(World(problem_of=lambda _: held_out), chat, loop, curriculum=Curriculum([ENVIRONMENT], held_out={held_out}))


def test_a_key_the_verifier_no_longer_knows_is_renewed_by_sampling_the_same_task(chat: ChatFormat, loop: EventLoopThread) -> None:
    world = World(score_fault=lambda call: Response("{}", status_code=409) if call == 1 else None, status_of=lambda _: VerdictStatus.PASS)
    groups = groups_of(collect(world, chat, loop))
    assert len(groups) == 2
    assert world.calls["sample"] >= 3


def test_a_refused_request_ends_the_collection_with_the_servers_words(chat: ChatFormat, loop: EventLoopThread) -> None:
    world = World(sample_fault=lambda _: Response("no environment 'sums'", status_code=404))
    with pytest.raises(RequestRefusedError, match="404: no environment 'sums'"):
        collect(world, chat, loop)


def test_a_wait_without_progress_ends_in_an_error_that_says_what_to_look_at(chat: ChatFormat, loop: EventLoopThread) -> None:
    world = World(clean=())
    with pytest.raises(CollectionStalledError, match="look at the logs"):
        collect(world, chat, loop, stall_seconds=0.3)


def test_the_chat_format_finds_every_end_token_and_renders_once(chat: ChatFormat) -> None:
    assert chat.end_token_ids == (1,)
    ids = chat.render([Message(role="user", content="1+1=")])
    assert chat.decode(ids) == "1+1=", "special tokens are not part of the text"
    with pytest.raises(ValueError, match="leaves 60"):
        chat.render([Message(role="user", content="1" * 80)])
