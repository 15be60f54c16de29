"""Weights through an S3 server of this machine: what an update writes, and how long until a worker has it.

Each update moves every float32 weight by the learning rate, up or down, as AdamW does, and is written in the engines' dtype; then a
worker that has the version before fetches, verifies and applies it, and one that has nothing does so from the base on. Worker and
learner have one copy in memory each; no engine is part of it.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from rlvr_api.embedded_s3 import EmbeddedS3
from rlvr_trainer.storage.client import ObjectStore, S3Settings
from rlvr_trainer.weights.buckets import plan_layout
from rlvr_trainer.weights.chain_reader import WeightCopy
from rlvr_trainer.weights.chain_writer import ChainWriter
from rlvr_trainer.weights.protocol import Layout, WireDtype

BUCKET_BYTES = 64 * 2**20
FETCH_SECONDS = 300.0


@dataclass(frozen=True)
class DeltaRow:
    """Medians of the updates after the first, which is a base."""

    dtype: WireDtype
    learning_rate: float
    share_of_model: float
    """Bytes of an update over those of the model."""
    megabytes: float
    write_seconds: float
    """Packing, comparing, digests and upload."""
    follow_seconds: float
    """Of a worker that has the version before."""
    late_seconds: float
    """Of a worker that has nothing: base and all deltas."""


def measure_deltas(weights: Mapping[str, torch.Tensor], updates: int) -> list[DeltaRow]:
    """Rows for bfloat16 engines at two learning rates, and for float32 engines."""
    with tempfile.TemporaryDirectory(prefix="rlvr-bench-") as folder, EmbeddedS3(Path(folder, "s3"), Path(folder, "s3.json")) as server:
        os.environ |= {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        store = ObjectStore.open(f"s3://{server.bucket}/bench", S3Settings(server.endpoint))
        kinds: list[tuple[WireDtype, float]] = [("bfloat16", 1e-6), ("bfloat16", 1e-5), ("float32", 1e-6)]
        return [_measure(store, weights, dtype, rate, updates, attempt) for attempt, (dtype, rate) in enumerate(kinds, 1)]


def _measure(
    store: ObjectStore, weights: Mapping[str, torch.Tensor], dtype: WireDtype, rate: float, updates: int, attempt: int
) -> DeltaRow:
    master = {name: weight.detach().clone() for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(attempt)
    layout, copy = plan_layout(master, dtype, BUCKET_BYTES), WeightCopy()
    writer = ChainWriter(store, attempt, max_deltas=updates)
    sizes, writes, follows = [], [], []
    try:
        for version in range(updates + 1):
            for weight in master.values():
                weight += rate * (2 * torch.randint(0, 2, weight.shape, generator=generator) - 1)
            began = time.monotonic()
            size = writer.write(master, layout, version)
            written = time.monotonic()
            _follow(writer, layout, copy, last_only=version > 0)
            if version:
                sizes.append(size)
                writes.append(written - began)
                follows.append(time.monotonic() - written)
        began = time.monotonic()
        _follow(writer, layout, WeightCopy(), last_only=False)
        late = time.monotonic() - began
    finally:
        writer.close()
    median = statistics.median(sizes)
    return DeltaRow(
        dtype, rate, median / layout.size_bytes, median / 1e6, statistics.median(writes), statistics.median(follows), late
    )  # fmt: skip


def _follow(writer: ChainWriter, layout: Layout, copy: WeightCopy, last_only: bool) -> None:
    copy.follow(layout, writer.offer(last_only, 3600), time.monotonic() + FETCH_SECONDS, lambda: False)
