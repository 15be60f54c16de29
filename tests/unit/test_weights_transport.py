"""Both ends of the gloo transport, without vLLM: learner and workers in this process, and a worker in another one to be killed."""

import socket
import threading
import time
from contextlib import suppress
from functools import partial

import pytest
import torch
from weight_group import (
    CPU,
    TRANSPORT,
    DictInstallation,
    Learner,
    learning,
    make_tensors,
    no_one_is_dead,
    send,
    tell,
    worker,
)

from rlvr_api.weight_sync import TorchDistributed
from rlvr_trainer.weights import collectives
from rlvr_trainer.weights.buckets import plan_layout
from rlvr_trainer.weights.collectives import BroadcastBrokenError
from rlvr_trainer.weights.follower import SupersededError, WeightFollower
from rlvr_trainer.weights.protocol import Invitation, UpdateHeader


def wait_until(condition, what, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def test_updates_reach_all_workers_and_count_only_after_the_swap():
    installations = [DictInstallation(), DictInstallation()]
    followers = [WeightFollower(TRANSPORT, installation, CPU) for installation in installations]
    with learning() as learner:
        sender = learner.form(plan_layout(make_tensors(0), "bfloat16", 9000), followers)
        for sequence in range(5):
            tensors, before = make_tensors(sequence), [installation.live for installation in installations]
            answers = send(sender, tensors, sequence, 10 + sequence, [1, 2])
            assert {answer.outcome for answer in answers.values()} == {"done"}
            assert [installation.live for installation in installations] == before
            for follower, installation in zip(followers, installations, strict=True):
                follower.order(learner.order(sequence, 10 + sequence))
                follower.swap()
                assert all(torch.equal(installation.live[name], tensor.bfloat16()) for name, tensor in tensors.items())
            assert {answer.outcome for answer in sender.await_settled(sequence, [1, 2], no_one_is_dead).values()} == {"done"}


def test_memory_that_an_installation_keeps_is_written_again_only_after_the_next_swap():
    installation = DictInstallation(keeps=True)
    follower = WeightFollower(TRANSPORT, installation, CPU)
    layout = plan_layout(make_tensors(0), "float32", 9000)
    seen = []
    with learning() as learner:
        for epoch in (1, 2):
            sender = learner.form(layout, [follower])
            for sequence in range(4):
                seed, before = 10 * epoch + sequence, installation.live
                copies = {name: tensor.clone() for name, tensor in before.items()}
                send(sender, make_tensors(seed), sequence, seed, [1])
                assert all(torch.equal(before[name], copies[name]) for name in before)
                if sequence == 1:  # an update that nobody orders
                    continue
                follower.order(learner.order(sequence, seed))
                follower.swap()
                assert all(torch.equal(installation.live[name], tensor) for name, tensor in make_tensors(seed).items())
                seen.append(installation.live["layers.0.weight"].data_ptr())
            thread = f"weights-epoch-{learner.epoch}"
            sender.close()
            wait_until(lambda name=thread: all(running.name != name for running in threading.enumerate()), f"{thread} ends")
    first, second = seen[:2]
    assert first != second
    assert seen == [first, second] * 3


def test_messages_of_older_epochs_and_attempts_and_orders_for_other_weights_are_refused():
    installation = DictInstallation()
    follower = WeightFollower(TRANSPORT, installation, CPU)
    tensors = make_tensors(0)
    layout = plan_layout(tensors, "float32", 9000)
    with learning(attempt=1) as dead, learning(attempt=2) as learner:
        dead.form(layout, [follower])
        sender = learner.form(layout, [follower])
        with pytest.raises(ValueError, match="attempt 1, epoch 1 is refused: this engine already follows attempt 2, epoch 1"):
            follower.accept(dead.invitation(layout, 2, 1), 0)
        with pytest.raises(ValueError, match="attempt 2, epoch 1 is refused"):
            follower.accept(learner.invitation(layout, 2, 1), 0)
        with pytest.raises(ValueError, match="has staged nothing; broadcast it first"):
            follower.order(learner.order(0, 7))
        send(sender, tensors, 0, 7, [1])
        with pytest.raises(ValueError, match="an order of attempt 1, epoch 1 is refused"):
            follower.order(dead.order(0, 7))
        for wrong in (learner.order(0, 8), learner.order(1, 7), learner.order(0, 7, epoch=2)):
            with pytest.raises(ValueError, match="is not staged"):
                follower.order(wrong)
        with pytest.raises(ValueError, match="no accepted swap order"):
            follower.swap()
        with pytest.raises(ValueError, match="is discarded, as asked"):
            follower.order(learner.order(0, 7, discard=True))
        assert installation.live == {}
        follower.order(learner.order(0, 7))
        follower.swap()
        assert installation.live.keys() == tensors.keys()
        with pytest.raises(ValueError, match="is not staged"):
            follower.order(learner.order(0, 7))


def test_a_swap_that_comes_after_the_next_broadcast_has_begun_is_refused():
    installation = DictInstallation()
    follower = WeightFollower(TRANSPORT, installation, CPU)
    with learning() as learner:
        sender = learner.form(plan_layout(make_tensors(0), "float32", 9000), [follower])
        send(sender, make_tensors(0), 0, 1, [1])
        follower.order(learner.order(0, 1))
        send(sender, make_tensors(1), 1, 2, [1])
        with pytest.raises(ValueError, match="version 1 is not staged any more"):
            follower.swap()
        assert installation.live == {}


def test_a_worker_that_cannot_load_says_why_and_one_that_cannot_settle_too():
    def refuse(bucket):
        raise KeyError("lm_head.bias")

    def fail():
        raise RuntimeError("no memory to pack")

    installation = DictInstallation(on_bucket=refuse)
    follower = WeightFollower(TRANSPORT, installation, CPU)
    with learning() as learner:
        sender = learner.form(plan_layout(make_tensors(0), "float32", 9000), [follower])
        (answer,) = send(sender, make_tensors(0), 0, 1, [1]).values()
        assert answer.outcome == "refused"
        assert answer.message == "KeyError: 'lm_head.bias'"
        installation.on_bucket, installation.on_settle = (lambda bucket: None), fail
        assert send(sender, make_tensors(0), 1, 2, [1])[1].outcome == "done"
        follower.order(learner.order(1, 2))
        follower.swap()
        (answer,) = sender.await_settled(1, [1], no_one_is_dead).values()
        assert (answer.outcome, answer.message) == ("refused", "RuntimeError: no memory to pack")


def test_a_new_epoch_uses_the_staging_memory_of_the_last_one():
    addresses = []
    follower = WeightFollower(TRANSPORT, DictInstallation(on_bucket=lambda bucket: addresses.append(bucket[0][1].data_ptr())), CPU)
    layout = plan_layout(make_tensors(0), "float32", 9000)
    with learning() as learner:
        for _ in range(2):
            sender = learner.form(layout, [follower])
            send(sender, make_tensors(0), 0, learner.epoch, [1])
            thread = f"weights-epoch-{learner.epoch}"
            sender.close()
            wait_until(lambda name=thread: all(running.name != name for running in threading.enumerate()), f"{thread} ends")
    assert len(addresses) == 2 * len(layout.buckets)
    assert addresses[: len(layout.buckets)] == addresses[len(layout.buckets) :]


def test_a_learner_that_is_gone_leaves_the_worker_free_for_the_next():
    installation = DictInstallation()
    follower = WeightFollower(TRANSPORT, installation, CPU)
    layout = plan_layout(make_tensors(0), "float32", 9000)
    with learning(attempt=1) as dead:
        send(dead.form(layout, [follower]), make_tensors(0), 0, 1, [1])
    with learning(attempt=2) as learner:
        send(learner.form(layout, [follower]), make_tensors(5), 0, 2, [1])
        follower.order(learner.order(0, 2))
        follower.swap()
    assert torch.equal(installation.live["layers.0.weight"], make_tensors(5)["layers.0.weight"])


class IdleReceiver:
    """A worker's end that receives nothing."""

    def start(self):
        pass

    def close(self):
        pass


class HandedTransport:
    """A transport that hands its workers' `stage` to the test."""

    def __init__(self):
        self.stages = []

    def make_receiver(self, invitation, rank, device, stage, previous):
        self.stages.append(stage)
        return IdleReceiver()


def test_a_group_that_was_left_cannot_write_among_the_weights_of_its_successor():
    transport, written = HandedTransport(), []
    follower = WeightFollower(transport, DictInstallation(on_bucket=written.append), CPU)
    layout = plan_layout(make_tensors(0), "float32", 9000)
    invitation = Invitation(
        attempt=1, epoch=1, world_size=2, rank_offset=1, store_host="127.0.0.1", store_port=1, collective="gloo", timeout_seconds=1.0,
        layout=layout,
    )  # fmt: skip
    follower.accept(invitation, 0)

    def old_buckets():
        yield (("old", torch.zeros(1)),)
        follower.accept(invitation.model_copy(update={"epoch": 2}), 0)
        yield (("old, late", torch.zeros(1)),)

    with pytest.raises(SupersededError):
        transport.stages[0](old_buckets())
    transport.stages[1]([(("new", torch.ones(1)),)])
    assert [name for bucket in written for name, _ in bucket] == ["old", "new"]


def test_nccl_is_refused_where_there_is_no_gpu():
    layout = plan_layout(make_tensors(0), "float32", 9000)
    with learning() as learner:
        learner.epoch = 1
        invitation = learner.invitation(layout, 2, 1).model_copy(update={"collective": "nccl"})
        with pytest.raises(ValueError, match="this worker's device is cpu"):
            WeightFollower(TRANSPORT, DictInstallation(), CPU).accept(invitation, 0)


def test_the_learner_may_be_known_by_a_name_that_is_not_there_yet(monkeypatch):
    resolve, asked = socket.getaddrinfo, []

    def resolve_late(host, *args, **more):
        asked.append(host)
        if len(asked) < 3:
            raise socket.gaierror("not known yet")
        return resolve("127.0.0.1" if host == "job-learner-1-0.invalid" else host, *args, **more)

    monkeypatch.setattr(collectives, "NAME_POLL_SECONDS", 0.01)
    monkeypatch.setattr(socket, "getaddrinfo", resolve_late)
    rendezvous = TRANSPORT.open_rendezvous("job-learner-1-0.invalid", TorchDistributed(), 10.0)
    assert rendezvous.address[0] == "127.0.0.1"
    rendezvous.close()


def test_a_name_of_another_machine_is_refused_with_its_address(monkeypatch):
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **more: resolve("192.0.2.1", *args, **more))
    with pytest.raises(OSError, match=r"'elsewhere' does not name an address of this machine, after 0 s: 192\.0\.2\.1: "):
        collectives.own_address("elsewhere", 0.0)


