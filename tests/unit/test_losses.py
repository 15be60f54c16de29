import math

import pytest
import torch

from rlvr_trainer.losses import clipped_surrogate, kl_penalty, total_variation_loss

LOW, HIGH, DUAL = 0.2, 0.28, 3.0


def clipped(log_ratio, advantage):
    logprobs = torch.tensor([log_ratio - 1.0], dtype=torch.float64, requires_grad=True)
    old, advantages = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    loss, cut = clipped_surrogate(logprobs, old, advantages, LOW, HIGH, DUAL)
    loss.sum().backward()
    return loss.item(), logprobs.grad.item(), cut.item()


def varied(sampler, moved, advantage, threshold=0.2, coefficient=1e-3):
    """Loss, gradient and mask of one token whose probability is `sampler` at the sampler and `moved` now."""
    logprobs = torch.tensor([math.log(moved)], dtype=torch.float64, requires_grad=True)
    others = torch.tensor([math.log(sampler)], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    loss, cut = total_variation_loss(logprobs, *others, threshold, coefficient)
    loss.sum().backward()
    return loss.item(), logprobs.grad.item(), cut.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "cut"),
    [
        (1.0, 2.0, -2.0, -2.0, False),
        (1.0, -2.0, 2.0, 2.0, False),
        (1.25, 1.0, -1.25, -1.25, False),  # inside clip-higher, outside a symmetric 0.2
        (1.5, 1.0, -1.28, 0.0, True),
        (0.5, 1.0, -0.5, -0.5, False),  # below the range a good token is still pushed up
        (0.9, -1.0, 0.9, 0.9, False),
        (0.5, -1.0, 0.8, 0.0, True),
        (1.5, -1.0, 1.5, 1.5, False),  # above the range a bad token is still pushed down
        (4.0, -1.0, 3.0, 0.0, True),  # dual clip
        (4.0, 0.0, 0.0, 0.0, False),
    ],
)
def test_the_clipped_surrogate_and_its_gradient_on_each_branch(ratio, advantage, loss, gradient, cut):
    found = clipped(math.log(ratio), advantage)
    assert found[:2] == pytest.approx((loss, gradient), rel=1e-12, abs=1e-15)
    assert found[2] is cut


@pytest.mark.parametrize("log_ratio", [-1000.0, 1000.0])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_extreme_ratios_stay_finite(log_ratio, advantage):
    loss, gradient, _ = clipped(log_ratio, advantage)
    assert abs(loss) <= 3.0
    assert gradient == 0.0


@pytest.mark.parametrize(
    ("sampler", "moved", "advantage", "cut"),
    [
        (0.3, 0.45, 1.0, False),
        (0.3, 0.55, 1.0, True),  # pushed up enough
        (0.3, 0.05, 1.0, False),  # a good token that fell is still pushed up
        (0.5, 0.35, -1.0, False),
        (0.5, 0.25, -1.0, True),  # pushed down enough
        (0.3, 0.95, -1.0, False),  # a bad token that rose is still pushed down
        (0.001, 0.1, 1.0, False),  # a ratio of 100, but a small step of the probability
        (0.5, 0.25, 0.0, True),  # zero counts as the low branch
    ],
)
def test_the_total_variation_loss_and_its_gradient_on_each_branch(sampler, moved, advantage, cut):
    ratio, log_ratio = moved / sampler, math.log(moved / sampler)
    loss, gradient, found = varied(sampler, moved, advantage)
    kept = 0.0 if cut else advantage * ratio
    assert found is cut
    assert loss == pytest.approx(-kept + 1e-3 * log_ratio**2, rel=1e-12, abs=1e-15)
    assert gradient == pytest.approx(-kept + 2e-3 * log_ratio, rel=1e-12, abs=1e-15)


def test_a_cut_token_whose_ratio_overflows_leaves_a_finite_gradient():
    logprobs = torch.tensor([-0.1], dtype=torch.float64, requires_grad=True)
    loss, cut = total_variation_loss(logprobs, torch.tensor([-900.0], dtype=torch.float64), torch.ones(1, dtype=torch.float64), 0.2, 0.0)
    loss.sum().backward()
    assert cut.item()
    assert loss.item() == 0.0
    assert logprobs.grad.item() == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_finite_differences(seed):
    generator = torch.Generator().manual_seed(seed)
    logprobs, others = (torch.rand(40, generator=generator, dtype=torch.float64) * -3 for _ in range(2))
    advantages = torch.randn(40, generator=generator, dtype=torch.float64)
    logprobs.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate(x, others, advantages, LOW, HIGH, DUAL).loss, logprobs)
    assert torch.autograd.gradcheck(lambda x: total_variation_loss(x, others, advantages, 0.2, 1e-3).loss, logprobs)


@pytest.mark.parametrize(("estimator", "value"), [("k1", -0.4), ("k2", 0.08), ("k3", math.exp(0.4) - 1 - 0.4)])
def test_each_kl_estimator_has_its_value_and_the_gradient_of_k2(estimator, value):
    logprobs = torch.tensor([-1.4], dtype=torch.float64, requires_grad=True)
    found = kl_penalty(logprobs, torch.tensor([-1.0], dtype=torch.float64), estimator)
    found.sum().backward()
    assert found.item() == pytest.approx(value, rel=1e-12)
    assert logprobs.grad.item() == pytest.approx(-0.4, rel=1e-12)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_mean_gradient_is_that_of_the_kl_by_finite_differences(estimator):
    """Over all tokens of a softmax: Σ p·∇penalty is ∇KL(π ‖ π_ref), which the plain derivative of k3 is not."""
    generator = torch.Generator().manual_seed(1)
    logits, other = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    reference = torch.log_softmax(other, 0)

    def divergence(values):
        logs = torch.log_softmax(values, 0)
        return (logs.exp() * (logs - reference)).sum()

    def mean_of(penalty):
        leaf = logits.clone().requires_grad_()
        logs = torch.log_softmax(leaf, 0)
        (logs.detach().exp() * penalty(logs)).sum().backward()
        return leaf.grad

    step = 1e-6 * torch.eye(6, dtype=torch.float64)
    wanted = torch.stack([(divergence(logits + one) - divergence(logits - one)) / 2e-6 for one in step])
    torch.testing.assert_close(mean_of(lambda logs: kl_penalty(logs, reference, estimator)), wanted, rtol=1e-6, atol=1e-8)
    assert (mean_of(lambda logs: (reference - logs).exp() - 1 - reference + logs) - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_of_absurd_distances_is_finite(estimator):
    logprobs = torch.tensor([-900.0, -1.0], requires_grad=True)
    found = kl_penalty(logprobs, torch.tensor([-1.0, -900.0]), estimator)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(logprobs.grad).all()
