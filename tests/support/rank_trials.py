"""Trials of a learner with as many processes as asked for.

rank_trials.py plain|large|adapters MODEL PROCESSES RESULTS [OTHERS]
    each of `TRIALS`: weights, optimizer state and reports, into a folder; OTHERS has those of another number, to go on from
rank_trials.py --lose step|waiting|lead|node MODEL
    somebody is killed
rank_trials.py --drain node MODEL
    the other node is asked to stop
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import torch
from commands import free_port
from safetensors.torch import load_file, save_file

from rlvr_api.spec import RLVRJobSpec
from rlvr_api.stages import Optimizer
from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer import policy as policy_module
from rlvr_trainer.distributed import follower, lead
from rlvr_trainer.distributed.lead import open_ranks
from rlvr_trainer.distributed.node import follow_lead
from rlvr_trainer.learner import Learner
from rlvr_trainer.policy import Policy, read_weights
from rlvr_trainer.reverse_kl_learner import ReverseKlLearner, TaughtExample
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan
from rlvr_trainer.supervised_learner import SupervisedLearner
from rlvr_trainer.traces import Example
from rlvr_trainer.training import NonFiniteStepError

STEPS = 3
STOP = threading.Event()
SMOOTH = {"epsilon": 1e-3}
"""AdamW's first steps make of rounding an update as large as any, where epsilon does not hold it down."""
GRADIENT = {**SMOOTH, "beta1": 0.0, "maxGradientNorm": 1e6}
"""With these the first moment is the gradient itself."""
MODES = {
    "plain": ({"tokensPerMicroBatch": 24}, {}),
    # One micro-batch for all, logits of a chunk of rows at a time, and activations computed twice.
    "large": ({"tokensPerMicroBatch": 4096, "gradientCheckpointing": True}, {}),
    "adapters": ({"tokensPerMicroBatch": 24}, {"lora": {"rank": 4}}),
    "nodes": ({"tokensPerMicroBatch": 24, "nodes": 2}, {}),
}
"""Settings of learner and model that trials are made with."""
SETTINGS = {"mode": "plain", "learner": MODES["plain"][0], "model": MODES["plain"][1]}
LOGITS_BYTES = policy_module.LOGITS_BYTES_CPU
TRIALS = {
    "gradient": {"optimizer": GRADIENT},
    "clipped": {"optimizer": {**SMOOTH, "maxGradientNorm": 0.05, "weightDecay": 0.1}},
    "minibatches": {"minibatches": 2, "optimizer": GRADIENT},
    "critic": {"algorithm": {"ppo": {}}, "optimizer": GRADIENT},
    "entropy": {"entropyBonus": 0.01, "optimizer": GRADIENT},
    "reference in the loss": {"referenceKl": {"coefficient": 0.1}, "optimizer": GRADIENT},
    "reference in the reward": {"referenceKl": {"coefficient": 0.1, "placement": "reward", "estimator": "k1"}, "optimizer": GRADIENT},
    "supervised": {},
    "towards a teacher": {},
}
"""Settings of `rlvr` by what a trial is about."""
CHOSEN = {
    "large": ("gradient", "critic", "entropy", "supervised"),
    "adapters": ("gradient", "critic", "reference in the loss", "reference in the reward", "supervised"),
    "nodes": ("gradient", "critic"),
}
"""Trials of modes that differ from `plain` in few of them: how logits and activations are made, what is trained, who starts processes."""


def trials_of(mode):
    """Names of the trials that a mode is tried with."""
    return CHOSEN.get(mode, tuple(TRIALS))


