"""Losses and advantages of every algorithm by hand, and the learner's minibatches."""

import math
from dataclasses import replace

import pytest
import torch

from rlvr_api.algorithms import Algorithm
from rlvr_api.off_policy import OffPolicy
from rlvr_trainer.advantages import Outcome
from rlvr_trainer.algorithms import LossInputs, make_algorithm
from rlvr_trainer.correction import off_policy_weights

MAX_TOKENS = 10
KINDS = {
    "grpo": {}, "drGrpo": {"normalizerTokens": 10}, "rloo": {}, "reinforcePlusPlus": {}, "dapo": {}, "gspo": {}, "cispo": {}, "sapo": {},
}  # fmt: skip
"""All but dppoTv, whose ratio is taken to the sampler."""


def make(kind, **settings):
    return make_algorithm(Algorithm.model_validate({kind: {**KINDS.get(kind, {}), **settings}}), MAX_TOKENS)


def test_known_noise_changes_what_a_group_is_divided_by_and_only_there():
    noisy = [[Outcome(reward, 3, noise=(0.2, 0.1)) for reward in (1.0, 0.0, 0.0, 0.0, 0.0)]]
    clean = [[Outcome(reward, 3) for reward in (1.0, 0.0, 0.0, 0.0, 0.0)]]
    standardised, centred = (make("grpo", normalizeByStd=flag) for flag in (True, False))
    assert standardised.advantages(noisy) == [[0.0] * 5], "one pass in five is what false positives bring"
    assert standardised.advantages(clean)[0][0] > 1.5
    assert centred.advantages(noisy) == centred.advantages(clean)


def inputs(weights=(1.0, 1.0, 1.0), log_ratios=(0.0, 0.0, 0.0), advantages=(1.0, 1.0, -2.0), sequences=(0, 0, 1)):
    logprobs = torch.tensor([-0.5, -1.0, -2.0], dtype=torch.float64, requires_grad=True)
    double = {"dtype": torch.float64}
    old = logprobs.detach() - torch.tensor(log_ratios, **double)
    sampler = torch.tensor([-0.5, -1.2, -1.5], **double)
    return LossInputs(logprobs, old, sampler, torch.tensor(advantages, **double), torch.tensor(weights, **double), torch.tensor(sequences))


def gradient(algorithm, given):
    output = algorithm.loss(given)
    output.total.backward()
    return output, given.logprobs.grad.tolist()


def outcomes(*rewards, tokens=4):
    return [Outcome(reward, tokens) for reward in rewards]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("gspo", "sapo")])
def test_the_first_update_is_the_weighted_policy_gradient_of_each_token(kind):
    output, found = gradient(make(kind), inputs(weights=(1.0, 0.5, 2.0)))
    assert found == pytest.approx([-1.0, -0.5, 4.0])
    assert not output.cut.any()


@pytest.mark.parametrize("kind", ["gspo", "sapo"])
def test_the_first_update_is_that_of_each_completion_where_completions_count_alike(kind):
    output, found = gradient(make(kind), inputs(weights=(1.0, 0.5, 2.0)))
    assert found == pytest.approx([-0.5, -0.25, 4.0])
    assert not output.cut.any()


@pytest.mark.parametrize("kind", [*KINDS, "dppoTv"])
def test_a_token_of_weight_0_has_no_gradient_whatever_its_ratio(kind):
    given = inputs(weights=(1.0, 0.0, 1.0))
    given = LossInputs(given.logprobs, given.old_logprobs, torch.tensor([-0.5, -5000.0, -1.5]), *fields(given)[3:])
    _, found = gradient(make(kind), given)
    assert found[1] == 0.0
    assert all(map(math.isfinite, found))
    assert found[0] < 0 < found[2]


def fields(given):
    return [getattr(given, name) for name in given.__dataclass_fields__]


@pytest.mark.parametrize(
    ("kind", "denominator"),
    [
        *((kind, 16) for kind in ("grpo", "dapo", "reinforcePlusPlus", "cispo", "dppoTv")),
        *((kind, 5) for kind in ("rloo", "gspo", "sapo")),
        ("drGrpo", 50),
    ],
)
def test_what_the_sum_is_divided_by(kind, denominator):
    assert make(kind).denominator(tokens=16, completions=5) == denominator