def state_of(process):
    with open(f"/proc/{process.pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0]


def serves_next_epoch(learner, layout, followers, installations, tensors):
    """Those that live go on under the next epoch, with the same version."""
    ranks = list(range(1, 1 + len(followers)))
    answers = send(learner.form(layout, followers), tensors, 0, 1, ranks)
    assert {answer.outcome for answer in answers.values()} == {"done"}
    for follower, installation in zip(followers, installations, strict=True):
        follower.order(learner.order(0, 1))
        follower.swap()
        assert torch.equal(installation.live["layers.39.weight"], tensors["layers.39.weight"])


def test_a_worker_killed_in_mid_broadcast_holds_nobody_up_for_the_time_out():
    installations = [DictInstallation(), DictInstallation()]
    followers = [WeightFollower(TRANSPORT, installation, CPU) for installation in installations]
    tensors = make_tensors(0, count=40, size=2**19)
    layout = plan_layout(tensors, "float32", 2**21)
    with worker("cpu", "--freeze") as process, learning(timeout_seconds=120.0) as learner:
        # The last rank gets its bytes from another worker, not from the learner, which so sees nothing of its death.
        sender = learner.form(layout, followers, partial(tell, process), others=1)

        def kill_when_frozen():
            wait_until(lambda: state_of(process) == "T", "the worker stops itself")
            process.kill()
            sender.abort()

        killer = threading.Thread(target=kill_when_frozen)
        killer.start()
        started = time.monotonic()
        with suppress(BroadcastBrokenError):  # the bytes may all be in the hands of the network by then
            sender.send(tensors, UpdateHeader(sequence=0, version=1), lambda: None)
        killer.join()
        sender.close()
        answers = sender.await_staged(0, [1, 2, 3], lambda ranks: [3] if 3 in ranks else [])
        assert time.monotonic() - started < 60.0
        assert answers[3].outcome == "cut"
        assert "cut" in {answers[1].outcome, answers[2].outcome}
        assert all(installation.live == {} for installation in installations)
        serves_next_epoch(learner, layout, followers, installations, tensors)


def test_a_frozen_worker_ends_the_broadcast_for_all_at_the_time_out():
    installation = DictInstallation()
    follower = WeightFollower(TRANSPORT, installation, CPU)
    tensors = make_tensors(0, count=40, size=2**19)
    layout = plan_layout(tensors, "float32", 2**21)
    with worker("cpu", "--freeze") as process, learning(timeout_seconds=2.0) as learner:
        sender = learner.form(layout, [follower], partial(tell, process), others=1)
        started = time.monotonic()
        with pytest.raises(BroadcastBrokenError):
            sender.send(tensors, UpdateHeader(sequence=0, version=1), lambda: None)
        sender.close()
        answers = sender.await_staged(0, [1, 2], lambda ranks: [2])
        assert time.monotonic() - started < 3 * learner.timeout_seconds
        assert answers[2].outcome == "cut"
        assert installation.live == {}
        serves_next_epoch(learner, layout, [follower], [installation], tensors)


def test_a_member_that_joins_and_dies_before_the_group_forms_does_not_cost_the_time_out():
    follower = WeightFollower(TRANSPORT, DictInstallation(), CPU)
    layout = plan_layout(make_tensors(0), "float32", 9000)
    with learning(timeout_seconds=120.0) as learner:
        learner.epoch = 1
        follower.accept(learner.invitation(layout, 3, 1), 0)
        sender = learner.rendezvous.open_group(1, 1, 3, layout, CPU)
        learner.senders.append(sender)
        assert sender.await_members([1], no_one_is_dead)[1].outcome == "done"
        threading.Timer(0.3, sender.abort).start()
        started = time.monotonic()
        with pytest.raises(BroadcastBrokenError, match="given up while it formed"):
            sender.connect()
        wait_until(lambda: all(running.name != "weights-epoch-1" for running in threading.enumerate()), "the worker leaves, too")
        assert time.monotonic() - started < 60.0


def test_a_worker_whose_learner_dies_in_mid_broadcast_is_free_at_once():
    follower = WeightFollower(TRANSPORT, DictInstallation(), CPU)
    layout = plan_layout(make_tensors(0), "float32", 9000)
    learner = Learner(timeout_seconds=120.0)
    sender = learner.form(layout, [follower])
    # The worker is told of a broadcast of which no byte comes.
    sender._store.set("update/0", UpdateHeader(sequence=0, version=1).model_dump_json())
    wait_until(lambda: follower._receiver._buffers, "the worker waits for its bytes")
    sender._store = None
    learner.rendezvous.close()
    wait_until(lambda: all(running.name != "weights-epoch-1" for running in threading.enumerate()), "the worker leaves")
    sender._formed.clear()