def make_spec(processes, optimizer=None, **stage):
    """Of one stage; one process has one node, whatever the mode says."""
    nodes = min(processes, SETTINGS["learner"].get("nodes", 1))
    return RLVRJobSpec.model_validate({
        "model": {"uri": "file:///model", "maxModelLen": 128, **SETTINGS["model"]},
        "environments": [{"name": "sums", "arithmetic": {}}],
        "sampling": {"maxTokens": 8},
        "stages": [{"name": "climb", "rlvr": {"steps": 10, **stage, "optimizer": {"learningRate": 1e-3, **(optimizer or {})}}}],
        "learner": {**SETTINGS["learner"], "processesPerNode": processes // nodes, "nodes": nodes},
        "deadlines": {"provisioningSeconds": 280, "stallSeconds": 200},
    })  # fmt: skip


def make_groups(count=7, seed=0, logprob=None):
    """Groups of unequal sizes, one of them without a signal."""
    source = random.Random(seed)

    def rollout(reward):
        ids = tuple(source.randrange(4, 60) for _ in range(source.randint(1, 8)))
        verdict = Verdict(
            id="x", status=VerdictStatus.PASS if reward else VerdictStatus.FAIL, score=reward, verifier="none", verifier_version="1"
        )
        logprobs = tuple(logprob or -4.0 - source.random() / 4 for _ in ids)
        return Rollout(ids, logprobs, (VersionSpan(0, 0, len(ids)),), "stop", "", verdict)

    def group(index):
        rewards = [float(number % 2 or index == 3) for number in range(source.randint(2, 5))]
        prompt = tuple(source.randrange(4, 60) for _ in range(source.randint(2, 12)))
        return RolloutGroup(
            Admission(index, "sums", 0, index), f"{index:016x}", prompt, "", tuple(map(rollout, rewards)), "e", "", 1.0, 0.1
        )

    return [group(index) for index in range(count)]


def make_examples(count=9):
    """Examples with what a teacher says."""
    source = random.Random(1)

    def ids(least, most):
        return tuple(source.randrange(4, 60) for _ in range(source.randint(least, most)))

    def example(number):
        completion = ids(1, 8)
        sampler, teacher = (tuple(-3.0 - source.random() for _ in completion) for _ in range(2))
        return TaughtExample(f"line {number}", ids(2, 12), completion, sampler, teacher)

    return [example(number) for number in range(count)]


def at_step_0(version):
    """The only version is that of the start."""
    return {0: 0}[version]


def open_learner(name, policy, spec, start):
    """The learner of a trial, and what takes one step of it; a reference has 0.9 times the weights of the start."""
    examples, optimizer = make_examples(), Optimizer(learning_rate=1e-3, epsilon=1e-3)
    if name == "supervised":
        learner = SupervisedLearner(policy, optimizer, 10, SETTINGS["learner"]["tokensPerMicroBatch"])
        plain = [Example(example.name, example.prompt_ids, example.completion_ids) for example in examples]
        return learner, lambda number: learner.step(plain, f"step {number}")
    if name == "towards a teacher":
        learner = ReverseKlLearner(policy, optimizer, 10, SETTINGS["learner"]["tokensPerMicroBatch"])
        return learner, lambda number: learner.step(examples, f"step {number}")
    stage = spec.stages[0].rlvr
    reference = {key.removeprefix("model/"): 0.9 * tensor for key, tensor in start.items()} if stage.reference_kl else None
    learner = Learner(policy, stage, spec, reference)
    return learner, lambda number: learner.step(make_groups(), number, at_step_0)


def make_start(policy, model):
    """The model's weights, or adapters that do something."""
    if not SETTINGS["model"]:
        return {f"model/{name}": tensor for name, tensor in read_weights(model).items()}
    source = torch.Generator().manual_seed(0)
    return {name: 0.1 * torch.randn(part.shape, generator=source) for name, part in policy.tensors().items()}


def whole(tensors):
    """Copies of all, gathered where need be."""
    return {name: tensors[name].clone() for name in tensors if not name.startswith("generator")}


def run_trial(name, policy, start, results):
    """`STEPS` steps from the start; the state after the first and the last, and the reports."""
    spec = make_spec(policy.ranks.size, **TRIALS[name])
    policy.load_tensors(start)
    learner, step = open_learner(name, policy, spec, start)
    reports = [_plain(step(0))]
    save_file(whole(learner.tensors()), results / f"{name}.first.safetensors")
    reports += [_plain(step(number)) for number in range(1, STEPS)]
    save_file(whole(learner.tensors()), results / f"{name}.safetensors")
    (results / f"{name}.json").write_text(json.dumps(reports))


def go_on(name, policy, start, checkpoint, results):
    """The last steps of a trial, from the state after its first, of another number of processes."""
    spec = make_spec(policy.ranks.size, **TRIALS[name])
    learner, step = open_learner(name, policy, spec, start)
    learner.load({**load_file(checkpoint), "generator/cpu": torch.get_rng_state()}, {"learner_step": 1})
    for number in range(1, STEPS):
        step(number)
    save_file(whole(learner.tensors()), results / f"{name}.resumed.safetensors")


def run_others(policy, start, results):
    """What is no plain step: a refused one, one without anything to learn, log-probs of a sequence, weights for engines."""
    spec = make_spec(policy.ranks.size)
    policy.load_tensors(start)
    learner = Learner(policy, spec.stages[0].rlvr, spec)
    said = ""
    try:
        learner.step(make_groups(logprob=-math.inf), 0, at_step_0)
    except NonFiniteStepError as error:
        said = str(error)
    updated = learner.step(make_groups()[3:4], 0, at_step_0).updated
    logprobs = {dtype: policy.sequence_logprobs((4, 9, 13), (20, 21, 1), dtype) for dtype in ("float32", "bfloat16")}
    save_file(whole(policy.engine_named_tensors()), results / "engine.safetensors")
    save_file(whole(policy.published_tensors()), results / "published.safetensors")
    (results / "others.json").write_text(json.dumps({"said": said, "updated": updated, "logprobs": logprobs}))


@contextmanager
def open_nodes(spec, model):
    """As `open_ranks`; the other nodes are processes of this machine."""
    if spec.learner.nodes == 1:
        with open_ranks(spec, model) as ranks:
            yield ranks
        return
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    ports = [free_port(), free_port()]
    command = [sys.executable, __file__, "nodes", "--node", str(model), str(spec.learner.processes), *map(str, ports)]
    with subprocess.Popen(command) as other:
        try:
            with open_ranks(spec, model, "127.0.0.1", ports[0], STOP) as ranks:
                yield ranks
            assert other.wait(60) == 0
        finally:
            other.kill()


def be_node(model, processes, rendezvous_port, status_port):
    """The second node, until the lead has nothing more to do."""
    job = SimpleNamespace(spec=make_spec(processes))
    context = SimpleNamespace(
        job=job, node=1, advertised_host="127.0.0.1", rendezvous_port=rendezvous_port, status_port=status_port, model_dir=model
    )
    signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    return follow_lead(context, STOP)


@contextmanager
def two_nodes(model):
    """A learner that has done a step, and the process of its second node."""
    choose("nodes")
    spec = make_spec(2)
    with open_nodes(spec, model) as ranks:
        learner = Learner(Policy.load(model, spec, ranks), spec.stages[0].rlvr, spec)
        learner.step(make_groups(), 0, at_step_0)
        (node,) = psutil.Process().children()
        yield learner, node


def lose_node(model):
    """End a process of the second node by SIGKILL: the lead's next step fails, and the node says why."""
    with two_nodes(model) as (learner, node):
        (child,) = node.children()
        child.kill()
        print(node.wait(30), flush=True)
        learner.step(make_groups(), 1, at_step_0)


def drain_node(model):
    """End the second node by SIGTERM: the lead hears of it, and all are there until it has done what it must."""
    with two_nodes(model) as (learner, node):
        node.terminate()
        assert STOP.wait(30), "the lead did not hear that its other node has to go"
        learner.step(make_groups(), 1, at_step_0)


def main(model, processes, results, others=None):
    """All trials with this number of processes."""
    spec = make_spec(processes)
    with open_nodes(spec, model) as ranks:
        policy = Policy.load(model, spec, ranks)
        start = make_start(policy, model)
        for name in trials_of(SETTINGS["mode"]):
            run_trial(name, policy, start, results)
            if others is not None:
                go_on(name, policy, start, others / f"{name}.first.safetensors", results)
        run_others(policy, start, results)


def lose_somebody(model, moment):
    """End a follower, or this lead, by SIGKILL; prints the followers' ids before."""
    spec = make_spec(2)
    with open_ranks(spec, model) as ranks:
        policy = Policy.load(model, spec, ranks)
        learner = Learner(policy, spec.stages[0].rlvr, spec)
        learner.step(make_groups(), 0, at_step_0)
        children = psutil.Process().children()
        print(*(child.pid for child in children), flush=True)
        if moment == "lead":
            os.kill(os.getpid(), signal.SIGKILL)
        children[-1].kill()
        if moment == "waiting":  # for rollouts, and not in a collective
            threading.Event().wait(60)
        learner.step(make_groups(), 1, at_step_0)


def _plain(report):
    return {name: value for name, value in asdict(report).items() if name != "seconds"}


def choose(mode):
    """Make what follows one of `MODES`, here and in followers."""
    learner, model = MODES[mode]
    SETTINGS.update(mode=mode, learner=learner, model=model)
    policy_module.LOGITS_BYTES_CPU = 0 if mode == "large" else LOGITS_BYTES
    lead.FOLLOWER = (__file__, mode, "--follower")


if __name__ == "__main__":
    if sys.argv[1:3] == ["--drain", "node"]:
        sys.exit(drain_node(Path(sys.argv[3])))
    if sys.argv[1:3] == ["--lose", "node"]:
        lose_node(Path(sys.argv[3]))
    if sys.argv[1] == "--lose":
        lose_somebody(Path(sys.argv[3]), sys.argv[2])
    choose(sys.argv[1])
    torch.set_num_threads(1)
    if sys.argv[2] == "--follower":
        sys.exit(follower.main(sys.argv[3:]))
    if sys.argv[2] == "--node":
        sys.exit(be_node(Path(sys.argv[3]), *map(int, sys.argv[4:])))
    main(Path(sys.argv[2]), int(sys.argv[3]), *map(Path, sys.argv[4:]))
