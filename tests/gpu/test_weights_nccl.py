"""The weight transport over NCCL, between two processes: updates arrive bit for bit, and a member that stands still is given up.

NCCL refuses two members on one GPU of one host. Where there is one GPU, each process says that it is a host of its own, and the bytes go
over the loopback: the code of ours is the same.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import torch

from rlvr_api.spec import TorchDistributed
from rlvr_trainer.weights import load_transport
from rlvr_trainer.weights.buckets import plan_layout
from rlvr_trainer.weights.collectives import BroadcastBrokenError
from rlvr_trainer.weights.follower import WeightFollower
from rlvr_trainer.weights.protocol import Invitation, SwapOrder, UpdateHeader

TRANSPORT = load_transport("torch_distributed")
GPU = torch.device("cuda", 0)
WAIT_SECONDS = 60.0


class Installation:
    """Weights as a dictionary, which prints the digest of what it goes on with."""

    def __init__(self, freeze):
        self._freeze, self._arriving = freeze, {}

    def stage(self, buckets):
        self._arriving = {}
        for bucket in buckets:
            self._arriving |= {name: tensor.clone() for name, tensor in bucket}
            if self._freeze:
                os.kill(os.getpid(), signal.SIGSTOP)

    def swap(self):
        assert {tensor.device for tensor in self._arriving.values()} == {GPU}
        print(digest(self._arriving), flush=True)

    def settle(self):
        """Nothing to do."""


def digest(tensors):
    """Sums of the bits of all tensors."""
    return sum(
        int(tensor.contiguous().view(torch.int16).long().sum()) * place for place, (_, tensor) in enumerate(sorted(tensors.items()), 1)
    )


def follow(freeze):
    """A worker: an invitation, then one order a line."""
    torch.cuda.set_device(GPU)
    follower = WeightFollower(TRANSPORT, Installation(freeze), GPU)
    print("ready", flush=True)
    follower.accept(Invitation.model_validate_json(sys.stdin.readline()), 0)
    for line in sys.stdin:
        follower.order(SwapOrder.model_validate_json(line))
        follower.swap()


def environ(host):
    """Of a process that is a host of its own for NCCL."""
    return {**os.environ, "NCCL_HOSTID": host, "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}


@contextmanager
def worker(*arguments):
    command = [sys.executable, __file__, *arguments]
    with subprocess.Popen(command, env=environ("worker"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def tell(process, message):
    process.stdin.write(message.model_dump_json() + "\n")
    process.stdin.flush()


def make_tensors(seed, count=24, size=1 << 20):
    generator = torch.Generator(GPU).manual_seed(seed)
    return {f"layers.{index}.weight": torch.randn(size, device=GPU, generator=generator) for index in range(count)}


@contextmanager
def group(process, layout, timeout_seconds):
    rendezvous = TRANSPORT.open_rendezvous("127.0.0.1", TorchDistributed(), timeout_seconds)
    try:
        host, port = rendezvous.address
        tell(process, Invitation(
            attempt=1, epoch=1, world_size=2, rank_offset=1, store_host=host, store_port=port, collective="nccl",
            timeout_seconds=timeout_seconds, layout=layout,
        ))  # fmt: skip
        sender = rendezvous.open_group(1, 1, 2, layout, GPU)
        try:
            assert sender.await_members([1], lambda ranks: ())[1].outcome == "done"
            sender.connect()
            yield sender
        finally:
            sender.close()
    finally:
        rendezvous.close()


def in_own_process(name):
    """NCCL reads its settings once, and a broken group may take the process along: each test is a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--test", name], env=environ("learner"), check=False, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr


def updates_arrive():
    with worker("--follow") as process:
        first = make_tensors(0)
        layout = plan_layout(first, "bfloat16", 8 << 20)
        with group(process, layout, WAIT_SECONDS) as sender:
            for sequence in range(10):
                tensors = make_tensors(sequence)
                sender.send(tensors, UpdateHeader(sequence=sequence, version=sequence + 1), lambda: None)
                assert sender.await_staged(sequence, [1], lambda ranks: ())[1].outcome == "done"
                tell(process, SwapOrder(attempt=1, epoch=1, sequence=sequence, version=sequence + 1))
                assert int(process.stdout.readline()) == digest({name: tensor.bfloat16() for name, tensor in tensors.items()})


def frozen_member_is_given_up():
    with worker("--follow", "--freeze") as process:
        tensors = make_tensors(0, count=64)
        layout = plan_layout(tensors, "float32", 8 << 20)
        with group(process, layout, 3.0) as sender:
            began = time.monotonic()
            try:
                sender.send(tensors, UpdateHeader(sequence=0, version=1), lambda: None)
                outcome = sender.await_staged(0, [1], lambda ranks: [1])[1].outcome
            except BroadcastBrokenError:
                outcome = "cut"
            assert outcome == "cut"
            assert time.monotonic() - began < WAIT_SECONDS
        assert threading.active_count() < 16


def test_updates_arrive_bit_for_bit():
    in_own_process("updates_arrive")


def test_a_member_that_stands_still_is_given_up():
    in_own_process("frozen_member_is_given_up")


if __name__ == "__main__":
    if sys.argv[1] == "--follow":
        follow("--freeze" in sys.argv)
    else:
        {"updates_arrive": updates_arrive, "frozen_member_is_given_up": frozen_member_is_given_up}[sys.argv[2]]()
        sys.stdout.flush()
        os._exit(0)  # NCCL's threads of a group that broke need not end
