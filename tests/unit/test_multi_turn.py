"""Episodes of several turns, from sampled tokens to tensors that are trained on, with the real verifier service and a scripted engine."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr_api.spec import RLVRJob
from rlvr_api.wire import StepItem, TaskRequest, Transcript, VerdictStatus, digest_observations
from rlvr_trainer.chat import ChatFormat
from rlvr_trainer.collector.engines import Completion, EngineLostError, Sample
from rlvr_trainer.collector.episode import Episode, EpisodeRunner
from rlvr_trainer.collector.verifiers import VerifierClient
from rlvr_trainer.learner import _tree as learner_tree
from rlvr_trainer.packing import Branch, Tree, pack
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.rollout import Admission, RolloutGroup, VersionSpan
from rlvr_trainer.storage.rollouts import decode_groups, encode_groups
from rlvr_verifier.app import build_app
from rlvr_verifier.drain import Drain
from rlvr_verifier.environments import open_environments
from rlvr_verifier.environments.base import SampledTask
from rlvr_verifier.environments.calculator import ADVICE, CalculatorEnvironment
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.pool import WorkerPool
from rlvr_verifier.seal import Seal
from rlvr_verifier.service import VerifierService

MAX_TOKENS = 24
JOB = RLVRJob.model_validate({
    "apiVersion": "rlvr.dev/v1alpha1", "kind": "RLVRJob", "metadata": {"name": "turns"},
    "spec": {
        "model": {"uri": "file:///tiny"},
        "environments": [{"name": "desk", "calculator": {"instruction": "{problem}", "maxTurns": 3}}],
        "stages": [{"name": "climb", "rlvr": {"algorithm": {"grpo": {}}, "steps": 1}}],
        "integrity": {"canaryRate": 0.0},
    },
})  # fmt: skip
Script = Callable[[str, str, int], str]
"""The problem, what was told last (the problem at first) and the sample's number -> what the model says."""


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    folder: Path = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_model(folder)
    return ChatFormat(folder, None, 200 - MAX_TOKENS)


class ScriptedEngines:
    """Says what a script says, token by token, with a log-prob of its own and a newer weight version at each call."""

    def __init__(self, chat: ChatFormat, script: Script, lost: frozenset[int] = frozenset()) -> None:
        self.chat, self.script, self.lost = chat, script, lost
        self.calls: list[tuple[tuple[int, ...], int, int]] = []
        self.samples_at: dict[tuple[int, ...], int] = {}

    async def generate(self, prompt_ids: tuple[int, ...], samples: int, seed: int, timeout_seconds: float) -> Completion:
        self.calls.append((prompt_ids, samples, seed))
        if len(self.calls) in self.lost:
            raise EngineLostError("the engine went away")
        messages = [part.split("<e>")[0] for part in self.chat._tokenizer.decode(prompt_ids).split("<u>")[1:]]
        said = [self.script(messages[0], messages[-1], number) for number in range(samples)]
        return Completion("engine", tuple(self._sample(text, len(self.calls)) for text in said), 0.1)

    def _sample(self, text: str, version: int) -> Sample:
        ids = tuple(self.chat._tokenizer.encode(text, add_special_tokens=False))
        ids, reason = (ids[:MAX_TOKENS], "length") if len(ids) >= MAX_TOKENS else ((*ids, self.chat.end_token_ids[0]), "stop")
        return Sample(ids, tuple(-0.01 * token for token in ids), (VersionSpan(version, 0, len(ids)),), reason)  # type: ignore[arg-type]


def make_service(environments: dict[str, CalculatorEnvironment] | None = None) -> VerifierService:
    pool = WorkerPool(JOB.model_dump_json(by_alias=True), JOB.spec)
    return VerifierService(JOB.spec, environments or open_environments(JOB, {}), Seal(b"k" * 32), pool, Instruments())


async def collect(
    chat: ChatFormat, engines: ScriptedEngines, service: VerifierService | None = None, samples: int = 2, seed: int = 5
) -> RolloutGroup:
    instruments = Instruments()
    transport = httpx.ASGITransport(build_app(service or make_service(), instruments, Drain()))
    async with httpx.AsyncClient(transport=transport, base_url="http://verifier") as client:
        runner = EpisodeRunner(engines, VerifierClient("http://verifier", client, 5.0), chat, 1.0)  # type: ignore[arg-type]
        return await runner.run(Episode("job/climb/1/0", Admission(0, "desk", 0, 7), "train", samples, seed))


def answer_of(told: str) -> str:
    return told.rpartition("= ")[2]


def ask_first(problem: str, told: str, sample: int) -> str:
    """Asks the calculator, and then repeats what it says."""
    return answer_of(told) if "=" in told else f"{problem} ="