@pytest.mark.parametrize("kind", ["grpo", "dapo", "gspo", "cispo", "sapo"])
def test_std_divides_only_when_told(kind):
    assert make(kind).advantages([outcomes(1.0, 0.0)]) == [[0.5, -0.5]]
    std = math.sqrt(0.5)
    assert make(kind, normalizeByStd=True).advantages([outcomes(1.0, None, 0.0)])[0] == pytest.approx(
        [0.5 / (std + 1e-6), None, -0.5 / (std + 1e-6)]
    )


def test_rloo_compares_with_the_mean_of_the_others():
    assert make("rloo").advantages([outcomes(1.0, 0.0, None, 0.5), outcomes(1.0), outcomes(1.0, 1.0)]) == [
        [0.75, -0.75, None, 0.0],
        [0.0],
        [0.0, 0.0],
    ]


def test_reinforce_plus_plus_normalises_over_the_batch():
    batch = [outcomes(1.0, 0.0), outcomes(1.0, 1.0), outcomes(None, 1.0, 0.0)]
    std = math.sqrt(4 * 0.25 / 5)
    one = 0.5 / (std + 1e-6)
    found = make("reinforcePlusPlus").advantages(batch)
    assert [value for group in found for value in group] == pytest.approx([one, -one, 0.0, 0.0, None, one, -one])
    assert found[1] == [0.0, 0.0]  # exactly: a group without signal is not computed
    mean, std = 4 / 6, math.sqrt((4 * (1 / 3) ** 2 + 2 * (2 / 3) ** 2) / 5)
    good, bad = (1 - mean) / (std + 1e-6), -mean / (std + 1e-6)
    found = make("reinforcePlusPlus", groupBaseline=False).advantages(batch)
    assert [value for group in found for value in group] == pytest.approx([good, bad, good, good, None, good, bad])
    assert make("reinforcePlusPlus", groupBaseline=False).advantages([outcomes(1.0, None), outcomes(1.0)]) == [[0.0, None], [0.0]]


def test_dapo_takes_off_what_is_overlong():
    dapo = make("dapo", overlong={"bufferTokens": 4, "factor": 0.5})
    group = [Outcome(1.0, tokens) for tokens in (6, 7, 8, 10)]
    assert dapo.rewards(group) == [1.0, 0.875, 0.75, 0.5]
    assert dapo.rewards([Outcome(None, 10)]) == [None]
    assert dapo.advantages([group])[0] == pytest.approx([0.21875, 0.09375, -0.03125, -0.28125])
    assert make("dapo").rewards(group) == [1.0] * 4


def test_gspo_clips_whole_completions_by_their_geometric_mean():
    # The first completion's mean log-ratio is 0.001, although its second token fell: above 4e-4, and it is good.
    output, found = gradient(make("gspo"), inputs(log_ratios=(0.012, -0.010, 0.0002)))
    assert output.cut.tolist() == [True, True, False]
    assert found == pytest.approx([0.0, 0.0, 2 * math.exp(0.0002)])
    ratio = math.exp(-0.001)  # a bad completion that fell is cut, a good one that fell is not
    output, found = gradient(make("gspo"), inputs(log_ratios=(0.01, -0.012, -0.001)))
    assert output.cut.tolist() == [False, False, True]
    assert found == pytest.approx([-ratio / 2, -ratio / 2, 0.0])
    assert output.total.item() == pytest.approx(-ratio + 2 * (1 - 3e-4))


def test_a_clipped_algorithm_with_a_truncated_weight_is_decoupled_ppo():
    """−w·min(r·A, clip(r)·A) with w = min(π_old / π_sampler, cap) (arXiv 2505.24298, eq. 5), token by token."""
    given = inputs(log_ratios=(0.4, -0.4, -0.1), advantages=(1.0, -1.0, 2.0))
    off_policy = OffPolicy.model_validate({"correction": {"tokenTruncated": {"cap": 1.1}}})
    weights = off_policy_weights(off_policy, given.logprobs, *fields(given)[1:4], given.sequences)
    output, found = gradient(make("grpo"), replace(given, weights=weights))
    total, slopes = 0.0, []
    for now, old, sampler, advantage in zip(*(values.tolist() for values in fields(given)[:4]), strict=True):
        w, r = min(math.exp(old - sampler), 1.1), math.exp(now - old)
        free, clipped = r * advantage, min(max(r, 0.8), 1.28) * advantage
        total -= w * min(free, clipped)
        slopes.append(-w * free if free <= clipped else 0.0)
    assert {round(w, 3) for w in weights.tolist()} == {round(math.exp(-0.4), 3), 1.1, round(math.exp(-0.4), 3)}
    assert output.total.item() == pytest.approx(total, rel=1e-12)
    assert found == pytest.approx(slopes, rel=1e-12)
    assert output.cut.tolist() == [True, True, False]


