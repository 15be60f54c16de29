"""The weight transport over NCCL, between two processes: updates arrive bit for bit, and a member that stands still is given up.

NCCL refuses two members on one GPU of one host. Where there is one GPU, each process says that it is a host of its own, and the bytes go
over the loopback: the code of ours is the same.
"""

import os
import subprocess
import sys
import threading
import time
from functools import partial

import torch
import weight_group
from weight_group import digest, learning, make_tensors, send, tell, worker

from rlvr_trainer.weights.buckets import plan_layout
from rlvr_trainer.weights.collectives import BroadcastBrokenError
from rlvr_trainer.weights.protocol import UpdateHeader

GPU = torch.device("cuda", 0)
WAIT_SECONDS = 60.0


def environ(host):
    """Of a process that is a host of its own for NCCL, and finds what tests share."""
    paths = os.pathsep.join([os.path.dirname(weight_group.__file__), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "NCCL_HOSTID": host, "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}


def in_own_process(name):
    """NCCL reads its settings once, and a broken group may take the process along: each test is a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, name], env=environ("learner"), check=False, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr


def updates_arrive():
    with worker(str(GPU), env=environ("worker")) as process, learning(timeout_seconds=WAIT_SECONDS, device=GPU) as learner:
        make = partial(make_tensors, count=24, size=1 << 20, device=GPU)
        sender = learner.form(plan_layout(make(0), "bfloat16", 8 << 20), [], partial(tell, process), others=1)
        for sequence in range(10):
            tensors = make(sequence)
            assert send(sender, tensors, sequence, sequence + 1, [1])[1].outcome == "done"
            tell(process, learner.order(sequence, sequence + 1))
            assert int(process.stdout.readline()) == digest({name: tensor.bfloat16() for name, tensor in tensors.items()})


def frozen_member_is_given_up():
    with worker(str(GPU), "--freeze", env=environ("worker")) as process:
        tensors = make_tensors(0, count=64, size=1 << 20, device=GPU)
        with learning(timeout_seconds=3.0, device=GPU) as learner:
            sender = learner.form(plan_layout(tensors, "float32", 8 << 20), [], partial(tell, process), others=1)
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
    {"updates_arrive": updates_arrive, "frozen_member_is_given_up": frozen_member_is_given_up}[sys.argv[1]]()
    sys.stdout.flush()
    os._exit(0)  # NCCL's threads of a group that broke need not end
