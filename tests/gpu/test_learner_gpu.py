"""A learner's steps on a GPU: every algorithm beside the CPU, adapters, critic, and going on from a checkpoint."""

import pytest
import torch
from algorithm_settings import ALGORITHMS, correction_for
from rank_trials import SMOOTH, make_groups

from rlvr_api.spec import RLVRJobSpec
from rlvr_trainer.learner import Learner
from rlvr_trainer.policy import Policy

STEPS = 3


def make_learner(folder, gpus, algorithm, model=None, compute="float32", **stage):
    """With its policy."""
    optimizer = {"learningRate": 1e-3, **SMOOTH}
    spec = RLVRJobSpec.model_validate({
        "model": {"uri": "file:///model", "maxModelLen": 128, **(model or {})},
        "environments": [{"name": "sums", "arithmetic": {}}],
        "sampling": {"maxTokens": 8},
        "stages": [{"name": "climb", "rlvr": {"steps": 10, "algorithm": algorithm, "optimizer": optimizer, **stage}}],
        "learner": {"gpus": gpus},
        "precision": {"learnerCompute": compute},
        "offPolicy": {"correction": correction_for(algorithm)},
    })  # fmt: skip
    policy = Policy.load(folder, spec)
    reference = {name: tensor.clone() for name, tensor in policy.engine_named_tensors().items()} if "referenceKl" in stage else None
    return Learner(policy, spec.stages[0].rlvr, spec, reference), policy


def weights_of(policy):
    return {name: tensor.detach().float().cpu().clone() for name, tensor in policy.engine_named_tensors().items()}


def take_steps(made, steps=range(STEPS)):
    learner, policy = made
    for step in steps:
        assert learner.step(make_groups(4, step), 0, lambda version: 0).updated
    return weights_of(policy)


def assert_same(found, wanted, started, share):
    """Differences beside what the steps changed."""
    for name, tensor in wanted.items():
        change = float((tensor - started[name]).abs().max())
        assert change > 0, name
        assert float((found[name] - tensor).abs().max()) <= share * change + 1e-7, name


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_learns_as_on_the_cpu(tiny, algorithm):
    learners = [make_learner(tiny, gpus, {algorithm: ALGORITHMS[algorithm]}) for gpus in (1, 0)]
    started = weights_of(learners[1][1])
    found, wanted = map(take_steps, learners)
    assert_same(found, wanted, started, 0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {"entropyBonus": 0.01},
        {"referenceKl": {"coefficient": 0.1}},
        {"referenceKl": {"coefficient": 0.1, "placement": "reward", "estimator": "k1"}},
        {"minibatches": 2},
    ],
    ids=["entropy", "reference in the loss", "reference in the reward", "minibatches"],
)
def test_settings_learn_as_on_the_cpu(tiny, changes):
    learners = [make_learner(tiny, gpus, {"grpo": {}}, **changes) for gpus in (1, 0)]
    started = weights_of(learners[1][1])
    found, wanted = map(take_steps, learners)
    assert_same(found, wanted, started, 0.01)


def test_adapters_learn_as_on_the_cpu(tiny):
    learners = [make_learner(tiny, gpus, {"grpo": {}}, {"lora": {"rank": 4}}) for gpus in (1, 0)]
    found, wanted = map(take_steps, learners)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=name)


def test_bfloat16_compute_moves_float32_weights_the_same_way(tiny):
    found = make_learner(tiny, 1, {"grpo": {}}, compute="bfloat16")
    wanted = make_learner(tiny, 0, {"grpo": {}})
    started = weights_of(wanted[1])
    one, other = take_steps(found, [0]), take_steps(wanted, [0])
    moves = [torch.cat([(after[name] - started[name]).flatten() for name in sorted(started)]) for after in (one, other)]
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.98


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_going_on_from_a_checkpoint_is_going_on(tiny, algorithm):
    undisturbed = make_learner(tiny, 1, {algorithm: {}})
    take_steps(undisturbed, [0])
    saved = {name: tensor.cpu().clone() for name, tensor in undisturbed[0].tensors().items()}
    scalars = undisturbed[0].scalars()
    wanted = take_steps(undisturbed, [1, 2])
    resumed = make_learner(tiny, 1, {algorithm: {}})
    resumed[0].load(saved, scalars)
    found = take_steps(resumed, [1, 2])
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)
