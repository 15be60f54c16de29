"""The store is killed and started again while a run writes to it: nothing acknowledged is lost, and the run goes on."""

import os
import signal
import socket
import threading

import pytest
import torch

from rlvr_api.embedded_s3 import EmbeddedS3
from rlvr_trainer.storage.attempts import claim_attempt
from rlvr_trainer.storage.checkpoint import CheckpointWriter
from rlvr_trainer.storage.checkpoint_reader import load_latest
from rlvr_trainer.storage.client import ObjectStore, S3Settings, connect
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.manifest import CheckpointState
from rlvr_trainer.storage.upload import MIB, TransferSettings

STAGE = StageKeys(0, "climb")


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class CountingStore(ObjectStore):
    """Tells when the upload is under way."""

    def upload(self, key, chunks):
        def counted():
            for chunk in chunks:
                for start in range(0, len(chunk), self.transfer.part_bytes):
                    yield chunk[start : start + self.transfer.part_bytes]
                    if start > 3 * self.transfer.part_bytes:
                        self.under_way.set()

        return super().upload(key, counted())


def kill(server):
    os.kill(server._process.pid, signal.SIGKILL)
    server._process.wait(10)


def test_a_checkpoint_survives_a_restart_of_the_store(tmp_path, monkeypatch, port):
    with EmbeddedS3(tmp_path / "data", tmp_path / "s3.json", port) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        client = connect(S3Settings(server.endpoint))
        store = CountingStore(client, "runs", "job", TransferSettings(part_bytes=5 * MIB))
        store.under_way = threading.Event()
        for number in range(50):
            store.put_if_absent(f"before/{number}", b"%d" % number)
        writer = CheckpointWriter(store, STAGE, claim_attempt(store, 1))
        weights = torch.randn(30_000_000)
        state = CheckpointState(step=1, weight_version=1, record_sha256="0" * 64, model="m", cursor=0, accepted=0)
        writer.snapshot({"weights": weights}, state)
        assert store.under_way.wait(60)
        assert writer.busy
        kill(server)
        server.start()
        writer.wait(120)
        (outcome,) = writer.take_outcomes()
        assert outcome.error is None
        assert torch.equal(load_latest(store, STAGE).tensors["weights"], weights)
        assert [store.get(f"before/{number}") for number in range(50)] == [b"%d" % number for number in range(50)]
        client.close()
        kill(server)  # after a crash, its own way to stop sometimes takes half a minute
