"""The stage `sft` against a real store, killed and stopped anywhere: it ends with the weights of a run that nothing disturbed."""

import itertools
import json
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from rlvr_api.spec import RLVRJob
from rlvr_trainer.chat import ChatFormat
from rlvr_trainer.context import BadInputError, RunContext
from rlvr_trainer.fleet import EngineFleet
from rlvr_trainer.metrics_log import MetricsLog, read_steps
from rlvr_trainer.policy import Policy
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.progress import ProgressBoard
from rlvr_trainer.run import Run, StopRequestedError
from rlvr_trainer.stages.sft import SftStage
from rlvr_trainer.storage.attempts import claim_attempt
from rlvr_trainer.storage.checkpoint_reader import load_latest
from rlvr_trainer.storage.client import ObjectStore, S3Settings
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.records import read_records
from rlvr_trainer.telemetry import StepInstruments
from rlvr_trainer.versions import VersionHistory

KEYS = StageKeys(0, "cold-start")
STEPS = 8
"""20 examples, 2 epochs, 5 at a time."""


class KilledError(Exception):
    """The process died."""


@dataclass
class LoneRun(Run):
    """A run without engines: publishing and evaluating do nothing. `fuse` counts down to its death."""

    fuse: int | None = None
    evaluated: list[int] = field(default_factory=list)

    def check(self):
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise KilledError
        super().check()

    def reserve_versions(self, next_version):
        self.versions.reserve(next_version)

    def publish(self, step):
        self.versions.publish(step)

    def evaluate(self, keys, step, total_step, plan=None, ks=()):
        self.evaluated.append(step)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft") / "tiny"
    write_tiny_model(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def make_place(s3, tmp_path_factory):
    """A folder of jobs in a bucket of its own, and a file of traces."""
    numbers = itertools.count()

    def make():
        bucket = s3.make_bucket(f"sft-{next(numbers)}")
        traces = tmp_path_factory.mktemp("traces") / "traces.jsonl"
        traces.write_text("\n".join(json.dumps({"prompt": f"{n}+1=", "completion": str(n + 1)}) for n in range(20)))
        return SimpleNamespace(uri=f"s3://{bucket}/runs", endpoint=s3.endpoint, traces=traces)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
        yield make


@pytest.fixture
def place(make_place):
    return make_place()


@pytest.fixture(scope="module")
def undisturbed(make_place, model):
    """A whole run of one attempt, and the weights it ended with."""
    run = make_run(make_place(), model, 1)
    return run, execute(run)


def make_run(place, model, attempt, fuse=None):
    job = RLVRJob.model_validate({
        "apiVersion": "rlvr.dev/v1alpha1",
        "kind": "RLVRJob",
        "metadata": {"name": "job"},
        "spec": {
            "model": {"uri": f"file://{model}", "maxModelLen": 64},
            "storage": {"uri": place.uri, "endpoint": place.endpoint},
            "environments": [{"name": "sums", "arithmetic": {}}],
            "sampling": {"maxTokens": 8},
            "stages": [{"name": "cold-start", "sft": {"traces": f"file://{place.traces}", "epochs": 2, "examplesPerStep": 5,
                                                      "optimizer": {"learningRate": 1e-3, "schedule": "cosine"}}}],
            "learner": {"checkpoint": {"everySteps": 3, "keepLast": 2}},
        },
    })  # fmt: skip
    store = ObjectStore.open(place.uri, S3Settings(place.endpoint), "job")
    context = RunContext(
        job=job, attempt=attempt, engine_urls={}, verifier_url="", advertised_host="127.0.0.1", status_port=0, model_dir=model,
        s3_endpoint=place.endpoint, work_dir=place.traces.parent,
    )  # fmt: skip
    return LoneRun(
        context=context, stop=threading.Event(), store=store, claim=claim_attempt(store, attempt), policy=Policy.load(model, job.spec),
        publisher=SimpleNamespace(clean_engines=tuple, states=dict), runner=SimpleNamespace(chat=ChatFormat(model, None, 56)),
        loop=None, board=ProgressBoard("cold-start", 1, 0, EngineFleet({})), metrics=MetricsLog(store), instruments=StepInstruments(),
        held_out=(), evaluation=None, versions=VersionHistory(), fuse=fuse,
    )  # fmt: skip


def execute(run):
    """One attempt, from where the store says it stands; the weights it ends with."""
    try:
        SftStage(run, 0, run.context.job.spec.stages[0], load_latest(run.store, KEYS), 0).execute()
    finally:
        run.metrics.close()
    return {name: tensor.clone() for name, tensor in run.policy.engine_named_tensors().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_an_undisturbed_stage_learns_its_traces_and_takes_each_position_once(undisturbed):
    run, _ = undisturbed
    records = [committed.record for committed in read_records(run.store, KEYS)]
    assert [index for record in records for index in record.groups] == list(range(40))
    steps = read_steps(run.store)
    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    assert steps[-1].loss < steps[0].loss - 0.5
    assert steps[0].loss == pytest.approx(4.3, abs=0.3)  # about log of the vocabulary
    assert run.evaluated == [0, STEPS]
    assert load_latest(run.store, KEYS).manifest.state.final
    assert (run.board.snapshot().step, run.board.snapshot().steps) == (STEPS, STEPS)


@pytest.mark.parametrize("fuses", [(0, None), (4, None), (7, 1, None), (5, 0, 2, None)], ids=str)
def test_a_killed_stage_ends_with_the_same_weights(place, model, undisturbed, fuses):
    for attempt, fuse in enumerate(fuses, 1):
        run = make_run(place, model, attempt, fuse)
        if fuse is None:
            found = execute(run)
        else:
            with pytest.raises(KilledError):
                execute(run)
    assert same(found, undisturbed[1])
    assert [index for committed in read_records(run.store, KEYS) for index in committed.record.groups] == list(range(40))
    assert [step.step for step in read_steps(run.store)] == list(range(1, STEPS + 1))


def test_a_stop_commits_what_was_trained(place, model):
    run = make_run(place, model, 1)
    run.instruments.record = lambda metrics: run.stop.set() if metrics.step == 4 else None
    with pytest.raises(StopRequestedError):
        execute(run)
    manifest = load_latest(run.store, KEYS).manifest
    assert (manifest.step, manifest.state.final) == (4, False)


def test_other_traces_than_those_it_began_with_are_refused(place, model):
    with pytest.raises(KilledError):
        execute(make_run(place, model, 1, fuse=2))
    place.traces.write_text(place.traces.read_text() + '\n{"prompt": "1", "completion": "1"}')
    with pytest.raises(BadInputError, match="put the old file back"):
        execute(make_run(place, model, 2))
