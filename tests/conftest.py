"""A realistic run, made up by a seed and written through the real storage code: for tests of everything that reads runs."""

import hashlib
import math
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
import torch
from hypothesis import settings

from rlvr_api.spec import RLVRJob
from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.metrics import StepMetrics, summarize_evaluation
from rlvr_trainer.metrics_log import key_of
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan
from rlvr_trainer.storage.client import ObjectStore
from rlvr_trainer.storage.documents import StoredBlob
from rlvr_trainer.storage.errors import ObjectMissingError
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.records import StepRecord
from rlvr_trainer.storage.rollouts import write_groups

# How long an example takes depends on what else the machine does; a test that hangs is ended by pytest-timeout.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

START = datetime(2026, 5, 4, 9, 0, tzinfo=UTC)
HOSTILE = "<script>alert('x')</script>\x1b[2J\u202e 7</pre><img src=x onerror=alert(1)>{{ 7 * 7 }}"


class MemoryStore(ObjectStore):
    """An object store in a dictionary."""

    def __init__(self):
        self.objects = {}

    def uri(self, key=""):
        return f"memory://{key}"

    def get(self, key):
        if key not in self.objects:
            raise ObjectMissingError(f"there is no {key}")
        return self.objects[key]

    def put(self, key, data):
        return self.upload(key, (data,))

    def upload(self, key, chunks):
        self.objects[key] = b"".join(bytes(chunk) for chunk in chunks)
        return StoredBlob(key=key, bytes=len(self.objects[key]), sha256=hashlib.sha256(self.objects[key]).hexdigest())

    def list(self, prefix="", after=""):
        return tuple(sorted(key for key in self.objects if key.startswith(prefix) and key > after))

    def read(self, blob):
        return bytearray(self.get(blob.key))


def make_job(name="arithmetic", steps=12, samples=8):
    return RLVRJob.model_validate({
        "apiVersion": "rlvr.dev/v1alpha1",
        "kind": "RLVRJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "file:///models/smollm2-135m-instruct", "maxModelLen": 256},
            "environments": [{"name": "sums", "arithmetic": {}, "levels": {"start": 0, "maximum": 1}}],
            "sampling": {"maxTokens": 8},
            "stages": [{"name": "climb", "rlvr": {"steps": steps, "promptsPerStep": 16, "groupSize": samples,
                                                  "optimizer": {"learningRate": 1e-5}}}],
        },
    })  # fmt: skip


