"""Weights into a real vLLM on the CPU, started as the plan starts it: what it samples is right after every update, generation goes on
while weights arrive, and an engine that dies holds nobody up."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import httpx
import pytest
import torch
from adapter_policy import AdapterLearner
from commands import free_port

from rlvr_api.spec import RLVRJob
from rlvr_api.weight_sync import ObjectStoreDeltas, TorchDistributed
from rlvr_operator.plan import Address, Addresses, Places, plan
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.storage.client import ObjectStore, S3Settings
from rlvr_trainer.weights.engine_client import EngineClient, EngineHandle, open_http
from rlvr_trainer.weights.engine_state import EngineStatus
from rlvr_trainer.weights.probe import Probe
from rlvr_trainer.weights.publisher import WeightPublisher, highest_version

UPDATES = 100
TOLERANCE = 1e-4
START_SECONDS = 180

FORCE_LAYERWISE = """
from rlvr_trainer.weights import installation

def register():
    swap = installation.LayerwiseInstallation.swap

    def announce_and_swap(self):
        print("swapping layer by layer", flush=True)
        swap(self)

    installation._is_plain = lambda model: False
    installation.LayerwiseInstallation.swap = announce_and_swap
"""
"""A plug-in for the engine that takes away the CPU's own way of installing weights, so that GPUs' way runs here."""


LONG = 460
"""Tokens of a completion that is to be in flight for long: many seconds for an idle machine, too, and within the model's context."""


def engine_workload(model, work_dir, port, transport):
    job = RLVRJob.model_validate({
        "apiVersion": "rlvr.dev/v1alpha1",
        "kind": "RLVRJob",
        "metadata": {"name": "weights"},
        "spec": {
            "model": {"uri": f"file://{model}", "maxModelLen": 512},
            "environments": [{"name": "sums", "arithmetic": {}}],
            "sampling": {"maxTokens": 8},
            "weightSync": {transport: {}},
            "stages": [{"name": "climb", "rlvr": {"steps": 1}}],
        },
    })  # fmt: skip
    here = Address("127.0.0.1", port)
    places = Places(sys.executable, str(work_dir / "job.json"), str(model), str(work_dir / "seal.key"), str(work_dir))
    return plan(job, Addresses("127.0.0.1", (here,), here, here), places, 1).workloads[0]


