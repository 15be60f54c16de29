import math

import pytest
import torch

from rlvr_api.stages import Optimizer
from rlvr_trainer.optimizer import AdamWOptimizer, learning_rate


def settings(**changes):
    return Optimizer(**{"learning_rate": 0.1, "max_gradient_norm": 1e6, **changes})


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.nn.Parameter(torch.randn(3, 4, generator=generator)),
        "gain": torch.nn.Parameter(torch.randn(4, generator=generator)),
        "unused": torch.nn.Parameter(torch.ones(2)),
    }


def set_gradients(owned, seed):
    generator = torch.Generator().manual_seed(seed)
    for name in ("weight", "gain"):
        owned[name].grad = torch.randn(owned[name].shape, generator=generator)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, [0.1] * 6),
        ({"warmup_steps": 4}, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]),
        ({"schedule": "cosine"}, [0.1 * (0.1 + 0.45 * (1 + math.cos(math.pi * n / 6))) for n in range(1, 7)]),
        (
            {"schedule": "cosine", "warmup_steps": 2},
            [0.05, 0.1, *(0.1 * (0.1 + 0.45 * (1 + math.cos(math.pi * n / 4))) for n in range(1, 5))],
        ),
        ({"schedule": "cosine", "warmup_steps": 6}, [0.1 * n / 6 for n in range(1, 7)]),
    ],
)
def test_the_schedule(changes, wanted):
    assert [learning_rate(settings(**changes), step, 6) for step in range(6)] == pytest.approx(wanted)


def test_a_cosine_ends_at_ten_percent_and_stays_there():
    assert learning_rate(settings(schedule="cosine"), 99, 100) == pytest.approx(0.01)
    assert learning_rate(settings(schedule="cosine"), 500, 100) == pytest.approx(0.01)


def test_two_steps_are_those_of_the_paper_and_decay_spares_vectors():
    owned = parameters()
    adamw = AdamWOptimizer(owned, settings(weight_decay=0.1, beta1=0.9, beta2=0.95), 10)
    expected = {name: owned[name].detach().double() for name in ("weight", "gain")}
    first = {name: torch.zeros_like(value) for name, value in expected.items()}
    second = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step in range(2):
        set_gradients(owned, seed=step)
        gradients = {name: owned[name].grad.double() for name in expected}
        assert adamw.apply(adamw.gradient_norm(), step) == 0.1
        for name, gradient in gradients.items():
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            decayed = expected[name] * (1 - 0.1 * 0.1) if name == "weight" else expected[name]
            corrected = (second[name] / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
            expected[name] = decayed - 0.1 * first[name] / (1 - 0.9 ** (step + 1)) / corrected
    for name, value in expected.items():
        torch.testing.assert_close(owned[name].detach().double(), value, rtol=1e-5, atol=1e-6)
    assert owned["unused"].tolist() == [1.0, 1.0]
    assert all(parameter.grad is None for parameter in owned.values())


def test_the_norm_is_global_and_clipping_scales_every_gradient():
    owned = {"a": torch.nn.Parameter(torch.zeros(2, 2)), "b": torch.nn.Parameter(torch.zeros(1))}
    adamw = AdamWOptimizer(owned, settings(max_gradient_norm=1.0, beta1=0.0, beta2=0.0, epsilon=1e-3), 1)
    owned["a"].grad, owned["b"].grad = torch.full((2, 2), 3.0), torch.full((1,), 8.0)
    assert adamw.gradient_norm() == pytest.approx(10.0)
    adamw.apply(10.0, 0)
    # Without momentum the step is lr · g / (|g| + ε), which tells 0.3 and 0.8 from 3 and 8.
    assert owned["a"].detach().unique().tolist() == pytest.approx([-0.1 * 0.3 / (0.3 + 1e-3)], rel=1e-4)
    assert owned["b"].tolist() == pytest.approx([-0.1 * 0.8 / (0.8 + 1e-3)], rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_norm_shows_gradients_that_are_not_finite(value):
    owned = parameters()
    adamw = AdamWOptimizer(owned, settings(), 1)
    set_gradients(owned, 0)
    owned["gain"].grad[1] = value
    assert not math.isfinite(adamw.gradient_norm())


def test_going_on_from_saved_state_gives_the_same_bits():
    straight, first = parameters(), parameters()
    one, two = AdamWOptimizer(straight, settings(), 5), AdamWOptimizer(first, settings(), 5)
    for step in range(3):
        for owned, adamw in ((straight, one), (first, two)):
            set_gradients(owned, step)
            adamw.apply(adamw.gradient_norm(), step)
    saved = {name: tensor.clone() for name, tensor in two.tensors().items()}
    assert {name.split("/")[1] for name in saved} == {"weight", "gain"}
    resumed = {name: torch.nn.Parameter(parameter.detach().clone()) for name, parameter in first.items()}
    three = AdamWOptimizer(resumed, settings(), 5)
    three.load_tensors({**saved, "model/weight": torch.zeros(1)})
    for owned, adamw in ((straight, one), (resumed, three)):
        set_gradients(owned, 9)
        adamw.apply(adamw.gradient_norm(), 3)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert all(torch.equal(tensor, one.tensors()[name]) for name, tensor in three.tensors().items())


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("optimizer/other/step", torch.zeros(())), ("optimizer/weight/exp_avg", torch.zeros(9)), ("optimizer/gain/exp_avg", None)],
    ids=["another weight", "another shape", "incomplete"],
)
def test_state_of_another_model_is_refused_and_changes_nothing(name, tensor):
    owned = parameters()
    adamw = AdamWOptimizer(owned, settings(), 5)
    set_gradients(owned, 0)
    adamw.apply(adamw.gradient_norm(), 0)
    kept = {key: value.clone() for key, value in adamw.tensors().items()}
    broken = dict(kept)
    if tensor is None:
        del broken[name]
    else:
        broken[name] = tensor
    with pytest.raises(ValueError, match="optimizer state"):
        adamw.load_tensors(broken)
    assert all(torch.equal(value, kept[key]) for key, value in adamw.tensors().items())


def test_state_of_before_the_first_step_clears_what_is_there():
    owned = parameters()
    adamw = AdamWOptimizer(owned, settings(), 5)
    assert adamw.tensors() == {}
    set_gradients(owned, 0)
    adamw.apply(adamw.gradient_norm(), 0)
    adamw.load_tensors({})
    assert adamw.tensors() == {}