def test_cispo_keeps_the_gradient_of_capped_tokens():
    output, found = gradient(make("cispo", maxRatio=2.0), inputs(log_ratios=(math.log(3), math.log(0.1), math.log(1.5))))
    assert found == pytest.approx([-2.0, -0.1, 3.0])
    assert output.cut.tolist() == [True, False, False]


def test_sapo_fades_by_the_sign_of_the_advantage():
    ratios, temperatures = (2.0, 0.5, 2.0), (1.0, 1.0, 1.05)
    output, found = gradient(make("sapo"), inputs(log_ratios=[math.log(ratio) for ratio in ratios]))
    gates = [1 / (1 + math.exp(-t * (r - 1))) for r, t in zip(ratios, temperatures, strict=True)]
    slopes = [4 * g * (1 - g) * r for g, r in zip(gates, ratios, strict=True)]
    assert found == pytest.approx([-slopes[0] / 2, -slopes[1] / 2, 2 * slopes[2]])
    assert output.total.item() == pytest.approx(-2 * gates[0] - 2 * gates[1] + 2 * 4 / 1.05 * gates[2])


def test_dppo_weighs_by_the_sampler_once():
    given = inputs(advantages=(1.0, -0.5, 2.0))
    output, found = gradient(make("dppoTv"), given)
    ratios, gaps, advantages = [1.0, math.exp(0.2), math.exp(-0.5)], [0.0, 0.2, -0.5], [1.0, -0.5, 2.0]
    assert output.total.item() == pytest.approx(sum(-a * r + 1e-3 * g**2 for a, r, g in zip(advantages, ratios, gaps, strict=True)))
    assert found == pytest.approx([-a * r + 2e-3 * g for a, r, g in zip(advantages, ratios, gaps, strict=True)])


def test_dppo_counts_the_tokens_it_cuts():
    logprobs = torch.tensor([math.log(0.9), math.log(0.9)])
    sampler, ones = torch.tensor([math.log(0.3), math.log(0.8)]), torch.ones(2)
    assert make("dppoTv").loss(LossInputs(logprobs, logprobs, sampler, ones, ones, torch.tensor([0, 0]))).cut.tolist() == [True, False]


@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if kind not in ("cispo", "gspo")), "dppoTv"])
@pytest.mark.parametrize("seed", range(2))
def test_gradients_of_losses_are_those_of_finite_differences(kind, seed):
    """Without the two that detach a part of their ratio: cispo's gradient is written out above, gspo's compared below."""
    generator = torch.Generator().manual_seed(seed)
    logprobs, old, sampler = (torch.rand(24, generator=generator, dtype=torch.float64) * -2 for _ in range(3))
    advantages, weights = (
        torch.randn(24, generator=generator, dtype=torch.float64),
        torch.rand(24, generator=generator, dtype=torch.float64),
    )
    sequences = torch.arange(24) // 5
    logprobs.requires_grad_()
    algorithm = make(kind)
    assert torch.autograd.gradcheck(lambda x: algorithm.loss(LossInputs(x, old, sampler, advantages, weights, sequences)).total, logprobs)


def test_gspo_in_its_token_form_has_the_gradient_of_the_completions_ratio():
    """With equal weights: against finite differences of −A·s_i, unclipped."""
    generator = torch.Generator().manual_seed(3)
    old = torch.rand(12, generator=generator, dtype=torch.float64) * -2
    logprobs = (old + 1e-4 * torch.randn(12, generator=generator, dtype=torch.float64)).requires_grad_()
    advantages, sequences = torch.tensor([1.0] * 5 + [-0.5] * 7, dtype=torch.float64), torch.tensor([0] * 5 + [1] * 7)
    ones = torch.ones(12, dtype=torch.float64)

    def ratio_form(x):
        first, second = (x - old)[:5].mean().exp(), (x - old)[5:].mean().exp()
        return -first + 0.5 * second

    _, found = gradient(make("gspo"), LossInputs(logprobs, old, old, advantages, ones, sequences))
    wanted = torch.autograd.functional.jacobian(ratio_form, logprobs.detach())
    assert torch.autograd.gradcheck(ratio_form, logprobs)
    assert found == pytest.approx(wanted.tolist(), rel=1e-12)
