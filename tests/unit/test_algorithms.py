import math

import pytest
import torch

from rlvr_api.algorithms import Algorithm, DppoTv, Grpo
from rlvr_trainer.algorithms import LossInputs, make_algorithm

GRPO = Algorithm(grpo=Grpo())
DPPO = Algorithm(dppo_tv=DppoTv())


def inputs(weights=(1.0, 1.0, 1.0)):
    logprobs = torch.tensor([-0.5, -1.0, -2.0], requires_grad=True)
    sampler, advantages = torch.tensor([-0.5, -1.2, -1.5]), torch.tensor([1.0, -0.5, 2.0])
    return LossInputs(logprobs, logprobs.detach(), sampler, advantages, torch.tensor(weights))


def test_grpo_of_one_step_a_batch_is_the_weighted_policy_gradient():
    given = inputs(weights=(1.0, 0.5, 2.0))
    output = make_algorithm(GRPO).loss(given)
    output.total.backward()
    assert output.total.item() == pytest.approx(-1.0 + 0.25 - 4.0)
    assert given.logprobs.grad.tolist() == pytest.approx([-1.0, 0.25, -4.0])
    assert output.cut_tokens.item() == 0


def test_grpo_normalises_by_std_only_when_told():
    assert make_algorithm(GRPO).advantages([1.0, 0.0]) == [0.5, -0.5]
    std = math.sqrt(0.5)
    assert make_algorithm(Algorithm(grpo=Grpo(normalize_by_std=True))).advantages([1.0, None, 0.0]) == pytest.approx(
        [0.5 / (std + 1e-6), None, -0.5 / (std + 1e-6)]
    )


def test_dppo_weighs_by_the_sampler_once_and_ignores_weights():
    given, weighted = inputs(), inputs(weights=(7.0, 7.0, 7.0))
    output = make_algorithm(DPPO).loss(given)
    output.total.backward()
    ratios = [1.0, math.exp(0.2), math.exp(-0.5)]
    gaps = [0.0, 0.2, -0.5]
    advantages = [1.0, -0.5, 2.0]
    assert output.total.item() == pytest.approx(sum(-a * r + 1e-3 * g**2 for a, r, g in zip(advantages, ratios, gaps, strict=True)))
    assert given.logprobs.grad.tolist() == pytest.approx([-a * r + 2e-3 * g for a, r, g in zip(advantages, ratios, gaps, strict=True)])
    assert make_algorithm(DPPO).loss(weighted).total.item() == output.total.item()


def test_dppo_counts_the_tokens_it_cuts():
    logprobs = torch.tensor([math.log(0.9), math.log(0.9)])
    given = LossInputs(logprobs, logprobs, torch.tensor([math.log(0.3), math.log(0.8)]), torch.ones(2), torch.ones(2))
    assert make_algorithm(DPPO).loss(given).cut_tokens.item() == 1