def test_turns_are_exact_by_token_and_observations_carry_nothing(chat: ChatFormat) -> None:
    engines = ScriptedEngines(chat, ask_first)
    group = asyncio.run(collect(chat, engines))
    problem = group.prompt
    left, _, right = problem.split()
    result = f"{problem} = {int(left) + int(right)}"
    for rollout in group.rollouts:
        assert rollout.verdict.status is VerdictStatus.PASS
        assert rollout.turns == ((f"{problem} =", result), (answer_of(result), None))
        ((start, end),) = rollout.observed
        assert rollout.token_ids[start:end] == chat.continuation(result, chat.end_token_ids[0])
        assert rollout.logprobs == tuple(
            0.0 if start <= place < end else -0.01 * token for place, token in enumerate(rollout.token_ids)
        )  # the sampler's own, at the places of sampled tokens
        assert [span.start for span in rollout.spans] == [0, end]  # observed tokens count to the turn before
        assert rollout.spans[-1].end == len(rollout.token_ids)
        assert rollout.sampled_tokens == len(rollout.token_ids) - (end - start)
        assert rollout.longest_turn_tokens == start
    # A later turn is sampled after exactly what was sampled and observed before.
    first = group.rollouts[0]
    assert [call[:2] for call in engines.calls[1:]] == [((*group.prompt_ids, *first.token_ids[:end]), 1)] * 2
    assert len({seed for _, _, seed in engines.calls}) == 3


def test_what_is_learned_from_an_episode_is_what_was_sampled(chat: ChatFormat) -> None:
    group = asyncio.run(collect(chat, ScriptedEngines(chat, ask_first)))
    tree = learner_tree(0, group, [1.0, -1.0])
    sampled = [
        token
        for rollout in group.rollouts
        for place, token in enumerate(rollout.token_ids)
        if not any(start <= place < end for start, end in rollout.observed)
    ]
    packed = pack([tree], 16)
    assert packed.targets.tolist() == sampled
    assert tree.trained_tokens == sum(rollout.sampled_tokens for rollout in group.rollouts)
    assert (packed.sampler_logprobs < 0).all()
    assert len(packed.token_ids) == len(group.prompt_ids) + sum(len(rollout.token_ids) - 1 for rollout in group.rollouts)


def test_samples_end_at_turns_of_their_own(chat: ChatFormat) -> None:
    def script(problem: str, told: str, sample: int) -> str:
        if "=" not in told:
            return ("0", f"{problem} =", "abc =", "word " * MAX_TOKENS)[sample]
        return f"{problem} =" if told == ADVICE else answer_of(told)

    group = asyncio.run(collect(chat, ScriptedEngines(chat, script), samples=4))
    assert [len(rollout.turns) for rollout in group.rollouts] == [1, 2, 3, 1]
    assert [rollout.finish_reason for rollout in group.rollouts] == ["stop", "stop", "stop", "length"]
    assert [rollout.verdict.status.value for rollout in group.rollouts] == ["fail", "pass", "pass", "invalid"]


def test_a_turn_that_is_cut_off_is_a_turn_and_its_end_is_observed(chat: ChatFormat) -> None:
    def script(problem: str, told: str, sample: int) -> str:
        return "1" if told == ADVICE else "a" * (MAX_TOKENS - 1) + "="

    group = asyncio.run(collect(chat, ScriptedEngines(chat, script)))
    rollout = group.rollouts[0]
    assert (len(rollout.turns), rollout.finish_reason, rollout.longest_turn_tokens) == (2, "stop", MAX_TOKENS)
    start, end = rollout.observed[0]
    assert rollout.token_ids[start:end] == (chat.end_token_ids[0], *chat.continuation(ADVICE, chat.end_token_ids[0]))


def test_an_episode_without_an_answer_ends_at_its_last_turn(chat: ChatFormat) -> None:
    group = asyncio.run(collect(chat, ScriptedEngines(chat, lambda problem, told, sample: f"{problem} =")))
    assert {(len(rollout.turns), rollout.verdict.reason) for rollout in group.rollouts} == {(3, "no answer in 3 turns")}


