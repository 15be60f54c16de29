"""The critic: GAE by hand and by its definition, the value loss, and what the learner makes of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import layer_norm, log_softmax

from rlvr_api.spec import RLVRJobSpec
from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.critic import Critic, CriticSettings, estimate_advantages
from rlvr_trainer.learner import Learner
from rlvr_trainer.losses import clipped_value_loss
from rlvr_trainer.policy import Policy
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(gae_lambda=1.0, discount=1.0):
    return CriticSettings(0.02, discount, gae_lambda)


def estimate(rewards, values, sequences, *, discount=1.0, gae_lambda=1.0):
    found = estimate_advantages(torch.tensor(rewards), torch.tensor(values), torch.tensor(sequences), settings(gae_lambda, discount))
    return found.advantages.tolist(), found.returns.tolist()


def test_with_lambda_1_an_advantage_is_the_reward_less_the_value():
    advantages, returns = estimate([1.0, 1.0, 1.0, 0.0], [0.25, 0.5, 0.75, 0.5], [0, 0, 0, 1])
    assert advantages == pytest.approx([0.75, 0.5, 0.25, -0.5])
    assert returns == [1.0, 1.0, 1.0, 0.0]


def test_with_lambda_0_an_advantage_is_what_the_value_gained():
    advantages, returns = estimate([1.0, 1.0, 1.0], [0.25, 0.5, 0.75], [0, 0, 0], gae_lambda=0.0)
    assert advantages == pytest.approx([0.25, 0.25, 0.25])
    assert returns == [1.0, 1.0, 1.0]  # the critic's target is the reward itself


def test_gae_written_out():
    advantages, returns = estimate([2.0] * 3, [0.5, 1.0, 1.5], [7, 7, 7], discount=0.9, gae_lambda=0.5)
    deltas = [0.9 * 1.0 - 0.5, 0.9 * 1.5 - 1.0, 2.0 - 1.5]
    wanted = [deltas[0] + 0.45 * deltas[1] + 0.45**2 * deltas[2], deltas[1] + 0.45 * deltas[2], deltas[2]]
    assert advantages == pytest.approx(wanted, rel=1e-6)
    assert returns == pytest.approx([2.0 * 0.81, 2.0 * 0.9, 2.0])


completions = st.lists(st.tuples(st.floats(-1, 1), st.lists(st.floats(-2, 2), min_size=1, max_size=6)), min_size=1, max_size=5)


@given(completions, st.floats(0.5, 1), st.floats(0, 1))
def test_gae_is_the_weighted_mean_of_n_step_advantages_and_completions_do_not_mix(found, discount, gae_lambda):
    """A_t = (1 − λ) Σ_{n≥1} λ^{n−1}·A_t^(n), with all the weight of what goes beyond the end on the last (arXiv 1506.02438, eq. 16)."""
    rewards = [reward for reward, values in found for _ in values]
    numbers = [number for number, (_, values) in enumerate(found) for _ in values]
    advantages, _ = estimate(rewards, [value for _, values in found for value in values], numbers, discount=discount, gae_lambda=gae_lambda)
    wanted = []
    for reward, values in found:
        for t, value in enumerate(values):
            left = len(values) - t
            steps = [discount**n * values[t + n] - value for n in range(1, left)] + [discount ** (left - 1) * reward - value]
            shares = [(1 - gae_lambda) * gae_lambda ** (n - 1) for n in range(1, left)] + [gae_lambda ** (left - 1)]
            wanted.append(math.fsum(share * step for share, step in zip(shares, steps, strict=True)))
    assert advantages == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (0.5, 0.5, 1.0, 0.125, -0.5),
        (0.6, 0.5, 1.0, 0.08, -0.4),  # within the range
        (0.9, 0.5, 1.0, 0.045, 0.0),  # it has moved by more than 0.2 towards the target: enough
        (0.1, 0.5, 1.0, 0.405, -0.9),  # away from it: not bounded
    ],
)
def test_the_value_loss_and_its_gradient_on_each_branch(value, old, target, loss, slope):
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    found = clipped_value_loss(values, *(torch.tensor([x], dtype=torch.float64) for x in (old, target)), 0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss)
    assert values.grad.item() == pytest.approx(slope)


def test_values_are_linear_in_normalised_states_whatever_their_scale():
    critic = Critic(4, torch.device("cpu"))
    states = torch.tensor([[1.0, 2.0, 3.0, 6.0], [10.0, 20.0, 30.0, 60.0]])
    assert critic.values(states).tolist() == [0.0, 0.0]
    critic.load_tensors({"critic/weight": torch.tensor([4.0, 0.0, 0.0, 0.0]), "critic/bias": torch.tensor(0.5)})
    assert critic.values(states).tolist() == pytest.approx([0.5 - 2 / math.sqrt(3.5)] * 2, rel=1e-4)
    assert critic.values(states.bfloat16()).dtype == torch.float32


def test_a_checkpoint_without_a_critic_is_refused():
    critic = Critic(4, torch.device("cpu"))
    with pytest.raises(ValueError, match="has no 'critic/weight' of this model"):
        critic.load_tensors({"model/lm_head": torch.zeros(4)})
    with pytest.raises(ValueError, match="critic/weight"):
        critic.load_tensors({"critic/weight": torch.ones(5), "critic/bias": torch.ones(())})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("critic") / "tiny"
    write_tiny_model(place)
    return place


def rollout(tokens, reward, logprob=-4.3):
    status = VerdictStatus.INFRA_ERROR if reward is None else VerdictStatus.PASS if reward > 0 else VerdictStatus.FAIL
    verdict = Verdict(id="x", status=status, score=reward, verifier="arithmetic", verifier_version="1")
    return Rollout(tuple(tokens), (logprob,) * len(tokens), (VersionSpan(0, 0, len(tokens)),), "stop", "", verdict)


def group(index, prompt, *rollouts):
    return RolloutGroup(Admission(index, "sums", 0, index), f"{index:016x}", prompt, "1 + 1", rollouts, "rollout-0", "", 1.0, 0.1)


def make(folder, minibatches=1, rejection=None, learning_rate=1e-2, **ppo):
    spec = RLVRJobSpec.model_validate({
        "model": {"uri": "file:///model", "maxModelLen": 128},
        "environments": [{"name": "sums", "arithmetic": {}}],
        "sampling": {"maxTokens": 8},
        "stages": [{"name": "climb", "rlvr": {"steps": 10, "minibatches": minibatches, "algorithm": {"ppo": ppo},
                                              "optimizer": {"learningRate": learning_rate}}}],
        "offPolicy": {"correction": {"tokenTruncated": {"cap": 1.0}}, "rejection": rejection or {}},
    })  # fmt: skip
    policy = Policy.load(folder, spec)
    return Learner(policy, spec.stages[0].rlvr, spec), policy


GROUPS = [
    group(0, (4, 9, 13), rollout((20, 21, 22, 1), 1.0), rollout((24, 25, 1), None), rollout((23, 1), 0.0)),
    group(1, (4, 8), rollout((30, 31, 1), 0.0), rollout((32, 1), 0.0)),  # hopeless, and the critic learns from it
]


def test_the_gradient_is_that_of_the_formula_through_trunk_and_head(folder):
    from transformers import AutoModelForCausalLM

    learner, policy = make(folder, gaeLambda=0.8, valueCoefficient=0.5)
    generator = torch.Generator().manual_seed(4)
    weight, bias = torch.randn(64, generator=generator), torch.tensor(0.3)
    learner._critic.load_tensors({"critic/weight": weight, "critic/bias": bias})
    kept = {}

    def spy(norm, step):
        kept.update({name: parameter.grad.clone() for name, parameter in {**policy.parameters(), **learner._critic.parameters()}.items()})
        return 0.0

    learner._trainer._optimizer.apply = spy
    report = learner.step(GROUPS, 0, lambda version: 0)

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")
    head, offset = weight.double().requires_grad_(), bias.double().requires_grad_()
    total, tokens, errors, targets = 0.0, 0, [], []
    for one in GROUPS:
        for sample in one.rollouts:
            if sample.reward is None:
                continue
            ids = torch.tensor([[*one.prompt_ids, *sample.token_ids]])
            output = model(input_ids=ids, use_cache=False, output_hidden_states=True)
            rows = slice(len(one.prompt_ids) - 1, -1)
            logs = log_softmax(output.logits[0, rows], -1)[range(len(sample.token_ids)), list(sample.token_ids)]
            values = layer_norm(output.hidden_states[-1][0, rows], (64,)) @ head / 64 + offset
            known = [*values.tolist(), None]
            advantage, advantages = 0.0, []
            for t in reversed(range(len(sample.token_ids))):
                delta = (sample.reward if known[t + 1] is None else known[t + 1]) - known[t]
                advantage = delta + 0.8 * advantage
                advantages.insert(0, advantage)
            weights = (logs.detach() + 4.3).exp().clamp(max=1.0)
            total = total - (weights * torch.tensor(advantages) * logs).sum() + 0.5 * (values - sample.reward).square().sum() / 2
            tokens += len(sample.token_ids)
            errors += (values - sample.reward).square().tolist()
            targets += [sample.reward] * len(sample.token_ids)
    (total / tokens).backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()} | {
        "critic/weight": head.grad,
        "critic/bias": offset.grad,
    }
    difference = math.sqrt(sum(float((kept[name].double() - wanted[name]).square().sum()) for name in wanted))
    assert difference <= 1e-5 * math.sqrt(sum(float(wanted[name].square().sum()) for name in wanted))
    assert report.tokens_trained == tokens == 11
    assert report.live_groups == 2
    mean = sum(targets) / tokens
    variance = sum((target - mean) ** 2 for target in targets) / tokens
    assert report.metrics()["explained_variance"] == pytest.approx(1 - sum(errors) / tokens / variance, rel=1e-4)


def test_the_critic_learns_what_to_expect_where_the_policy_stands_still(folder):
    learner, _ = make(folder, learning_rate=1e-9, criticLearningRate=0.05, valueClip=1.0)
    steps = [learner.step(GROUPS, step, lambda version: 0) for step in range(60)]
    explained = [report.tokens.explained_variance for report in steps]
    assert explained[0] < 0.0
    assert explained[-1] > 0.5
    assert abs(steps[-1].loss) < abs(steps[0].loss)


def test_minibatches_compare_with_the_values_before_the_first(folder):
    learner, _ = make(folder, minibatches=2, criticLearningRate=0.5)
    seen, loss = [], learner._algorithm.loss

    def spy(inputs):
        seen.append(inputs)
        return loss(inputs)

    learner._algorithm.loss = spy
    learner.step(GROUPS, 0, lambda version: 0)
    assert [inputs.old_values.abs().max().item() for inputs in seen] == [0.0, 0.0]
    assert seen[1].values.abs().min() > 0.1
    assert not seen[1].old_values.requires_grad
    assert not seen[1].advantages.requires_grad


def test_opsm_looks_at_whole_completions(folder):
    """The second completion did worse than V says over all; some of its tokens alone did not."""
    learner, _ = make(folder, rejection={"opsm": {"threshold": 1e-4}}, gaeLambda=0.0)
    learner._critic.load_tensors(
        {"critic/weight": torch.randn(64, generator=torch.Generator().manual_seed(4)), "critic/bias": torch.ones(())}
    )
    seen, loss = [], learner._algorithm.loss

    def spy(inputs):
        seen.append(inputs)
        return loss(inputs)

    learner._algorithm.loss = spy
    sure = [group(2, (4, 9, 13), rollout((20, 21, 22, 1), 0.0, logprob=-0.1), rollout((23, 1), 1.0, logprob=-0.1))]
    learner.step(sure, 0, lambda version: 0)
    advantages = seen[0].advantages[:4]
    assert advantages.mean() < 0 < advantages.max()
    assert seen[0].weights[:4].tolist() == [0.0] * 4
