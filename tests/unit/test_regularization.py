"""The KL to a frozen policy and the entropy bonus, from the learner's gradients: against one sequence at a time in float64."""

import math

import pytest
import torch
from torch.nn.functional import log_softmax

from rlvr_api.spec import RLVRJobSpec
from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.learner import Learner
from rlvr_trainer.policy import Policy, read_weights
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLER_LOGPROB = -4.3
"""Near what the tiny model gives a token, so that weights are on both sides of their bound."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("regularization")
    write_tiny_model(place / "policy", seed=0)
    write_tiny_model(place / "reference", seed=1)
    return place / "policy", place / "reference"


def rollout(tokens, reward):
    status = VerdictStatus.INFRA_ERROR if reward is None else VerdictStatus.PASS if reward > 0 else VerdictStatus.FAIL
    verdict = Verdict(id="x", status=status, score=reward, verifier="arithmetic", verifier_version="1")
    spans = (VersionSpan(0, 0, len(tokens)),) if tokens else ()
    return Rollout(tuple(tokens), (SAMPLER_LOGPROB,) * len(tokens), spans, "stop", "", verdict)


def group(index, prompt, *rollouts):
    return RolloutGroup(Admission(index, "sums", 0, index), f"{index:016x}", prompt, "1 + 1", rollouts, "rollout-0", "", 1.0, 0.1)


LIVE = group(0, (4, 9, 13), rollout((20, 21, 22, 1), 1.0), rollout((), 0.0), rollout((24, 25, 1), None), rollout((23, 1), 0.0))
SOLVED = group(1, (4, 8), rollout((30, 31, 1), 1.0), rollout((32, 1), 1.0))
JUDGED = [(one, sample) for one in (LIVE, SOLVED) for sample in one.rollouts if sample.reward is not None and sample.token_ids]


def make(folders, minibatches=1, **stage):
    spec = RLVRJobSpec.model_validate({
        "model": {"uri": "file:///model", "maxModelLen": 128},
        "environments": [{"name": "sums", "arithmetic": {}}],
        "sampling": {"maxTokens": 8, "temperature": 0.9},
        "stages": [{"name": "climb", "rlvr": {"steps": 10, "minibatches": minibatches, "optimizer": {"learningRate": 1e-2}, **stage}}],
        "learner": {"tokensPerMicroBatch": 16},
        "offPolicy": {"correction": {"tokenTruncated": {"cap": 1.0}}},
    })  # fmt: skip
    policy = Policy.load(folders[0], spec)
    reference = read_weights(folders[1]) if "referenceKl" in stage else None
    return Learner(policy, spec.stages[0].rlvr, spec, reference), policy


def gradients(folders, groups=(LIVE, SOLVED), **stage):
    learner, policy = make(folders, **stage)
    kept = {}

    def spy(norm, step):
        kept.update({name: parameter.grad.clone() for name, parameter in policy.parameters().items()})
        return 0.0

    learner._trainer._optimizer.apply = spy
    return kept, learner.step(groups, 0, lambda version: 0)


def plain(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")


def scores(model, one, sample):
    """Log-probs of the completion's tokens and the entropies behind them."""
    ids = torch.tensor([[*one.prompt_ids, *sample.token_ids]])
    logs = log_softmax(model(input_ids=ids, use_cache=False).logits[0, len(one.prompt_ids) - 1 : -1] / 0.9, -1)
    return logs[range(len(sample.token_ids)), list(sample.token_ids)], -(logs.exp() * logs).sum(-1)


def relative_gap(found, model):
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    difference = math.sqrt(sum(float((found[name].double() - wanted[name]).square().sum()) for name in wanted))
    return difference / math.sqrt(sum(float(wanted[name].square().sum()) for name in wanted))


def surrogate(logprobs, advantage):
    weights = (logprobs.detach() - SAMPLER_LOGPROB).exp().clamp(max=1.0)
    return -(weights * advantage * logprobs).sum()


def test_a_kl_in_the_loss_is_of_all_judged_tokens_weighted_to_the_policy(folders):
    found, report = gradients(folders, referenceKl={"coefficient": 0.5, "estimator": "k3"})
    model, reference = plain(folders[0]), plain(folders[1])
    total, kl, tokens = 0.0, 0.0, 0
    for one, sample in JUDGED:
        logprobs, held = scores(model, one, sample)[0], scores(reference, one, sample)[0].detach()
        difference = logprobs - held
        weights = (logprobs.detach() - SAMPLER_LOGPROB).exp().clamp(max=2.0)
        assert 0 < weights.min() < weights.max() <= 2
        advantage = 0.0 if one is SOLVED else 2 / 3 if sample.reward else -1 / 3
        total = total + surrogate(logprobs, advantage) + 0.5 * (weights * difference.detach() * logprobs).sum()
        kl += float((torch.expm1(-difference) + difference).detach().sum())
        tokens += len(sample.token_ids)
    (total / tokens).backward()
    assert relative_gap(found, model) <= 1e-5
    assert report.reference_kl == pytest.approx(kl / tokens, rel=1e-4)
    assert report.metrics()["reference_kl"] == report.reference_kl
    assert (report.live_groups, report.tokens_trained) == (1, 11)


