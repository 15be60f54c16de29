"""A learner without engines, on a real store: for stages that need none, and that must survive the death of their process."""

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

from rlvr_api.spec import RLVRJob
from rlvr_api.wire import EnvironmentInfo
from rlvr_trainer.collector.collector import EventLoopThread
from rlvr_trainer.context import RunContext
from rlvr_trainer.fleet import EngineFleet
from rlvr_trainer.metrics_log import MetricsLog
from rlvr_trainer.policy import Policy
from rlvr_trainer.progress import ProgressBoard
from rlvr_trainer.provenance import Provenance, begin_lineage
from rlvr_trainer.run import Run
from rlvr_trainer.stages import STAGES
from rlvr_trainer.storage.attempts import claim_attempt
from rlvr_trainer.storage.checkpoint_reader import load_latest
from rlvr_trainer.storage.client import ObjectStore, S3Settings
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.telemetry import StepInstruments
from rlvr_trainer.versions import VersionHistory

KEYS = StageKeys(0, "cold-start")


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


SUMS = EnvironmentInfo(name="sums", kind="arithmetic", version="2", levels=(0, 30), held_out_tasks={0: 23}, deterministic=True)


def make_job(place, model, stage, chat_template=None, lora=None, **spec):
    """A job of one stage, `cold-start`, with its store at `place.uri`."""
    return RLVRJob.model_validate({
        "apiVersion": "rlvr.dev/v1alpha1",
        "kind": "RLVRJob",
        "metadata": {"name": "job"},
        "spec": {
            "model": {"uri": f"file://{model}", "maxModelLen": 64, "chatTemplate": chat_template, "lora": lora},
            "storage": {"uri": place.uri, "endpoint": place.endpoint},
            "environments": [{"name": "sums", "arithmetic": {}}],
            "sampling": {"maxTokens": 8},
            "stages": [{"name": KEYS.name, **stage}],
            "learner": {"checkpoint": {"everySteps": 3, "keepLast": 2}},
            **spec,
        },
    })  # fmt: skip


def make_run(job, place, model, attempt, runner, fuse=None, **parts):
    """Attempt `attempt` of the job."""
    store = ObjectStore.open(place.uri, S3Settings(place.endpoint), "job")
    context = RunContext(
        job=job, attempt=attempt, engine_urls={}, verifier_url="", advertised_host="127.0.0.1", status_port=0, model_dir=model,
        s3_endpoint=place.endpoint, work_dir=model,
    )  # fmt: skip
    provenance = Provenance(begin_lineage(job, model), [SUMS])
    provenance.begin(job.spec.stages[0])
    return LoneRun(
        context=context, stop=threading.Event(), store=store, claim=claim_attempt(store, attempt), policy=Policy.load(model, job.spec),
        publisher=SimpleNamespace(clean_engines=tuple, states=dict), runner=runner,
        loop=EventLoopThread("test"), board=ProgressBoard(KEYS.name, 1, 0, EngineFleet({})), metrics=MetricsLog(store),
        instruments=StepInstruments(), held_out=(SUMS,), evaluation=None, versions=VersionHistory(),
        provenance=provenance, fuse=fuse, **parts,
    )  # fmt: skip


def execute(run):
    """One attempt, from where the store says it stands; the weights it ends with."""
    stage = run.context.job.spec.stages[0]
    try:
        STAGES[stage.kind](run, 0, stage, load_latest(run.store, KEYS), 0).execute()
    finally:
        run.metrics.close()
        run.loop.close()
    return {name: tensor.clone() for name, tensor in run.policy.engine_named_tensors().items()}
