import math

import pytest
import torch

from rlvr_api.algorithms import Correction, NoCorrection, TokenTruncated
from rlvr_trainer.correction import correction_weights

OLD = torch.tensor([-1.0, -1.0, -1.0, -1.0])
SAMPLER = torch.tensor([-1.0, -1.0 + math.log(2.0), -1.0 - math.log(1.5), -1.0 - math.log(5.0)])


def truncated(cap):
    return Correction(token_truncated=TokenTruncated(cap=cap))


def test_weights_are_the_ratio_up_to_the_cap():
    assert correction_weights(truncated(2.0), OLD, SAMPLER).tolist() == pytest.approx([1.0, 0.5, 1.5, 2.0])
    assert correction_weights(truncated(1.0), OLD, SAMPLER).tolist() == pytest.approx([1.0, 0.5, 1.0, 1.0])


def test_weights_are_detached():
    logprobs = OLD.clone().requires_grad_()
    assert not correction_weights(truncated(2.0), logprobs, SAMPLER).requires_grad
    assert not correction_weights(Correction(none=NoCorrection()), logprobs, SAMPLER).requires_grad


def test_no_correction_is_a_weight_of_one():
    assert correction_weights(Correction(none=NoCorrection()), OLD, SAMPLER).tolist() == [1.0] * 4


def test_weights_of_absurd_gaps_are_finite():
    weights = correction_weights(truncated(2.0), torch.tensor([0.0, -9999.0]), torch.tensor([-9999.0, 0.0]))
    assert weights.tolist() == pytest.approx([2.0, math.exp(-20.0)])