@contextmanager
def running_engine(model, work_dir, extra_path="", name="rollout-0", transport="torchDistributed"):
    port = free_port()
    workload = engine_workload(model, work_dir, port, transport)
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}  # engines have no credentials
    env = {**own, **workload.env, "PYTHONPATH": extra_path}
    with open(work_dir / "engine.log", "w") as log:
        process = subprocess.Popen(workload.command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process, EngineHandle(name, f"http://127.0.0.1:{port}")
        finally:
            kill(process)


def kill(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(condition, what, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def wait_until_ready(process, handle, work_dir):
    def answers():
        assert process.poll() is None, (work_dir / "engine.log").read_text()[-4000:]
        try:
            return httpx.get(f"{handle.base_url}/health", timeout=5.0, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(answers, "the engine is ready", START_SECONDS)


class Learner:
    """The tiny model on the trainer's side, and publishers of its weights."""

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.weights = dict(self.model.named_parameters())
        self.generator = torch.Generator().manual_seed(0)
        self.prompt = tuple(range(5, 45))

    def perturb(self, scale):
        with torch.no_grad():
            for weight in self.weights.values():
                weight += scale * weight.std() * torch.randn(weight.shape, generator=self.generator)

    @torch.no_grad()
    def logprobs(self, prompt, completion):
        logits = self.model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(completion)[:, None])[:, 0].tolist()

    def change_some(self, share):
        with torch.no_grad():
            for weight in self.weights.values():
                chosen = torch.rand(weight.shape, generator=self.generator) < share
                weight += chosen * weight.std() * torch.randn(weight.shape, generator=self.generator)

    def publisher(self, *handles, attempt, timeout_seconds=30.0, transport=None, store=None):
        probe = Probe(self.prompt, self.logprobs, TOLERANCE)
        return WeightPublisher(
            handles, transport=transport or TorchDistributed(), timeout_seconds=timeout_seconds, probe=probe, advertised_host="127.0.0.1",
            attempt=attempt, engine_dtype="float32", open_store=lambda: store,
        )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("engine")
    with running_engine(model, work_dir) as (process, handle):
        wait_until_ready(process, handle, work_dir)
        yield process, handle


@pytest.fixture(scope="module")
def learner(model):
    return Learner(model)


def generated_tokens(handle):
    text = httpx.get(f"{handle.base_url}/metrics", timeout=10.0, trust_env=False).text
    return sum(float(value) for value in re.findall(r"^vllm:generation_tokens_total\{.*\} (\S+)$", text, re.MULTILINE))


class Generation(threading.Thread):
    """A request in flight: many long completions, seconds of work; with `over`, one after the other until that is set."""

    def __init__(self, handle, prompt, samples=120, over=None):
        super().__init__()
        self.over = over
        sampling = {"n": samples, "temperature": 1.0, "max_tokens": LONG, "logprobs": 0, "ignore_eos": True}
        self.url = f"{handle.base_url}/inference/v1/generate"
        self.body = {"token_ids": list(prompt), "sampling_params": sampling, "return_token_ids": True}
        self.found = []

    def run(self):
        while True:
            self.found += httpx.post(self.url, json=self.body, timeout=120.0, trust_env=False).json()["choices"]
            if self.over is None or self.over.is_set():
                return

    def choices(self):
        self.join(120.0)
        assert not self.is_alive()
        return self.found


class HeldBack(dict):
    """Weights of which the last one is read only when `release` returns: the broadcast has begun and cannot end."""

    def __init__(self, weights, release):
        super().__init__(weights)
        self.release = release
        self.last = list(weights)[-1]
        self.armed = True

    def __getitem__(self, name):
        if name == self.last and self.armed:
            self.armed = False
            self.release()
        return super().__getitem__(name)


def test_sampler_and_trainer_agree_after_every_one_of_many_updates(engine, learner):
    _, handle = engine
    assert highest_version([handle]) == -1
    gaps = []
    with learner.publisher(handle, attempt=1) as publisher:
        assert publisher.clean_engines() == ()
        for version in range(UPDATES):
            learner.perturb(0.05)
            report = publisher.publish(learner.weights, version)
            assert report.dropped == {}
            assert publisher.clean_engines() == ("rollout-0",)
            gaps.append(report.probe_gap_max)
    assert max(gaps) <= TOLERANCE
    assert min(gaps) > 0.0
    assert highest_version([handle]) == UPDATES - 1


def test_adapters_alone_travel_and_the_engine_adds_them_to_what_it_was_started_with(engine, model, learner):
    _, handle = engine
    first, learning = highest_version([handle]) + 1, AdapterLearner(model, TOLERANCE)
    gaps, size = learning.publish(handle, range(first, first + 3), 2)
    assert 0.0 < max(gaps) <= TOLERANCE
    assert size < sum(weight.nbytes for weight in learner.weights.values()) / 5
    with learner.publisher(handle, attempt=3) as publisher:  # a job without adapters has all of its weights, whatever was there before
        assert publisher.publish(learner.weights, first + 3).probe_gap_max <= TOLERANCE
    gaps, _ = learning.publish(handle, [first + 4], 4)
    assert max(gaps) <= TOLERANCE


def test_generation_goes_on_while_weights_arrive_and_says_which_version_sampled_what(engine, learner):
    _, handle = engine
    first = highest_version([handle]) + 1
    with learner.publisher(handle, attempt=5) as publisher:
        publisher.publish(learner.weights, first)
        before = generated_tokens(handle)
        over = threading.Event()
        # One is in flight where the other begins anew.
        generations = [Generation(handle, learner.prompt, samples=60, over=over) for _ in range(2)]
        for generation in generations:
            generation.start()
        wait_until(lambda: generated_tokens(handle) > before, "tokens flow")
        seen = []

        def wait_for_tokens():
            start = generated_tokens(handle)
            wait_until(lambda: generated_tokens(handle) >= start + 240, "tokens flow during the broadcast")
            seen.append(generated_tokens(handle) - start)

        learner.perturb(0.05)
        try:
            report = publisher.publish(HeldBack(learner.weights, wait_for_tokens), first + 1)
        finally:
            over.set()
        assert report.dropped == {}
        assert seen
    over_the_update = 0
    for choice in (choice for generation in generations for choice in generation.choices()):
        assert choice["finish_reason"] == "length"
        assert len(choice["token_ids"]) == LONG
        spans = [(int(span["version"]), span["start"], span["end"]) for span in choice["weight_versions"]]
        assert [version for version, _, _ in spans] in ([first], [first, first + 1], [first + 1])
        assert [start for _, start, _ in spans] == [0, *(end for _, _, end in spans[:-1])]
        assert spans[-1][2] == LONG
        over_the_update += len(spans) == 2 and spans[0][2] >= 10
    assert over_the_update >= 30


def test_a_new_attempt_takes_over_an_engine_that_a_dead_learner_left_paused_in_mid_update(engine, learner):
    _, handle = engine
    version = highest_version([handle]) + 1
    with open_http() as http:
        client = EngineClient(handle, http, 30.0)
        client.pause()
        http.post(f"{handle.base_url}/start_weight_update").raise_for_status()
        generation = Generation(handle, learner.prompt)
        generation.start()
        with learner.publisher(handle, attempt=6) as publisher:
            wait_until(lambda: publisher.abort_requests() and not generation.is_alive(), "the old request ends")
            assert {choice["finish_reason"] for choice in generation.choices()} == {"abort"}
            learner.perturb(0.05)
            assert publisher.publish(learner.weights, version).dropped == {}
        with learner.publisher(handle, attempt=5) as older:
            report = older.publish(learner.weights, version + 1)
            assert "this engine already follows attempt 6" in report.dropped["rollout-0"]
        assert client.weight_version() == str(version)


def test_weights_that_the_model_does_not_have_change_nothing(engine, learner):
    _, handle = engine
    version = highest_version([handle]) + 1
    with learner.publisher(handle, attempt=7) as publisher:
        partial = {name: weight for name, weight in learner.weights.items() if "layers.1" not in name}
        report = publisher.publish(partial, version)
        assert re.search(r"lacks weights of \d+ parameters, among them model\.layers\.1\.", report.dropped["rollout-0"])
        assert publisher.clean_engines() == ()
        assert publisher.publish(learner.weights, version + 1).dropped == {}
        assert publisher.clean_engines() == ("rollout-0",)


def test_an_engine_killed_in_mid_broadcast_costs_the_other_one_no_time_out(engine, model, learner, tmp_path):
    _, handle = engine
    version = highest_version([handle]) + 1
    with running_engine(model, tmp_path, name="rollout-1") as (mortal_process, mortal):
        wait_until_ready(mortal_process, mortal, tmp_path)
        with learner.publisher(handle, mortal, attempt=8, timeout_seconds=240.0) as publisher:
            assert publisher.publish(learner.weights, version).dropped == {}
            learner.perturb(0.05)
            started = time.monotonic()
            report = publisher.publish(HeldBack(learner.weights, lambda: kill(mortal_process)), version + 1)
            assert time.monotonic() - started < 60.0
            assert list(report.dropped) == ["rollout-1"]
            assert report.engines["rollout-1"].status is EngineStatus.LOST
            assert publisher.clean_engines() == ("rollout-0",)
            assert report.probe_gap_max <= TOLERANCE
            assert publisher.state("rollout-0").version == version + 1


def test_layerwise_reload_as_on_gpus_is_as_right_tied_head_included(model, learner, tmp_path):
    package = tmp_path / "path" / "force_layerwise-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: force-layerwise\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[vllm.general_plugins]\nforce_layerwise = force_layerwise:register\n")
    (tmp_path / "path" / "force_layerwise.py").write_text(FORCE_LAYERWISE)
    with running_engine(model, tmp_path, str(tmp_path / "path")) as (process, handle):
        wait_until_ready(process, handle, tmp_path)
        with learner.publisher(handle, attempt=1) as publisher:
            for version in range(5):
                learner.perturb(0.2)
                report = publisher.publish(learner.weights, version)
                assert report.dropped == {}
                assert report.probe_gap_max <= TOLERANCE
        gaps, _ = AdapterLearner(model, TOLERANCE).publish(handle, (5, 6), 2)
        assert max(gaps) <= TOLERANCE
    assert (tmp_path / "engine.log").read_text().count("swapping layer by layer") == 7


def test_deltas_through_a_real_store_are_as_right_also_for_an_engine_that_comes_late(model, learner, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    store = ObjectStore.open(s3.folder("weights-vllm"), S3Settings(s3.endpoint), "job")
    transport, late_dir = ObjectStoreDeltas(bucket_mib=1, max_deltas=12), tmp_path / "late"
    late_dir.mkdir()
    with running_engine(model, tmp_path, transport="objectStore") as (process, handle):
        wait_until_ready(process, handle, tmp_path)
        with learner.publisher(handle, attempt=1, transport=transport, store=store) as publisher:
            sizes = []
            for version in range(15):
                learner.change_some(0.02)
                report = publisher.publish(learner.weights, version)
                assert report.dropped == {}
                assert report.probe_gap_max <= TOLERANCE
                sizes.append(report.size_bytes)
            assert [version for version, size in enumerate(sizes) if size > 0.5 * sizes[0]] == [0, 13]
            with running_engine(model, late_dir, name="rollout-1", transport="objectStore") as (second, late):
                wait_until_ready(second, late, late_dir)
                publisher.set_engines([handle, late])
                assert publisher.sync_joiners(learner.weights, 14).dropped == {}
                assert set(publisher.clean_engines()) == {"rollout-0", "rollout-1"}
                learner.change_some(0.02)
                report = publisher.publish(learner.weights, 15)
                assert report.dropped == {}
                assert set(report.paused_seconds) == {"rollout-0", "rollout-1"}
        with learner.publisher(handle, attempt=2, transport=transport, store=store) as publisher:
            learner.change_some(0.02)
            assert publisher.publish(learner.weights, 16).dropped == {}
            assert publisher.clean_engines() == ("rollout-0",)
        gaps, _ = AdapterLearner(model, TOLERANCE).publish(handle, (17, 18), 3, transport=transport, open_store=lambda: store)
        assert max(gaps) <= TOLERANCE
    assert store.list() == ()