@dataclass
class SyntheticRun:
    """A policy that learns sums: its pass rate climbs on a logistic curve; the level rises when it passes 0.9."""

    job: RLVRJob
    store: ObjectStore
    steps: int
    seed: int = 0
    resumed_at: int | None = None
    stage: StageKeys = field(init=False)
    rng: random.Random = field(init=False)

    def __post_init__(self):
        self.stage, self.rng = StageKeys(0, self.job.spec.stages[0].name), random.Random(self.seed)

    def write(self):
        self.evaluate(0, 0)
        level = 0
        for step in range(1, self.steps + 1):
            groups = self.batch(step, level)
            metrics = self.step_metrics(step, level, groups)
            level = 1 if metrics.pass_rate > 0.88 else level
            self.store.put(key_of(metrics), metrics.to_bytes())
            if step % 4 == 0 or step == self.steps:
                self.evaluate(step, self.version(step) + 1)
        return self.job

    def version(self, step):
        """Version that a step trains from; a resume skips two."""
        return step - 1 + (2 if self.resumed_at and step >= self.resumed_at else 0)

    def attempt(self, step):
        return 2 if self.resumed_at and step >= self.resumed_at else 1

    def skill(self, step, level):
        return 0.1 + 0.86 / (1 + math.exp(-(step - 3 - 6 * level) * 0.9))

    def batch(self, step, level):
        size = self.job.spec.stages[0].rlvr.prompts_per_step
        first = (step - 1) * size
        groups = [self.group(Admission(first + offset, "sums", level, self.rng.getrandbits(40)), step, level) for offset in range(size)]
        blob = write_groups(self.store, self.stage.rollouts(step, self.attempt(step)), groups)
        record = StepRecord(
            stage=self.stage.name, step=step, attempt=self.attempt(step), groups=tuple(group.admission.index for group in groups),
            rollouts=(blob,), cursor=first + size, accepted=first + size, weight_version=self.version(step), time=self.time(step),
        )  # fmt: skip
        self.store.put(self.stage.record(step), record.to_bytes())
        return groups

    def group(self, admission, step, level, samples=None, version=None):
        digits = 10 ** (level + 1)
        a, b = self.rng.randrange(digits), self.rng.randrange(digits)
        count = samples or self.job.spec.stages[0].rlvr.group_size
        rollouts = tuple(self.rollout(f"{admission.index}/{number}", a + b, step, level, version) for number in range(count))
        name = hashlib.sha256(f"{a}+{b}/{admission.task_seed}".encode()).hexdigest()[:16]
        prompt = f"What is {a} + {b}? Reply with only the number."
        return RolloutGroup(admission, name, (1, 2, 3), prompt, rollouts, "rollout-0", "", 2.6 + self.rng.random(), 0.05)

    def rollout(self, name, answer, step, level, version):
        chance, skill = self.rng.random(), self.skill(step, level)
        status, score, text, reason = VerdictStatus.FAIL, 0.0, f"The answer is {answer + 1 + self.rng.randrange(5)}", "the answer is wrong"
        if chance < skill:
            status, score, text, reason = VerdictStatus.PASS, 1.0, f"{answer}", "the last integer is right"
        elif chance > 0.995:
            status, score, text, reason = VerdictStatus.INFRA_ERROR, None, f"{answer}", "the verifier did not answer"
        elif chance > 0.96:
            status, text, reason = VerdictStatus.INVALID, HOSTILE, "no integer in the completion"
        tokens = min(8, max(1, len(text) // 2))
        old = max(0, self.version(step) - self.rng.randrange(2)) if version is None else version
        spans = (VersionSpan(old, 0, tokens),)
        if version is None and old < self.version(step) and tokens > 2:
            spans = (VersionSpan(old, 0, 2), VersionSpan(self.version(step), 2, tokens))
        verdict = Verdict(id=name, status=status, score=score, verifier="arithmetic", verifier_version="1", reason=reason, seconds=1e-5)
        logprobs = tuple(-self.rng.expovariate(4) for _ in range(tokens))
        return Rollout(tuple(range(tokens)), logprobs, spans, "length" if tokens == 8 else "stop", text, verdict)

    def step_metrics(self, step, level, groups):
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        judged = [rollout.reward for rollout in rollouts if rollout.reward is not None]
        counts = {status: sum(rollout.verdict.status is status for rollout in rollouts) for status in VerdictStatus}
        noise = self.rng.random
        return StepMetrics(
            stage=self.stage.name, step=step, attempt=self.attempt(step), time=self.time(step), weight_version=self.version(step) + 1,
            reward_mean=sum(judged) / len(judged), pass_rate=counts[VerdictStatus.PASS] / len(judged), groups=len(groups),
            live_groups=sum(len(set(group.rewards)) > 1 for group in groups), rollouts=len(rollouts),
            masked=counts[VerdictStatus.INFRA_ERROR], invalid=counts[VerdictStatus.INVALID], timeouts=counts[VerdictStatus.TIMEOUT],
            discarded={"stale": 1} if step == 5 else {}, truncated_share=max(0.05, 0.9 - step * 0.08),
            completion_tokens_mean=max(2.5, 7.9 - step * 0.5), tokens_trained=sum(len(rollout.token_ids) for rollout in rollouts),
            loss=-0.02 * noise(), gradient_norm=0.6 + noise(), learning_rate=1e-5, staleness_mean=0.4 + 0.3 * noise(), staleness_max=1.0,
            mismatch_kl=2e-5 * (1 + noise()), mismatch_max=0.02 + 0.05 * noise(), ess=0.97 + 0.02 * noise(), clip_fraction=0.01 * noise(),
            entropy=max(0.05, 1.4 - 0.1 * step), tokens_per_second=180 + 60 * noise(), levels={"sums": level},
            phase_seconds={"wait": 1.5 + noise(), "commit": 0.1, "train": 1.9 + 0.4 * noise(), "publish": 0.5 + 0.1 * noise(),
                           "checkpoint": 0.8 if step % 4 == 0 else 0.0},
            generate_seconds=3.0, score_seconds=0.05, paused_seconds=0.02, engines=1,
        )  # fmt: skip

    def evaluate(self, step, version):
        groups = []
        for level in (0, 1):
            tasks = random.Random(level)
            for task in range(30):
                self.rng, kept = random.Random(f"{self.seed}/{step}/{level}/{task}"), self.rng
                admission = Admission(level * 30 + task, "sums", level, tasks.getrandbits(40))
                group = self.group(admission, step, level, samples=8, version=version)
                self.rng = kept
                groups.append(RolloutGroup(admission, f"{level:08d}{task:08d}", *list(_fields(group))[2:]))
        result = summarize_evaluation(groups, stage=self.stage.name, step=step, weight_version=version, attempt=1, time=self.time(step))
        self.store.put(key_of(result), result.to_bytes())

    def time(self, step):
        return START + timedelta(seconds=5 * step)


def _fields(group):
    return (getattr(group, name) for name in group.__dataclass_fields__)


@pytest.fixture(scope="module")
def one_thread():
    """Small tensors are not worth several threads, which change the order of sums besides."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_store():
    """Makes empty object stores in memory."""
    return MemoryStore


@pytest.fixture
def memory_store():
    """An empty object store in memory."""
    return MemoryStore()


@pytest.fixture(scope="session")
def synthetic_run():
    """`SyntheticRun` and `make_job`, to write a run into any store: `synthetic_run(store, steps=…, resumed_at=…)`."""

    def write(store, job=None, steps=12, seed=0, resumed_at=None):
        return SyntheticRun(job or make_job(steps=steps), store, steps, seed, resumed_at).write()

    write.make_job = make_job
    return write
