import math

import pytest
import torch

from rlvr_api.off_policy import OffPolicy
from rlvr_trainer.correction import off_policy_weights

OLD = torch.tensor([-1.0, -1.0, -1.0, -1.0])
RATIOS = [1.0, 0.5, 1.5, 5.0]
SAMPLER = OLD - torch.tensor(RATIOS).log()
PAIRS = torch.tensor([0, 0, 1, 1])
"""Two completions of two tokens."""
GOOD_BAD = torch.tensor([1.0, 1.0, -1.0, -1.0])


def weights(correction=None, rejection=None, old=OLD, sampler=SAMPLER, advantages=GOOD_BAD, logprobs=None, sequences=PAIRS):
    off_policy = OffPolicy.model_validate({"correction": correction or {"none": {}}, "rejection": rejection or {}})
    return off_policy_weights(off_policy, old if logprobs is None else logprobs, old, sampler, advantages, sequences)


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        ({"tokenTruncated": {"cap": 2.0}}, [1.0, 0.5, 1.5, 2.0]),
        ({"tokenTruncated": {"cap": 1.0}}, [1.0, 0.5, 1.0, 1.0]),
        ({"tokenMasked": {"low": 0.6, "high": 4.0}}, [1.0, 0.0, 1.5, 0.0]),
        ({"tokenMasked": {}}, [1.0, 0.5, 1.5, 5.0]),  # the bounds themselves are inside
        ({"sequenceTruncated": {"cap": 5.0}}, [0.5, 0.5, 5.0, 5.0]),
        ({"sequenceTruncated": {"cap": 10.0}}, [0.5, 0.5, 7.5, 7.5]),
        ({"sequenceMasked": {}}, [0.5, 0.5, 0.0, 0.0]),
        ({"none": {}}, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_weights_of_each_correction(correction, expected):
    assert weights(correction).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rejection", "kept"),
    [
        ({"geometric": {"low": 0.7, "high": 2.0}}, [True, False]),  # √0.5 = 0.707 and √7.5 = 2.74
        ({"geometric": {"low": 0.8, "high": 3.0}}, [False, True]),
        ({"vetoBelow": 0.6}, [False, True]),  # one token of the first is at 0.5
        ({"vetoBelow": 0.4}, [True, True]),
        ({"geometric": {"low": 0.7, "high": 2.0}, "vetoBelow": 0.6}, [False, False]),
        ({}, [True, True]),
    ],
)
def test_a_rejected_completion_has_no_weight_and_the_others_keep_theirs(rejection, kept):
    expected = [ratio if kept[number // 2] else 0.0 for number, ratio in enumerate(RATIOS)]
    assert weights({"tokenTruncated": {"cap": 9.0}}, rejection).tolist() == pytest.approx(expected)


def test_the_geometric_mean_does_not_depend_on_length():
    old, sampler = torch.zeros(12), torch.full((12,), -math.log(1.005))
    sequences = torch.tensor([0, 0] + [1] * 10)
    bounds = {"geometric": {}}
    assert weights(None, bounds, old, sampler, torch.ones(12), sequences=sequences).tolist() == [1.0] * 12
    assert weights({"sequenceMasked": {"high": 1.02}}, None, old, sampler, torch.ones(12), sequences=sequences).tolist() == pytest.approx(
        [1.005**2] * 2 + [0.0] * 10, rel=1e-5
    )


def test_opsm_drops_bad_completions_that_the_policy_has_left_behind():
    left = SAMPLER - 0.2  # the policy gives every token 0.2 nats less than the sampler did
    assert weights(None, {"opsm": {"threshold": 0.1}}, logprobs=left).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert weights(None, {"opsm": {"threshold": 0.3}}, logprobs=left).tolist() == [1.0] * 4
    assert weights(None, {"opsm": {"threshold": 0.1}}, logprobs=SAMPLER + 0.2).tolist() == [1.0] * 4  # it came nearer


def test_weights_are_detached():
    logprobs = OLD.clone().requires_grad_()
    rejection = {"geometric": {}, "vetoBelow": 1e-4, "opsm": {}}
    for kind in ("tokenTruncated", "tokenMasked", "sequenceTruncated", "sequenceMasked", "none"):
        assert not weights({kind: {}}, rejection, old=logprobs, logprobs=logprobs).requires_grad


@pytest.mark.parametrize("kind", ["tokenTruncated", "tokenMasked", "sequenceTruncated", "sequenceMasked"])
def test_weights_of_absurd_gaps_are_finite(kind):
    found = weights({kind: {}}, None, torch.tensor([0.0, -9999.0]), torch.tensor([-9999.0, 0.0]), torch.ones(2), sequences=PAIRS[1:3])
    assert torch.isfinite(found).all()
