"""Both ends of the weight transport without vLLM: learner and workers in the test's process, and a worker in another one.

weight_group.py DEVICE [--freeze]
    reads an invitation and then orders, one a line, and prints the digest of the weights after each swap; `--freeze`: it stops itself when
    the first bucket is there
"""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import torch

from rlvr_api.weight_sync import TorchDistributed
from rlvr_trainer.weights import load_transport
from rlvr_trainer.weights.follower import WeightFollower
from rlvr_trainer.weights.protocol import Invitation, SwapOrder, UpdateHeader

CPU = torch.device("cpu")
TRANSPORT = load_transport("torch_distributed")


class DictInstallation:
    """Weights as a dictionary, of copies or, with `keeps`, of what arrived. `on_bucket` is called for each bucket."""

    def __init__(self, on_bucket=lambda bucket: None, on_settle=lambda: None, keeps=False):
        self.live, self._arriving, self.on_bucket, self.on_settle, self._keeps = {}, {}, on_bucket, on_settle, keeps

    def stage(self, buckets):
        self._arriving = {}
        for bucket in buckets:
            self.on_bucket(bucket)
            self._arriving |= {name: tensor if self._keeps else tensor.clone() for name, tensor in bucket}
        return self._keeps

    def swap(self):
        self.live = self._arriving

    def settle(self):
        self.on_settle()


def make_tensors(seed, count=6, size=1000, device=CPU):
    generator = torch.Generator(device).manual_seed(seed)
    return {f"layers.{index}.weight": torch.randn(size, device=device, generator=generator) for index in range(count)}


def digest(tensors):
    """Sums of the bits of all tensors."""
    return sum(
        int(tensor.contiguous().view(torch.int16).long().sum()) * place for place, (_, tensor) in enumerate(sorted(tensors.items()), 1)
    )


def no_one_is_dead(ranks):
    return ()


class Learner:
    """The learner's end, with the HTTP calls replaced by calls to followers."""

    def __init__(self, timeout_seconds=10.0, attempt=1, device=CPU):
        self.timeout_seconds, self.attempt, self.epoch, self._device = timeout_seconds, attempt, 0, device
        self.rendezvous = TRANSPORT.open_rendezvous("127.0.0.1", TorchDistributed(), timeout_seconds)
        self.senders = []

    def invitation(self, layout, world_size, rank):
        host, port = self.rendezvous.address
        collective = "nccl" if self._device.type == "cuda" else "gloo"
        return Invitation(
            attempt=self.attempt, epoch=self.epoch, world_size=world_size, rank_offset=rank, store_host=host, store_port=port,
            collective=collective, timeout_seconds=self.timeout_seconds, layout=layout,
        )  # fmt: skip

    def form(self, layout, followers, invite=lambda invitation: None, others=0):
        self.epoch += 1
        world_size = 1 + len(followers) + others
        for rank, follower in enumerate(followers, start=1):
            follower.accept(self.invitation(layout, world_size, rank), 0)
        for rank in range(1 + len(followers), world_size):
            invite(self.invitation(layout, world_size, rank))
        sender = self.rendezvous.open_group(self.attempt, self.epoch, world_size, layout, self._device)
        self.senders.append(sender)
        answers = sender.await_members(list(range(1, world_size)), no_one_is_dead)
        assert all(answer.outcome == "done" for answer in answers.values()), answers
        sender.connect()
        return sender

    def order(self, sequence, version, **changes):
        return SwapOrder(attempt=self.attempt, epoch=self.epoch, sequence=sequence, version=version).model_copy(update=changes)

    def close(self):
        for sender in self.senders:
            sender.close()
        self.rendezvous.close()


@contextmanager
def learning(**settings):
    learner = Learner(**settings)
    try:
        yield learner
    finally:
        learner.close()


def send(sender, tensors, sequence, version, ranks):
    calls = []
    sender.send(tensors, UpdateHeader(sequence=sequence, version=version), lambda: calls.append(sequence))
    assert calls == [sequence]
    return sender.await_staged(sequence, ranks, no_one_is_dead)


@contextmanager
def worker(*arguments, env=None):
    """A worker in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def tell(process, message):
    """Give a worker its invitation, or an order."""
    process.stdin.write(message.model_dump_json() + "\n")
    process.stdin.flush()


def follow(device, freeze):
    """What such a process does."""
    on_bucket = (lambda bucket: os.kill(os.getpid(), signal.SIGSTOP)) if freeze else (lambda bucket: None)
    installation = DictInstallation(on_bucket)
    follower = WeightFollower(TRANSPORT, installation, device)
    print("ready", flush=True)
    follower.accept(Invitation.model_validate_json(sys.stdin.readline()), 0)
    for line in sys.stdin:
        follower.order(SwapOrder.model_validate_json(line))
        follower.swap()
        assert {tensor.device for tensor in installation.live.values()} == {device}
        print(digest(installation.live), flush=True)


if __name__ == "__main__":
    follow(torch.device(sys.argv[1]), "--freeze" in sys.argv)