def test_a_kl_in_the_reward_moves_the_baseline_and_gives_solved_groups_a_signal(folders):
    found, report = gradients(folders, referenceKl={"coefficient": 0.1, "placement": "reward", "estimator": "k1"})
    model, reference = plain(folders[0]), plain(folders[1])
    total, kl, tokens = 0.0, 0.0, 0
    for one in (LIVE, SOLVED):
        judged = [sample for sample in one.rollouts if sample.reward is not None]
        logprobs = [scores(model, one, sample)[0] if sample.token_ids else torch.zeros(0) for sample in judged]
        held = [scores(reference, one, sample)[0].detach() if sample.token_ids else torch.zeros(0) for sample in judged]
        distances = [float((own.detach() - other).sum()) for own, other in zip(logprobs, held, strict=True)]
        shaped = [sample.reward - 0.1 * distance for sample, distance in zip(judged, distances, strict=True)]
        mean = sum(shaped) / len(shaped)
        assert max(shaped) - min(shaped) > 1e-3
        total = total + sum(surrogate(own, reward - mean) for own, reward in zip(logprobs, shaped, strict=True))
        kl += sum(distances)
        tokens += sum(map(len, logprobs))
    (total / tokens).backward()
    assert relative_gap(found, model) <= 1e-5
    assert report.reference_kl == pytest.approx(kl / tokens, rel=1e-4)
    assert report.live_groups == 2


def test_an_entropy_bonus_raises_the_entropy_of_all_judged_tokens(folders):
    found, report = gradients(folders, groups=[SOLVED], entropyBonus=0.05)
    model = plain(folders[0])
    pairs = [(one, sample) for one, sample in JUDGED if one is SOLVED]
    entropies = torch.cat([scores(model, one, sample)[1] for one, sample in pairs])
    (-0.05 * entropies.mean()).backward()
    assert relative_gap(found, model) <= 1e-5
    assert report.updated
    assert report.reference_kl is None
    learner, _ = make(folders, entropyBonus=0.05)
    rising = [learner.step([SOLVED], step, lambda version: 0).tokens.entropy for step in range(6)]
    assert rising[-1] > rising[0]


def test_a_reference_holds_the_policy(folders):
    ends = {}
    for coefficient in (None, 1.0):
        stage = {} if coefficient is None else {"referenceKl": {"coefficient": coefficient}}
        learner, policy = make((folders[0], folders[0]), minibatches=2, **stage)
        before = policy.sequence_logprobs((4, 9, 13), (20, 21, 22, 1), "float32")
        for step in range(4):
            report = learner.step([LIVE, SOLVED], step, lambda version: 0)
        after = policy.sequence_logprobs((4, 9, 13), (20, 21, 22, 1), "float32")
        ends[coefficient] = sum(after) - sum(before)
    assert ends[None] > 2 * abs(ends[1.0])
    assert report.reference_kl > 0


def test_the_reference_stays_as_it_was(folders):
    learner, policy = make(folders, referenceKl={"coefficient": 0.5})
    first = learner.step([SOLVED], 0, lambda version: 0).reference_kl
    for name, tensor in read_weights(folders[0]).items():
        policy.parameters()[name].data.copy_(tensor)
    assert learner.step([SOLVED], 1, lambda version: 0).reference_kl == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize("placement", [{}, {"placement": "reward", "estimator": "k1"}])
def test_samples_that_were_not_judged_and_micro_batches_change_nothing(folders, placement):
    kl = {"coefficient": 0.5, **placement}
    plainly, report = gradients(folders, referenceKl=kl)
    failed = [group(one.admission.index, one.prompt_ids, rollout((40, 41), None), *one.rollouts) for one in (SOLVED, LIVE)]
    masked, other = gradients(folders, groups=failed, referenceKl=kl)
    difference = math.sqrt(sum(float((masked[name] - plainly[name]).square().sum()) for name in plainly))
    assert difference <= 1e-5 * math.sqrt(sum(float(plainly[name].square().sum()) for name in plainly))
    assert other.reference_kl == pytest.approx(report.reference_kl, rel=1e-6)


def test_a_reference_without_a_use_or_a_use_without_one_is_refused(folders):
    learner, policy = make(folders)
    spec = learner._spec
    with pytest.raises(ValueError, match="a reference belongs to"):
        Learner(policy, spec.stages[0].rlvr, spec, read_weights(folders[1]))
