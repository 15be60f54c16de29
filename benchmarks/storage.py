"""Storage: a checkpoint beside raw boto3 multipart of the same bytes, how long training is blocked, and rollouts as Parquet.

All on one embedded S3 server, whose CPU time comes out of the same cores. Medians of rounds in turns, each side first in every other one.

- `checkpoint_over_multipart`: from the end of the snapshot to the committed manifest, over boto3's `upload_fileobj` (default settings) of
  the same bytes from memory.
- `step_blocked_share`: time in which a training thread waits for snapshots, over the interval between checkpoints. The loop trains
  for `--interval` seconds between snapshots (matrix products on one thread) while the upload runs. The demo's interval is longer:
  a shorter one is the harder case. The slow-down of those steps by the upload is shown beside it: it is no waiting, but it is a cost.
- `rollouts_mb_per_second`: rollout groups to a verified object, in megabytes of token ids and log-probs (12 bytes a token).
"""

import argparse
import io
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

from rlvr_api.embedded_s3 import EmbeddedS3
from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan
from rlvr_trainer.storage.attempts import claim_attempt
from rlvr_trainer.storage.checkpoint import CheckpointWriter
from rlvr_trainer.storage.checkpoint_reader import latest_manifest, load_checkpoint, prune
from rlvr_trainer.storage.client import ObjectStore, S3Settings
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.manifest import CheckpointState
from rlvr_trainer.storage.records import FIRST
from rlvr_trainer.storage.rollouts import read_groups, write_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

STAGE = StageKeys(0, "climb")
CHECKPOINT_LIMIT = 1.25
BLOCKED_LIMIT = 0.05
WAIT_SECONDS = 600.0
LAYERS = 30
"""Of SmolLM2-135M, whose layout the tensors follow."""


def main() -> None:
    """Measure, print one table, and one JSON object as the last line."""
    options = _options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rlvr-bench-") as folder, EmbeddedS3(Path(folder, "data"), Path(folder, "s3.json")) as server:
        os.environ.update(server.environment())
        store = ObjectStore.open("s3://runs", S3Settings(server.endpoint), "bench")
        claim = claim_attempt(store, 1)
        tensors = make_tensors(options.megabytes * 1_000_000)
        writer = CheckpointWriter(store, STAGE, claim)
        ours, raw, reads = compare(store, writer, tensors, options.rounds)
        blocked, slow_down = train_and_checkpoint(store, writer, tensors, options)
        megabytes, seconds, stored_share = time_rollouts(store, options.rounds)
        store.client.close()
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    ratio = statistics.median(one / other for one, other in zip(ours, raw, strict=True))
    table = Table(title=f"Storage: {size:.0f} MB a checkpoint, {options.rounds} rounds, one S3 server on the same {os.cpu_count()} cores")
    for column in ("what", "median", "limit"):
        table.add_column(column, justify="left" if column == "what" else "right")
    table.add_row("raw boto3 multipart", f"{statistics.median(raw):.2f} s, {size / statistics.median(raw):.0f} MB/s", "")
    table.add_row("checkpoint, snapshot to manifest", f"{statistics.median(ours):.2f} s, {size / statistics.median(ours):.0f} MB/s", "")
    table.add_row("checkpoint over multipart", f"{ratio:.2f}", f"{CHECKPOINT_LIMIT}")
    table.add_row("read and verify a checkpoint", f"{size / statistics.median(reads):.0f} MB/s", "")
    table.add_row(f"training blocked, a checkpoint every {options.interval:.0f} s", f"{blocked:.2%}", f"{BLOCKED_LIMIT:.0%}")
    table.add_row("steps during an upload over steps without", f"{slow_down:.2f}", "")
    table.add_row("rollouts to Parquet to S3", f"{megabytes / seconds:.0f} MB/s, stored at {stored_share:.0%}", "")
    Console(width=120).print(table)
    numbers = {"checkpoint_over_multipart": ratio, "step_blocked_share": blocked, "rollouts_mb_per_second": megabytes / seconds}
    print(json.dumps({name: round(value, 4) for name, value in numbers.items()}))