def test_an_episode_ends_where_no_further_turn_fits(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny")
    narrow = ChatFormat(tmp_path / "tiny", None, 20)
    group = asyncio.run(collect(narrow, ScriptedEngines(narrow, ask_first)))
    for rollout in group.rollouts:
        assert (rollout.finish_reason, rollout.observations, rollout.verdict.status) == ("length", (), VerdictStatus.INVALID)


def test_a_turn_that_is_lost_is_sampled_again_and_earlier_ones_are_kept(chat: ChatFormat) -> None:
    engines = ScriptedEngines(chat, ask_first, lost=frozenset({2, 3}))
    group = asyncio.run(collect(chat, engines))
    assert [rollout.verdict.status for rollout in group.rollouts] == [VerdictStatus.PASS] * 2
    assert [samples for _, samples, _ in engines.calls] == [2, 1, 1, 1, 1]


class Drifting(CalculatorEnvironment):
    """Says something else each time: what no environment may do."""

    plays = 0

    def play(self, payload, actions):  # type: ignore[no-untyped-def]
        Drifting.plays += 1
        play = super().play(payload, actions)
        return type(play)(tuple(f"{told} {Drifting.plays}" for told in play.observations), play.score)


class Failing(CalculatorEnvironment):
    """Breaks at the second turn of what begins with a help call."""

    def play(self, payload, actions):  # type: ignore[no-untyped-def]
        if actions[0].startswith("help") and len(actions) > 1:
            raise RuntimeError("secret 42")
        return super().play(payload, actions)


@pytest.mark.parametrize("kind", [Drifting, Failing])
def test_what_cannot_be_played_is_masked_and_never_a_reward(chat: ChatFormat, kind: type[CalculatorEnvironment]) -> None:
    def script(problem: str, told: str, sample: int) -> str:
        if "=" in told:
            return f"{problem} ="
        left, _, right = problem.split()
        return "help =" if sample == 0 else str(int(left) + int(right))

    service = make_service({"desk": kind(JOB.spec.environments[0])})
    group = asyncio.run(collect(chat, ScriptedEngines(chat, script), service, samples=4))
    assert [rollout.reward for rollout in group.rollouts] == [None, 1.0, 1.0, 1.0]
    assert group.rollouts[0].verdict.status is VerdictStatus.INFRA_ERROR
    assert "42" not in group.rollouts[0].verdict.reason


def test_episodes_survive_parquet_bit_by_bit(chat: ChatFormat) -> None:
    import pyarrow as pa

    group = asyncio.run(collect(chat, ScriptedEngines(chat, ask_first)))
    assert list(decode_groups(pa.BufferReader(b"".join(encode_groups([group]))), "here")) == [group]


def test_a_step_is_the_same_from_any_replica_and_any_number_of_times() -> None:
    """Nothing is kept: another service with the same key goes on, and a request that comes again changes nothing."""
    one, other = make_service(), make_service()
    task = one.sample(TaskRequest(environment="desk", split="train", seed=1))
    call = StepItem(environment="desk", task_key=task.task_key, transcript=Transcript(actions=("1 + 1 =",)))
    results = [asyncio.run(service.step(call)) for service in (one, one, other)]
    assert {result.observation for result in results} == {"1 + 1 = 2"}
    second = Transcript(actions=("1 + 1 =", "2 * 3 ="), observed=digest_observations(["1 + 1 = 2"]))
    assert asyncio.run(other.step(call.model_copy(update={"transcript": second}))).observation == "2 * 3 = 6"
    forged = second.model_copy(update={"observed": digest_observations(["1 + 1 = 3"])})
    result = asyncio.run(other.step(call.model_copy(update={"transcript": forged})))
    assert (result.observation, result.done) == (None, False)
    assert "other observations" in result.fault


@pytest.mark.parametrize(
    ("action", "observation"),
    [("12 + 30 =", "12 + 30 = 42"), ("so:\n 7*-6 = \n", "7 * -6 = -42"), ("9**9 =", ADVICE), ("__import__('os') =", ADVICE), ("=", ADVICE)],
)
def test_calls_of_the_calculator(action: str, observation: str) -> None:
    environment = CalculatorEnvironment(JOB.spec.environments[0])
    task: SampledTask = environment.sample("train", 1, 0)
    assert environment.play(task.payload, (action,)).observations == (observation,)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), max_size=4), st.integers(1, 5), st.integers(1, 6))
def test_only_sampled_tokens_are_targets_and_each_is_predicted_by_the_token_before(
    turns: list[tuple[int, int]], last: int, prompt: int
) -> None:
    """Against the definition: of each sampled token its place in the sequence, and the fed row before it."""
    observed, place = [], 0
    for said, told in turns:
        observed.append((place + said, place + said + told))
        place += said + told
    ids = tuple(range(100, 100 + place + last))
    other = Branch((7, 8), (-0.5, -0.5), 2.0)
    mine = Branch(ids, tuple(-float(token) for token in ids), 1.0, tuple(token % 5 for token in ids), tuple(observed))
    tree = Tree(0, tuple(range(prompt)), (other, mine, other))
    packed = pack([tree], 16)
    sampled = [token for number, token in enumerate(ids) if not any(start <= number < end for start, end in observed)]
    chosen = packed.sequences == 1
    assert packed.targets[chosen].tolist() == sampled
    assert packed.sampler_logprobs[chosen].tolist() == [-float(token) for token in sampled]
    assert packed.ages[chosen].tolist() == [token % 5 for token in sampled]
    assert tree.trained_tokens == len(packed.targets) == len(sampled) + 4
    before = packed.token_ids[packed.logit_rows[packed.token_rows[chosen]]].tolist()
    assert before == [prompt - 1 if token == 100 else token - 1 for token in sampled]
    assert torch.equal(packed.logit_rows, packed.logit_rows.unique())  # ascending, each row once
    assert set(packed.token_rows.tolist()) == set(range(len(packed.logit_rows)))  # none that predicts nothing
