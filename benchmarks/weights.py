"""Weights: an update of a real vLLM engine beside the raw gloo broadcast of the same bytes, and what it costs those who wait.

SmolLM2-135M in float32, one engine started by the plan, learner and engine on the same cores. Medians of rounds in turns, each side first
in every other one; the first ones, which touch memory for the first time, do not count.

- `update_over_broadcast`: from the call of `publish` until the engine goes on with the new weights, over a gloo broadcast of the same
  buckets from memory to memory of a bare process. What comes after, until the probe has passed and the engine gets prompts again, is shown
  beside it: packing matrices in the background, sampling the probe, and the trainer's own forward pass.
- `logprob_gap_max`: largest difference of a log-prob between sampler and trainer, over all updates.
- `paused_share`: time in which the engine stands still, over the time of a run that samples all the while and publishes every `--interval`
  seconds. The demo's steps are no shorter.
- `delta_share_bfloat16`: bytes of an update through the object store over those of the model, at a learning rate of 1e-6 (`_store_deltas`).
- `reform_seconds`: from the death of another member in mid-broadcast (kill -9 of a process that had received its first bucket) until the
  engine has the same version under the next epoch and has passed its probe.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import torch
from rich.console import Console
from rich.table import Table

from rlvr_api.spec import RLVRJob
from rlvr_api.weight_sync import TorchDistributed
from rlvr_operator.local.children import find_openmp_library
from rlvr_operator.plan import Address, Addresses, Places, plan
from rlvr_trainer.pretrained import write_smollm2, write_tiny_model
from rlvr_trainer.weights import load_transport
from rlvr_trainer.weights.buckets import plan_layout
from rlvr_trainer.weights.collectives import broadcast_from_learner, dist, form_group
from rlvr_trainer.weights.engine_client import EngineHandle
from rlvr_trainer.weights.follower import WeightFollower
from rlvr_trainer.weights.probe import Probe
from rlvr_trainer.weights.protocol import Invitation
from rlvr_trainer.weights.publisher import MIB, WeightPublisher, highest_version
from rlvr_trainer.weights.report import PublishReport

UPDATE_LIMIT, GAP_LIMIT, PAUSED_LIMIT = 1.5, 1e-4, 0.02
WARM_UPS = 3
TIMEOUT_SECONDS = 60.0
START_SECONDS = 300.0
HOST = "127.0.0.1"


def main() -> None:
    """Measure, print one table, and one JSON object as the last line."""
    from benchmarks._store_deltas import measure_deltas  # this file is also run by its path, as the other end

    options = _options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rlvr-bench-") as folder:
        model = Path(folder, "model")
        (write_tiny_model if options.tiny else write_smollm2)(model)
        with running_engine(model, Path(folder)) as engine:
            learner = Learner(model, engine)
            with RawBroadcast(learner.bucket_sizes()) as raw, learner.publisher(1, [engine]) as publisher:
                raws, updates = compare(learner, publisher, raw, options.rounds)
                paused_share, tokens_per_second = run_with_updates(learner, publisher, options)
                while len(learner.gaps) < options.updates:
                    learner.publish(publisher)
            deltas = measure_deltas(learner.weights, options.rounds)
            reforms = [time_reform(learner, attempt) for attempt in range(2, 2 + options.rounds)]
    ratio = statistics.median(update.update_seconds / seconds for update, seconds in zip(updates, raws, strict=True))
    size = updates[0].size_bytes / 1e6
    table = Table(title=f"Weights: {size:.0f} MB an update to one CPU engine on the same {os.cpu_count()} cores, {options.rounds} rounds")
    for column in ("what", "median", "limit"):
        table.add_column(column, justify="left" if column == "what" else "right")
    total = statistics.median(update.total_seconds for update in updates)
    table.add_row("raw gloo broadcast, flat buckets", _rate(size, statistics.median(raws)), "")
    table.add_row("broadcast, packing and staging included", _rate(size, statistics.median(u.broadcast_seconds for u in updates)), "")
    table.add_row("update, until the engine goes on", _rate(size, statistics.median(u.update_seconds for u in updates)), "")
    table.add_row("update over broadcast", f"{ratio:.2f}", f"{UPDATE_LIMIT}")
    table.add_row("update, settled and probed", f"{total:.3f} s, {total / statistics.median(raws):.1f} x the broadcast", "")
    table.add_row(f"largest log-prob gap in {len(learner.gaps)} updates", f"{max(learner.gaps):.1e}", f"{GAP_LIMIT:.0e}")
    table.add_row("engine paused in an update, idle", f"{statistics.median(_paused(u) for u in updates):.3f} s", "")
    row = f"engine paused, an update every {options.interval:g} s at {tokens_per_second:.0f} tokens/s"
    table.add_row(row, f"{paused_share:.2%}", f"{PAUSED_LIMIT:.0%}")
    table.add_row("death in mid-broadcast to the next epoch's probe", f"{statistics.median(reforms):.2f} s", "")
    for delta in deltas:
        written = f"{delta.megabytes:.1f} MB, {delta.share_of_model:.1%} of the model"
        what = f"through S3, {delta.dtype}, learning rate {delta.learning_rate:g}: {written}"
        seconds = f"write {delta.write_seconds:.2f} s, fetch {delta.follow_seconds:.2f} s, from base {delta.late_seconds:.2f} s"
        table.add_row(what, seconds, "")
    Console(width=160).print(table)
    numbers = {
        "update_over_broadcast": round(ratio, 3), "logprob_gap_max": float(f"{max(learner.gaps):.2e}"),
        "delta_share_bfloat16": round(deltas[0].share_of_model, 4),
        "paused_share": round(paused_share, 5), "reform_seconds": round(statistics.median(reforms), 3),
    }  # fmt: skip
    print(json.dumps(numbers))


class Learner:
    """The trainer's model, which publishes slightly different weights each time."""

    def __init__(self, folder: Path, engine: EngineHandle) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.weights: dict[str, torch.Tensor] = dict(self.model.named_parameters())
        self.engine = engine
        self.gaps: list[float] = []
        self.prompt = tuple(range(5, 45))
        self.layout = plan_layout(self.weights, "float32", TorchDistributed().bucket_mib * MIB)

    def bucket_sizes(self) -> list[int]:
        """Bytes of each broadcast."""
        return [bucket.size_bytes for bucket in self.layout.buckets]

    def publisher(self, attempt: int, engines: Sequence[EngineHandle]) -> WeightPublisher:
        """As the learner process makes it."""
        return WeightPublisher(
            engines, transport=TorchDistributed(), timeout_seconds=TIMEOUT_SECONDS, probe=Probe(self.prompt, self.logprobs, 1e-2),
            advertised_host=HOST, attempt=attempt, engine_dtype="float32",
        )  # fmt: skip

    def publish(self, publisher: WeightPublisher) -> PublishReport:
        """One update with new weights; ends the benchmark if the engine did not get it."""
        with torch.no_grad():
            for weight in self.weights.values():
                weight *= 1.0 + 1e-4
        report = publisher.publish(self.weights, highest_version([self.engine]) + 1)
        if self.engine.name in report.dropped:
            raise SystemExit(f"the update failed: {report.dropped[self.engine.name]}")
        self.gaps.append(report.probe_gap_max)
        return report

    @torch.no_grad()
    def logprobs(self, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        """Log-probs of the completion's tokens."""
        ids = torch.tensor([[*prompt, *completion]])
        logits = self.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        values: list[float] = torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(completion)[:, None])[:, 0].tolist()
        return values


