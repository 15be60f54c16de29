"""The stage `rlvr` against a real store, without engines: what a killed attempt leaves behind is taken up to the bit."""

import itertools
import json
import random
from dataclasses import dataclass, field
from types import SimpleNamespace

import lone_run
import pytest
import torch
from lone_run import KilledError, LoneRun, make_job
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rlvr_api.wire import CanaryTag, CanaryVerdict, Verdict, VerdictStatus
from rlvr_trainer import telemetry
from rlvr_trainer.chat import ChatFormat
from rlvr_trainer.metrics_log import read_steps
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.rollout import Rollout, RolloutGroup, VersionSpan
from rlvr_trainer.run import UntrustworthyRewardError
from rlvr_trainer.stages import STAGES
from rlvr_trainer.storage.checkpoint_reader import committed_steps, latest_manifest, load_latest
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.records import CommittedRecord, check_chain, read_history, read_records

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 6


@dataclass
class Engines:
    """Samples that depend on the task alone, with about the log-probs of the tiny model's start: the policy moves away from them."""

    chat: ChatFormat
    run_of: LoneRun | None = None
    verifiers: object = field(default_factory=lambda: SimpleNamespace(take_canaries=tuple))

    async def run(self, episode):
        rng = random.Random(episode.admission.task_seed)
        version = self.run_of.versions.current
        rollouts = tuple(self._rollout(rng, f"{episode.id}/{number}", version) for number in range(episode.samples))
        return RolloutGroup(
            episode.admission, "0" * 16, (4, 9 + episode.admission.index % 9, 3), "1 + 1", rollouts, "rollout-0", "", 1.0, 0.1
        )

    def _rollout(self, rng, name, version):
        token = rng.randrange(20, 30)
        passed = token % 2 == 0
        status = VerdictStatus.PASS if passed else VerdictStatus.FAIL
        verdict = Verdict(id=name, status=status, score=float(passed), verifier="arithmetic", verifier_version="1")
        return Rollout((token, 1), (-4.2, -4.2), (VersionSpan(version, 0, 2),), "stop", "", verdict)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("rlvr")
    write_tiny_model(place / "tiny")
    return place / "tiny"


@pytest.fixture(scope="module")
def make_place(s3):
    numbers = itertools.count()

    def make():
        return SimpleNamespace(uri=s3.folder(f"rlvr-{next(numbers)}"), endpoint=s3.endpoint)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
        yield make


GOVERNED = {"maxStaleness": 0, "governor": {"maxKl": 0.02, "pauseKl": 5.0, "healthySteps": 1}}
TRACES = [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(6)]


def make_run(place, model, attempt, *, off_policy, stages, dies_at=None, lora=None, **spec):
    """An attempt that dies when it publishes version `dies_at`."""
    checkpoint = {"checkpoint": {"everySteps": 4, "keepLast": 1}}
    job = make_job(place, model, {}, lora=lora, stages=stages, offPolicy=off_policy, learner=checkpoint, **spec)
    engines = Engines(ChatFormat(model, None, 56))
    run = engines.run_of = lone_run.make_run(job, place, model, attempt, engines)
    aborted = run.aborted = []
    run.publisher.abort_requests = lambda: aborted.append(run.versions.current)

    def publish(step):
        if run.versions.publish(step) == dies_at:
            raise KilledError

    run.publish = publish
    return run


def climb(**settings):
    return {"name": "climb", "rlvr": {"steps": STEPS, "promptsPerStep": 2, "groupSize": 6, "ordered": True,
                                      "optimizer": {"learningRate": 3e-3}, **settings}}  # fmt: skip


