"""Losses and gradients beside those of TRL's GRPOTrainer on the same tensors; `tests/support/trl_numbers.py` wrote its numbers down."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlvr_api.algorithms import Algorithm
from rlvr_api.off_policy import OffPolicy
from rlvr_api.stages import Rlvr
from rlvr_trainer.algorithms import LossInputs, make_algorithm
from rlvr_trainer.correction import off_policy_weights
from rlvr_trainer.distributed.ranks import ALONE
from rlvr_trainer.losses import kl_penalty
from rlvr_trainer.regularization import Regularizer

THEIRS = json.loads((Path(__file__).parents[1] / "golden" / "trl.json").read_text())
TENSORS = {name: torch.tensor(values, dtype=torch.float64) for name, values in THEIRS["tensors"].items()}
LENGTHS = torch.tensor(THEIRS["lengths"])
SEQUENCES = torch.arange(len(LENGTHS)).repeat_interleave(LENGTHS)
OPSM = OffPolicy.model_validate({"correction": {"none": {}}, "rejection": {"opsm": {"threshold": 0.1}}})
ALGORITHMS = {"dr_grpo": {"drGrpo": {"normalizerTokens": 6, "clipHigh": 0.2}}}


def loss_of(case, logprobs):
    kind = case.split()[0]
    algorithm = make_algorithm(Algorithm.model_validate(ALGORITHMS.get(kind, {kind: {}})), 6)
    advantages = TENSORS["advantages"][SEQUENCES]
    weights = TENSORS["weights"] if "weighted" in case else torch.ones_like(advantages)
    if "opsm" in case:
        weights = off_policy_weights(OPSM, logprobs, TENSORS["old"], TENSORS["sampler"], advantages, SEQUENCES)
        assert 0 < (weights == 0).sum() < len(weights)
    output = algorithm.loss(LossInputs(logprobs, TENSORS["old"], TENSORS["sampler"], advantages, weights, SEQUENCES))
    return output.total / algorithm.denominator(len(SEQUENCES), len(LENGTHS))


@pytest.mark.parametrize("case", [name for name in THEIRS["results"] if name not in ("k3", "grpo with entropy")])
def test_loss_and_gradient_are_those_of_trl(case):
    logprobs = TENSORS["logprobs"].clone().requires_grad_()
    loss = loss_of(case, logprobs)
    loss.backward()
    wanted = THEIRS["results"][case]
    assert loss.item() == pytest.approx(wanted["loss"], rel=1e-12)
    assert logprobs.grad.tolist() == pytest.approx(wanted["gradient"], rel=1e-12, abs=1e-15)


def test_the_entropy_bonus_is_scaled_as_trls():
    wanted = THEIRS["results"]["grpo with entropy"]
    logprobs, entropies = TENSORS["logprobs"].clone().requires_grad_(), TENSORS["entropies"].clone().requires_grad_()
    bonus = Regularizer(SimpleNamespace(device=torch.device("cpu"), ranks=ALONE), Rlvr(steps=1, entropy_bonus=0.01), 1.0, None)
    inputs = LossInputs(logprobs, TENSORS["old"], TENSORS["sampler"], logprobs, torch.ones(len(SEQUENCES)), SEQUENCES)
    loss = loss_of("grpo", logprobs) + bonus.loss(None, inputs, entropies) / len(SEQUENCES)
    loss.backward()
    assert loss.item() == pytest.approx(wanted["loss"], rel=1e-12)
    assert entropies.grad.tolist() == pytest.approx(wanted["entropy_gradient"])
    assert logprobs.grad.tolist() == pytest.approx(wanted["gradient"], rel=1e-12, abs=1e-15)


def test_the_value_of_k3_is_trls_and_its_gradient_is_not():
    logprobs = TENSORS["logprobs"].clone().requires_grad_()
    penalty = kl_penalty(logprobs, TENSORS["reference"], "k3").mean()
    penalty.backward()
    wanted = THEIRS["results"]["k3"]
    assert penalty.item() == pytest.approx(wanted["loss"], rel=1e-12)
    difference = TENSORS["logprobs"] - TENSORS["reference"]
    assert wanted["gradient"] == pytest.approx(((1 - (-difference).exp()) / len(difference)).tolist())  # of KL(π_ref ‖ π)
    assert logprobs.grad.tolist() == pytest.approx((difference / len(difference)).tolist())