def compare(learner: Learner, publisher: WeightPublisher, raw: "RawBroadcast", rounds: int) -> tuple[list[float], list[PublishReport]]:
    """Seconds of raw broadcasts, and our updates, in turns."""
    raws, updates = [], []
    for number in range(rounds + WARM_UPS):
        if number % 2:
            raws.append(raw.time())
        updates.append(learner.publish(publisher))
        if not number % 2:
            raws.append(raw.time())
    return raws[WARM_UPS:], updates[WARM_UPS:]


class RawBroadcast:
    """The limit: the same buckets over gloo, from memory to memory of a bare process."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=TIMEOUT_SECONDS))
        command = [sys.executable, __file__, "--receiver", str(self._store.port), *map(str, sizes)]
        self._process = subprocess.Popen(command)
        self._group = form_group("gloo", self._store, 0, 2, HOST, TIMEOUT_SECONDS)
        self._buffers = [torch.zeros(size, dtype=torch.uint8) for size in sizes]

    def __enter__(self) -> "RawBroadcast":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def time(self) -> float:
        """Seconds until the other process has everything."""
        self._group.barrier().wait()
        began = time.monotonic()
        for work in [broadcast_from_learner(self._group, buffer) for buffer in self._buffers]:
            work.wait()
        self._group.barrier().wait()
        return time.monotonic() - began


def receive_raw(port: int, sizes: Sequence[int]) -> None:
    """The other end of `RawBroadcast`, until it is killed."""
    store = dist.TCPStore(HOST, port, is_master=False, timeout=timedelta(seconds=TIMEOUT_SECONDS))
    group = form_group("gloo", store, 1, 2, HOST, 86_400.0)
    buffers = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    while True:
        group.barrier().wait()
        for work in [broadcast_from_learner(group, buffer) for buffer in buffers]:
            work.wait()
        group.barrier().wait()


def run_with_updates(learner: Learner, publisher: WeightPublisher, options: argparse.Namespace) -> tuple[float, float]:
    """Share of the time in which the engine stood still, and tokens sampled a second."""
    stop = threading.Event()
    tokens: list[int] = []
    load = threading.Thread(target=sample_until, args=(learner, stop, tokens))
    load.start()
    began, paused = time.monotonic(), 0.0
    for number in range(options.rounds):
        paused += _paused(learner.publish(publisher))
        time.sleep(max(0.0, began + (number + 1) * options.interval - time.monotonic()))
    seconds = time.monotonic() - began
    stop.set()
    load.join()
    return paused / seconds, sum(tokens) / seconds


def sample_until(learner: Learner, stop: threading.Event, tokens: list[int]) -> None:
    """Keep the engine as busy as the demo does: 16 prompts of 8 completions at once, 8 tokens each."""
    sampling = {"n": 8, "temperature": 1.0, "max_tokens": 8, "logprobs": 0, "ignore_eos": True}
    url = f"{learner.engine.base_url}/inference/v1/generate"

    def sample(first: int) -> None:
        with httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False) as http:
            while not stop.is_set():
                body = {"token_ids": [first + 5, *learner.prompt[1:]], "sampling_params": sampling, "return_token_ids": True}
                choices = http.post(url, json=body).raise_for_status().json()["choices"]
                tokens.append(sum(len(choice["token_ids"]) for choice in choices))

    threads = [threading.Thread(target=sample, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def time_reform(learner: Learner, attempt: int) -> float:
    """Seconds from the death of a second member in mid-broadcast until the engine serves that version."""
    with subprocess.Popen([sys.executable, __file__, "--mortal"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        mortal = EngineHandle("mortal", f"http://{HOST}:{process.stdout.readline().strip()}")
        with learner.publisher(attempt, [mortal, learner.engine]) as publisher:
            report = learner.publish(publisher)
            ended = time.monotonic()
        died = float(process.stdout.readline())
    if list(report.dropped) != ["mortal"] or publisher.clean_engines() != (learner.engine.name,):
        raise SystemExit(f"the group did not form again: {report.dropped}")
    return ended - died


class Mortal:
    """A member of a group that kills its own process when the first bucket is there. It answers the routes that come before that."""

    def __init__(self) -> None:
        self._follower = WeightFollower(load_transport("torch_distributed"), self, torch.device("cpu"))

    def answer(self, path: str, body: Any) -> dict[str, Any]:
        """The answer of a route."""
        if path == "/init_weight_transfer_engine":
            self._follower.accept(Invitation.model_validate(body["init_info"]), 0)
        return {"world_size": 1, "weight_version": "default"}

    def stage(self, buckets: Iterable[Any]) -> bool:
        """Die."""
        for _ in buckets:
            print(time.monotonic(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    def swap(self) -> None:
        """Never called."""

    settle = swap


def serve_mortal() -> None:
    """Serve a `Mortal` on a free port, which is printed."""
    mortal = Mortal()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            data = json.dumps(mortal.answer(self.path, json.loads(body) if body else None)).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = respond  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer((HOST, 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


@contextmanager
def running_engine(model: Path, folder: Path) -> Iterator[EngineHandle]:
    """A vLLM engine as the plan starts it, ready for requests."""
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
    job = RLVRJob.model_validate({
        "apiVersion": "rlvr.dev/v1alpha1", "kind": "RLVRJob", "metadata": {"name": "bench"},
        "spec": {
            "model": {"uri": f"file://{model}", "maxModelLen": 128}, "environments": [{"name": "sums", "arithmetic": {}}],
            "sampling": {"maxTokens": 8}, "stages": [{"name": "climb", "rlvr": {"steps": 1}}],
        },
    })  # fmt: skip
    here = Address(HOST, port)
    places = Places(sys.executable, str(folder / "job.json"), str(model), str(folder / "key"), str(folder), find_openmp_library())
    workload = plan(job, Addresses(HOST, (here,), here, here), places, 1).workloads[0]
    with open(folder / "engine.log", "w") as log:
        process = subprocess.Popen(workload.command, env={**os.environ, **workload.env}, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until(lambda: is_ready(here.url) or process.poll() is not None)
            if process.poll() is not None:
                raise SystemExit(f"the engine did not start:\n{(folder / 'engine.log').read_text()[-3000:]}")
            yield EngineHandle(workload.name, here.url)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_ready(url: str) -> bool:
    """Whether the engine answers."""
    try:
        return httpx.get(f"{url}/health", timeout=5.0, trust_env=False).is_success
    except httpx.TransportError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition within the time of an engine's start."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"the engine was not ready within {START_SECONDS:g} s")
        time.sleep(0.5)


def _paused(report: PublishReport) -> float:
    return sum(report.paused_seconds.values())


def _rate(megabytes: float, seconds: float) -> str:
    return f"{seconds:.3f} s, {megabytes / seconds:.0f} MB/s"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds, after some to warm up")
    parser.add_argument("--updates", type=int, default=100, help="updates after which log-probs are compared, in all")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between updates of the run that samples")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model, to try the benchmark itself")
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--receiver"]:
        torch.set_num_threads(1)
        receive_raw(int(sys.argv[2]), [int(size) for size in sys.argv[3:]])
    elif sys.argv[1:2] == ["--mortal"]:
        serve_mortal()
    else:
        main()