def make_tensors(size: int) -> dict[str, torch.Tensor]:
    """Float32 tensors of `size` bytes in all: embeddings of a fifth, and seven matrices a layer."""
    elements = size // 4
    tensors = {"model/embed": torch.randn(elements // 5)}
    each = (elements - elements // 5) // (LAYERS * 7)
    tensors |= {f"model/layers.{layer}.{part}": torch.randn(each) for layer in range(LAYERS) for part in range(7)}
    return tensors


def compare(
    store: ObjectStore, writer: CheckpointWriter, tensors: dict[str, torch.Tensor], rounds: int
) -> "tuple[Sequence[float], Sequence[float], Sequence[float]]":
    """Seconds of our checkpoints, of raw multipart uploads and of verified reads, in turns."""
    data = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
    ours, raw, reads = [], [], []
    for step in range(1, rounds + 2):
        if step % 2:
            raw.append(upload_raw(store, data))
        ours.append(checkpoint(writer, tensors, step))
        if not step % 2:
            raw.append(upload_raw(store, data))
        manifest = latest_manifest(store, STAGE)
        assert manifest is not None
        assert manifest.step == step
        began = time.monotonic()
        load_checkpoint(store, manifest)
        reads.append(time.monotonic() - began)
        prune(store, STAGE, 1, 1)
    return ours[1:], raw[1:], reads[1:]  # the first round warms up both sides


def upload_raw(store: ObjectStore, data: bytes) -> float:
    """Seconds of boto3's own multipart upload."""
    began = time.monotonic()
    store.client.upload_fileobj(io.BytesIO(data), store.bucket, "raw")
    seconds = time.monotonic() - began
    store.client.delete_object(Bucket=store.bucket, Key="raw")
    return seconds


def checkpoint(writer: CheckpointWriter, tensors: dict[str, torch.Tensor], step: int) -> float:
    """Seconds from the end of the snapshot to the commit."""
    writer.snapshot(tensors, make_state(step))
    writer.wait(WAIT_SECONDS)
    (outcome,) = writer.take_outcomes()
    if outcome.error is not None:
        raise outcome.error
    return outcome.seconds


def make_state(step: int) -> CheckpointState:
    """A state without admissions."""
    return CheckpointState(step=step, weight_version=step, record_sha256=FIRST, model="bench", cursor=0, accepted=0)


def train_and_checkpoint(
    store: ObjectStore, writer: CheckpointWriter, tensors: dict[str, torch.Tensor], options: argparse.Namespace
) -> tuple[float, float]:
    """Share of the time that snapshots block, and seconds of a step during an upload over seconds of one without."""
    matrix = torch.randn(768, 768)
    blocked: list[float] = []
    busy: list[float] = []
    free: list[float] = []
    for checkpoint_number in range(options.rounds + 1):
        began = time.monotonic()
        writer.snapshot(tensors, make_state(1000 + checkpoint_number))
        waiting = time.monotonic() - began
        while time.monotonic() - began < options.interval:
            step_began, uploading = time.monotonic(), writer.busy
            for _ in range(20):
                matrix = torch.nn.functional.normalize(matrix @ matrix)
            (busy if uploading else free).append(time.monotonic() - step_began)
        blocked.append(waiting / (time.monotonic() - began))
    writer.wait(WAIT_SECONDS)
    for outcome in writer.take_outcomes():
        if outcome.error is not None:
            raise outcome.error
    prune(store, STAGE, 1, 1)
    return statistics.median(blocked[1:]), statistics.median(busy) / statistics.median(free)


def time_rollouts(store: ObjectStore, rounds: int) -> tuple[float, float, float]:
    """Megabytes of tokens and log-probs, median seconds to write them, and stored bytes over those bytes."""
    groups = make_groups(64, 16, 512)
    size = 12 * sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    seconds = []
    for number in range(rounds + 1):
        began = time.monotonic()
        blob = write_groups(store, STAGE.rollouts(number, 1), groups)
        seconds.append(time.monotonic() - began)
    if read_groups(store, blob) != tuple(groups):
        raise SystemExit("rollouts were not read back as they were written")
    return size / 1e6, statistics.median(seconds[1:]), blob.bytes / size


def make_groups(groups: int, samples: int, tokens: int) -> list[RolloutGroup]:
    """A step's worth of rollouts with log-probs of float32 origin."""
    source = random.Random(0)

    def rollout(index: int) -> Rollout:
        ids = tuple(source.choices(range(49_152), k=tokens))
        logprobs = tuple(torch.tensor([-source.expovariate(3.0) for _ in range(tokens)], dtype=torch.float32).tolist())
        verdict = Verdict(id=f"{index}", status=VerdictStatus.PASS, score=1.0, verifier="arithmetic", verifier_version="1")
        return Rollout(ids, logprobs, (VersionSpan(index, 0, tokens),), "stop", " ".join(map(str, ids[:200])), verdict)

    return [
        RolloutGroup(
            Admission(index, "sums", 0, index), f"{index:016x}", tuple(range(60)), "What is 17 + 25?",
            tuple(rollout(index) for _ in range(samples)), "rollout-0", "", 1.0, 0.1,
        )
        for index in range(groups)
    ]  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=538, help="size of a checkpoint; 538 are the fp32 weights of SmolLM2-135M")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up")
    parser.add_argument("--interval", type=float, default=20.0, help="seconds of training between checkpoints")
    return parser.parse_args()


if __name__ == "__main__":
    main()