def execute(run):
    """All stages from where the store says the job stands, as `python -m rlvr_trainer` does; the weights it ends with."""
    stages = run.context.job.spec.stages
    keys = [StageKeys(index, stage.name) for index, stage in enumerate(stages)]
    try:
        checkpoint = load_latest(run.store, keys)
        first = 0
        if checkpoint is not None:
            run.versions.restore(checkpoint.manifest.state.scalars.get("versions"))
            first = checkpoint.manifest.stage_index + int(checkpoint.manifest.state.final)
            if checkpoint.manifest.state.final:
                run.policy.load_tensors(checkpoint.tensors)
                checkpoint = None
        before = sum(latest_manifest(run.store, key).step for key in keys[:first])
        for index, stage in enumerate(stages[first:], first):
            run.provenance.begin(stage)
            before += STAGES[stage.kind](run, index, stage, checkpoint, before).execute()
            checkpoint = None
    finally:
        run.metrics.close()
        run.loop.close()
    return {name: tensor.clone() for name, tensor in run.policy.engine_named_tensors().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def governed_steps(run):
    return [step.governor for step in read_steps(run.store) if step.stage == "climb"]


@pytest.fixture(scope="module")
def governed(make_place, models):
    """A governed run of one attempt, and the weights it ended with."""
    run = make_run(make_place(), models, 1, off_policy=GOVERNED, stages=[climb()])
    return run, execute(run)


@pytest.mark.parametrize("dies_at", [3, 6])
def test_a_killed_run_is_governed_as_an_undisturbed_one(make_place, models, governed, dies_at):
    whole, weights = governed
    stages = [climb()]
    states = [committed.record.governor for committed in read_records(whole.store, StageKeys(0, "climb"))]
    assert len({json.dumps(state) for state in states}) > 2, "it must have done something"
    assert {action.partition(":")[0] for step in governed_steps(whole) for action in step.actions} >= {"tighten", "pause"}

    place = make_place()
    with pytest.raises(KilledError):
        execute(make_run(place, models, 1, off_policy=GOVERNED, stages=stages, dies_at=dies_at))
    resumed = make_run(place, models, 2, off_policy=GOVERNED, stages=stages)
    assert same(execute(resumed), weights)
    assert [committed.record.governor for committed in read_records(resumed.store, StageKeys(0, "climb"))] == states
    assert governed_steps(resumed) == governed_steps(whole)


def test_what_it_does_is_in_status_trace_and_metrics_and_a_pause_ends_what_engines_have_in_flight(make_place, models, monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "tracer", lambda: provider.get_tracer("test"))
    settings = {"maxStaleness": 1, "governor": {"maxKl": 1e-6, "minEss": 0.999, "pauseKl": 1e-5}}
    run = make_run(make_place(), models, 1, off_policy=settings, stages=[climb(ordered=False, steps=3)])
    execute(run)
    events = [event for span in exporter.get_finished_spans() for event in span.events if event.name == "governor"]
    assert events[0].attributes["action"] == "pause"
    shown = run.board.snapshot().governor
    assert (shown.mode, shown.max_staleness) == ("paused", 0)
    assert shown.message == events[-1].attributes["message"]
    first = governed_steps(run)[0]
    assert (first.paused, first.max_staleness, first.actions) == (True, 0, (events[0].attributes["message"],))
    assert run.aborted[0] == 1  # once the first step's weights were published
    dropped = sum(step.discarded.get("stale", 0) for step in read_steps(run.store))
    assert dropped > 0
    assert [step.staleness_max for step in read_steps(run.store)][1:] == [0, 0]
    assert isinstance(trace.get_current_span(), trace.NonRecordingSpan)


def test_killed_stages_of_adapters_go_on_with_them_and_are_held_to_those_of_the_stage_before(make_place, models):
    stages = [climb(steps=2), {**climb(steps=4, referenceKl={"coefficient": 0.1, "reference": "stageStart"}), "name": "again"}]
    settings = {"off_policy": {"maxStaleness": 0}, "stages": stages, "lora": {"rank": 4}}
    whole = make_run(make_place(), models, 1, **settings)
    weights = execute(whole)
    place = make_place()
    with pytest.raises(KilledError):
        execute(make_run(place, models, 1, dies_at=6, **settings))
    resumed = make_run(place, models, 2, **settings)
    assert same(execute(resumed), weights)
    found = [[step.reference_kl for step in read_steps(run.store) if step.stage == "again"] for run in (whole, resumed)]
    assert found[0] == found[1]
    assert found[0][0] < 1e-9 < found[0][-1]
    checkpoint = load_latest(resumed.store, StageKeys(1, "again"))
    assert all(".lora_" in name for name in checkpoint.tensors if name.startswith("model/"))


def test_a_killed_run_with_a_critic_goes_on_with_it(make_place, models):
    stages = [climb(algorithm={"ppo": {"gaeLambda": 0.9}}, minibatches=2)]
    whole = make_run(make_place(), models, 1, off_policy={"maxStaleness": 0}, stages=stages)
    weights = execute(whole)
    place = make_place()
    with pytest.raises(KilledError):
        execute(make_run(place, models, 1, off_policy={"maxStaleness": 0}, stages=stages, dies_at=6))
    resumed = make_run(place, models, 2, off_policy={"maxStaleness": 0}, stages=stages)
    assert same(execute(resumed), weights)
    found = [[step.explained_variance for step in read_steps(run.store)] for run in (whole, resumed)]
    assert found[0] == found[1]
    assert all(value is not None and value < 1 for value in found[0])
    assert not any("critic" in name for name in resumed.policy.engine_named_tensors())


@pytest.mark.parametrize("reference", ["base", "stageStart"])
def test_a_resumed_stage_is_held_to_the_same_reference(make_place, models, tmp_path, reference):
    traces = tmp_path / "traces.jsonl"
    traces.write_text("\n".join(map(json.dumps, TRACES)))
    stages = [
        {"name": "start", "sft": {"traces": f"file://{traces}", "examplesPerStep": 3, "optimizer": {"learningRate": 3e-3}}},
        climb(referenceKl={"coefficient": 0.1, "reference": reference}),
    ]
    whole = make_run(make_place(), models, 1, off_policy={"maxStaleness": 0}, stages=stages)
    weights = execute(whole)
    place = make_place()
    with pytest.raises(KilledError):
        execute(make_run(place, models, 1, off_policy={"maxStaleness": 0}, stages=stages, dies_at=7))
    resumed = make_run(place, models, 2, off_policy={"maxStaleness": 0}, stages=stages)
    assert same(execute(resumed), weights)
    found = [[step.reference_kl for step in read_steps(run.store) if step.stage == "climb"] for run in (whole, resumed)]
    assert found[0] == found[1]
    assert (found[0][0] < 1e-9) == (reference == "stageStart")
    assert found[0][-1] > 1e-6


ROLLING_BACK = {
    "off_policy": {"maxStaleness": 0}, "stages": [climb(steps=8)],
    "integrity": {"windowSteps": 2, "onViolation": "Rollback", "canaryRate": 1.0},
}  # fmt: skip
EXPLOITED = CanaryVerdict(environment="sums", tag=CanaryTag.EXPLOIT, probe="question-echo", kept=False)


def exploit_at_step(run, number):
    """The canaries of one step show that an exploit is paid."""
    steps = itertools.count(1)
    run.runner.verifiers = SimpleNamespace(take_canaries=lambda: (EXPLOITED,) if next(steps) == number else ())


def rolled_back(place, models):
    """A first attempt that finds an exploit in step 7: the window is steps 6 and 7, and the checkpoint before them is of step 4."""
    run = make_run(place, models, 1, **ROLLING_BACK)
    exploit_at_step(run, 7)
    with pytest.raises(UntrustworthyRewardError, match=r"rolled back from step 7 to step 4 by .*exploits: question-echo.*--branch 0"):
        execute(run)
    return run


def test_a_stage_whose_reward_cannot_be_believed_goes_back_and_on_from_there(make_place, models):
    place = make_place()
    before = rolled_back(place, models)
    shown = before.board.snapshot()
    assert (shown.step, shown.checkpoint_step) == (4, 4)
    assert (shown.rollback.number, shown.rollback.from_step, shown.rollback.to_step) == (1, 7, 4)
    trunk, branch = StageKeys(0, "climb"), StageKeys(0, "climb", 1)
    assert committed_steps(before.store, trunk) == (4, 7)
    assert [step.step for step in read_steps(before.store)] == [1, 2, 3, 4]

    after = make_run(place, models, 2, **ROLLING_BACK)
    weights = execute(after)
    assert committed_steps(after.store, trunk) == (4, 7), "what was taken back stays"
    assert committed_steps(after.store, branch)[-1] == 8
    assert [(step.step, step.branch) for step in read_steps(after.store)] == [(step, int(step > 4)) for step in range(1, 9)]
    assert after.board.snapshot().rollback == shown.rollback
    assert after.versions.current > before.versions.current + 4, "no version is given out twice"

    history = read_history(after.store, trunk)
    check_chain(history)
    consumed = [index for item in history if isinstance(item, CommittedRecord) for index in item.record.groups]
    discarded = {discard.index: discard.reason for item in history for discard in item.record.discarded}
    assert sorted([*consumed, *discarded]) == list(range(history[-1].record.cursor)), "every index is one thing"
    assert set(discarded.values()) == {"rolledBack"}
    taken_back = [index for item in read_records(after.store, trunk) if item.record.step > 4 for index in item.record.groups]
    assert set(taken_back) <= set(discarded)

    # A run that dies after its rollback ends with the same weights.
    place = make_place()
    dead = rolled_back(place, models)
    with pytest.raises(KilledError):
        execute(make_run(place, models, 2, dies_at=dead.versions.current + 3, **ROLLING_BACK))
    assert same(execute(make_run(place, models, 3, **ROLLING_BACK)), weights)


def test_a_violation_in_the_first_window_begins_the_stage_anew(make_place, models):
    place = make_place()
    run = make_run(place, models, 1, **ROLLING_BACK)
    exploit_at_step(run, 2)
    with pytest.raises(UntrustworthyRewardError, match="rolled back from step 2 to step 0 by"):
        execute(run)
    again = make_run(place, models, 2, **ROLLING_BACK)
    exploit_at_step(again, 6)
    with pytest.raises(UntrustworthyRewardError, match="rolled back from step 6 to step 4 by"):
        execute(again)
    assert again.board.snapshot().rollback.number == 2
    last = make_run(place, models, 3, **ROLLING_BACK)
    execute(last)
    history = read_history(last.store, StageKeys(0, "climb"))
    assert [item.record.step for item in history if isinstance(item, CommittedRecord)] == list(range(1, 9))
    assert check_chain(history).branch == 2
