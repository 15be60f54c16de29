import math

import pytest
import torch
from algorithm_settings import ALGORITHMS, correction_for
from torch.nn.functional import log_softmax

from rlvr_api.spec import RLVRJobSpec
from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.learner import Learner, NonFiniteStepError
from rlvr_trainer.metrics import StepMetrics
from rlvr_trainer.policy import Policy
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan
from rlvr_trainer.versions import UnknownVersionError, VersionHistory

pytestmark = pytest.mark.usefixtures("one_thread")

GRPO = {"grpo": {}}
DPPO = {"dppoTv": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("learner") / "tiny"
    write_tiny_model(place)
    return place


def job(algorithm=GRPO, tokens_per_micro_batch=4096, temperature=1.0, correction=None, minibatches=1, **optimizer):
    return RLVRJobSpec.model_validate({
        "model": {"uri": "file:///model", "maxModelLen": 128},
        "environments": [{"name": "sums", "arithmetic": {}}],
        "sampling": {"maxTokens": 8, "temperature": temperature},
        "stages": [{"name": "climb", "rlvr": {"steps": 10, "algorithm": algorithm, "minibatches": minibatches,
                                              "optimizer": {"learningRate": 1e-2, **optimizer}}}],
        "learner": {"tokensPerMicroBatch": tokens_per_micro_batch},
        "offPolicy": {"correction": correction or correction_for(algorithm)},
    })  # fmt: skip


def make_learner(folder, **changes):
    spec = job(**changes)
    policy = Policy.load(folder, spec)
    return Learner(policy, spec.stages[0].rlvr, spec), policy


def rollout(tokens, reward, version=0, logprob=-2.0, finish="stop"):
    status = VerdictStatus.INFRA_ERROR if reward is None else VerdictStatus.PASS if reward > 0 else VerdictStatus.FAIL
    verdict = Verdict(id="x", status=status, score=reward, verifier="arithmetic", verifier_version="1")
    spans = (VersionSpan(version, 0, len(tokens)),) if tokens else ()
    return Rollout(tuple(tokens), (logprob,) * len(tokens), spans, finish, "", verdict)


def group(index, *rollouts, prompt=(4, 9, 13)):
    return RolloutGroup(Admission(index, "sums", 0, index), f"{index:016x}", prompt, "1 + 1", rollouts, "rollout-0", "", 1.0, 0.1)


def batch():
    return [
        group(10, rollout((20, 21, 22, 1), 1.0), rollout((23, 1), 0.0), rollout((24, 25, 1), 0.0)),
        group(11, rollout((30, 1), 0.0), rollout((31, 1), 0.0)),  # no signal
        group(12, rollout((32, 33, 34, 35, 36), 1.0, finish="length"), rollout((37, 1), 0.5), rollout((38, 1), None), prompt=(4, 8)),
    ]


def weights(policy):
    return {name: tensor.clone() for name, tensor in policy.engine_named_tensors().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def at_step_0(version):
    return {0: 0}[version]


def gradients_of_step(folder, groups, **changes):
    """The gradients that the optimizer would have seen, and the report."""
    learner, policy = make_learner(folder, **changes)
    kept = {}

    def spy(norm, step):
        kept.update({name: parameter.grad.clone() for name, parameter in policy.parameters().items()})
        return 0.0

    learner._trainer._optimizer.apply = spy
    return kept, learner.step(groups, 0, at_step_0)


def reference_gradients(folder, temperature=1.0):
    """Of Σ −w·A·log p / N over the live groups of `batch`, one sequence at a time with the model's own attention."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")
    advantages = {10: (2 / 3, -1 / 3, -1 / 3), 12: (0.25, -0.25)}
    tokens, total = 0, 0.0
    for one in batch():
        for sample, advantage in zip(one.rollouts, advantages.get(one.admission.index, ()), strict=False):
            ids = torch.tensor([[*one.prompt_ids, *sample.token_ids]])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(one.prompt_ids) - 1 : -1]
            logprobs = log_softmax(logits / temperature, -1)[range(len(sample.token_ids)), list(sample.token_ids)]
            correction = (logprobs.detach() + 2.0).exp().clamp(max=2.0)
            total = total - (correction * advantage * logprobs).sum()
            tokens += len(sample.token_ids)
    (total / tokens).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, tokens


def relative_gap(found, wanted):
    difference = math.sqrt(sum(float((found[name].double() - wanted[name]).square().sum()) for name in wanted))
    return difference / math.sqrt(sum(float(wanted[name].double().square().sum()) for name in wanted))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_is_that_of_the_formula_over_the_live_groups_tokens(folder, temperature):
    found, report = gradients_of_step(folder, batch(), temperature=temperature)
    wanted, tokens = reference_gradients(folder, temperature)
    assert report.tokens_trained == tokens == 16
    assert relative_gap(found, wanted) <= 1e-5


@pytest.mark.parametrize("algorithm", [{kind: settings} for kind, settings in ALGORITHMS.items()], ids=[*ALGORITHMS])
def test_the_gradient_does_not_depend_on_micro_batches_or_on_the_order_of_groups(folder, algorithm):
    whole, report = gradients_of_step(folder, batch(), algorithm=algorithm)
    cut, other = gradients_of_step(folder, batch()[::-1], algorithm=algorithm, tokens_per_micro_batch=16)
    assert relative_gap(cut, {name: tensor.double() for name, tensor in whole.items()}) <= 1e-5
    assert other.loss == pytest.approx(report.loss, rel=1e-5, abs=1e-7)
    assert other.tokens.mismatch_k3 == pytest.approx(report.tokens.mismatch_k3, rel=1e-6)
    assert other.gradient_norm == pytest.approx(report.gradient_norm, rel=1e-5)


def test_minibatches_are_updates_of_their_own_against_the_policy_before_the_first(folder):
    learner, policy = make_learner(folder, minibatches=2, tokens_per_micro_batch=16)
    groups = [one for one in batch() if one.admission.index != 11]
    start = [
        policy.sequence_logprobs(one.prompt_ids, sample.token_ids, "float32")
        for one in groups
        for sample in one.rollouts
        if sample.reward is not None
    ]
    seen, algorithm_loss = [], learner._algorithm.loss

    def spy(inputs):
        seen.append(inputs)
        return algorithm_loss(inputs)

    learner._algorithm.loss = spy
    before = weights(policy)
    report = learner.step(groups, 0, at_step_0)
    old = torch.cat([inputs.old_logprobs for inputs in seen])
    assert old.tolist() == pytest.approx([value for values in start for value in values], abs=5e-5)
    assert (seen[0].logprobs.detach() - seen[0].old_logprobs).abs().max() == 0
    assert (seen[1].logprobs.detach() - seen[1].old_logprobs).abs().max() > 1e-2  # the first update has moved it
    assert report.tokens_trained == 16
    assert not same(before, weights(policy))
    assert learner.scalars() == {"learner_step": 1}


def test_more_minibatches_than_live_groups_are_as_many_as_there_are(folder):
    one, policy = make_learner(folder)
    several, other = make_learner(folder, minibatches=3)
    groups = [group(0, rollout((20, 1), 1.0), rollout((21, 1), 0.0)), group(1, rollout((30, 1), 0.0), rollout((31, 1), 0.0))]
    assert several.step(groups, 0, at_step_0).loss == one.step(groups, 0, at_step_0).loss
    assert same(weights(policy), weights(other))


def test_samples_that_were_not_judged_change_nothing(folder):
    plain, _ = gradients_of_step(folder, batch())
    failed = [
        group(one.admission.index, rollout((40, 41), None), *one.rollouts, rollout((42,), None), prompt=one.prompt_ids) for one in batch()
    ]
    masked, report = gradients_of_step(folder, failed)
    assert same(plain, masked)
    assert report.batch.masked == 7
    assert report.tokens_trained == 16


@pytest.mark.parametrize(
    "groups",
    [
        [group(0, rollout((20, 1), 1.0), rollout((21, 1), 1.0))],
        [group(0, rollout((20, 1), 1.0), rollout((21, 1), None))],
        [group(0, rollout((20, 1), None), rollout((21, 1), None))],
        [group(0, rollout((), 1.0), rollout((), 0.0))],
        [],
    ],
    ids=["all equal", "one judged", "none judged", "empty completions", "no groups"],
)
def test_without_live_tokens_nothing_is_updated_and_the_schedule_goes_on(folder, groups):
    learner, policy = make_learner(folder, weightDecay=0.1)
    learner.step(batch(), 0, at_step_0)
    before, state = weights(policy), {name: tensor.clone() for name, tensor in learner.tensors().items()}
    report = learner.step(groups, 1, at_step_0)
    assert not report.updated
    assert report.tokens_trained == 0
    assert (report.loss, report.gradient_norm, report.learning_rate) == (None, None, None)
    assert same(before, weights(policy))
    assert same(state, learner.tensors())
    assert learner.scalars() == {"learner_step": 2}


def test_an_empty_completion_counts_in_the_baseline_and_has_no_tokens(folder):
    learner, policy = make_learner(folder)
    exact = policy.sequence_logprobs((4, 9, 13), (20, 1), "float32")
    report = learner.step([group(0, rollout((), 0.0), rollout((20, 1), 1.0))], 0, at_step_0)
    assert report.tokens_trained == 2
    assert report.loss == pytest.approx(-0.5 * sum(min(math.exp(logprob + 2.0), 2.0) for logprob in exact) / 2, rel=1e-4)


def test_steps_make_what_was_rewarded_likelier(folder):
    learner, policy = make_learner(folder)
    good, bad = (20, 21, 1), (30, 31, 1)

    def likelihoods():
        return [sum(policy.sequence_logprobs((4, 9), ids, "float32")) for ids in (good, bad)]

    before = likelihoods()
    for step in range(5):
        sampler = [policy.sequence_logprobs((4, 9), ids, "float32") for ids in (good, bad)]
        fresh = [
            Rollout(ids, tuple(logprobs), (VersionSpan(0, 0, 3),), "stop", "", rollout(ids, reward).verdict)
            for ids, logprobs, reward in zip((good, bad), sampler, (1.0, 0.0), strict=True)
        ]
        report = learner.step([group(step, *fresh, prompt=(4, 9))], step, at_step_0)
        assert report.tokens.mismatch_max < 5e-5
    after = likelihoods()
    assert after[0] > before[0] + 1.0
    assert after[1] < before[1] - 1.0


def test_the_report_written_out(folder):
    learner, policy = make_learner(folder, maxGradientNorm=1e-3, warmupSteps=4)
    history = VersionHistory()
    versions = [history.publish(step) for step in (3, 5)]
    groups = [
        group(0, rollout((20, 21, 22, 1), 1.0, versions[1]), rollout((23, 1), 0.0, versions[0], finish="length")),
        group(1, rollout((30, 1), 1.0, versions[1]), rollout((31, 32), None, versions[1])),
    ]
    exact = [policy.sequence_logprobs(groups[0].prompt_ids, one.token_ids, "float32") for one in groups[0].rollouts]
    before = weights(policy)
    report = learner.step(groups, 5, history.step_of)
    gaps = [logprob + 2.0 for logprobs in exact for logprob in logprobs]
    ratios = [math.exp(gap) for gap in gaps]
    clipped = [min(ratio, 2.0) for ratio in ratios]
    assert report.tokens.mismatch_k1 == pytest.approx(-sum(gaps) / 6, rel=1e-4)
    assert report.tokens.mismatch_k3 == pytest.approx(sum(r - 1 - g for r, g in zip(ratios, gaps, strict=True)) / 6, rel=1e-4)
    assert report.tokens.mismatch_max == pytest.approx(max(map(abs, gaps)), rel=1e-4)
    assert report.tokens.ess == pytest.approx(sum(ratios) ** 2 / sum(r * r for r in ratios) / 6, rel=1e-4)
    assert report.tokens.chi2 == pytest.approx(sum(r * r for r in ratios) / 6 - 1, rel=1e-4)
    assert report.tokens.rejected == 0.0
    young, old = report.tokens.by_age[0], report.tokens.by_age[2]
    assert (young.tokens, old.tokens, len(report.tokens.by_age)) == (4, 2, 2)
    assert old.mismatch_k3 == pytest.approx(sum(r - 1 - g for r, g in zip(ratios[4:], gaps[4:], strict=True)) / 2, rel=1e-4)
    assert young.ess == pytest.approx(sum(ratios[:4]) ** 2 / sum(r * r for r in ratios[:4]) / 4, rel=1e-4)
    assert report.loss == pytest.approx((-0.5 * sum(clipped[:4]) + 0.5 * sum(clipped[4:])) / 6, rel=1e-4)
    assert 0 < report.tokens.entropy < math.log(80)
    numbers = report.metrics()
    assert numbers["reward_mean"] == pytest.approx(2 / 3)
    assert numbers["pass_rate"] == pytest.approx(2 / 3)
    assert numbers["live_groups"] == 1
    assert numbers["tokens_trained"] == 6
    assert numbers["truncated_share"] == 0.25
    assert numbers["completion_tokens_mean"] == 2.5
    assert numbers["staleness_mean"] == pytest.approx(2 * 2 / 10)
    assert numbers["staleness_max"] == 2
    assert numbers["clip_fraction"] == 0.0
    assert numbers["learning_rate"] == pytest.approx(1e-2 / 4)
    assert numbers["gradient_norm"] > 1e-3  # before clipping
    assert set(report.seconds) == {"pack", "forward", "backward", "optimizer"}
    assert not same(before, weights(policy))
    assert set(numbers) < set(StepMetrics.model_fields)
    assert numbers["by_age"][2].tokens == 2


def test_a_token_newer_than_the_policy_or_of_no_published_version_is_refused(folder):
    learner, policy = make_learner(folder)
    history = VersionHistory()
    history.publish(0)
    history.publish(4)
    before = weights(policy)
    with pytest.raises(ValueError, match="no version may be newer"):
        learner.step([group(0, rollout((20,), 1.0, 1), rollout((21,), 0.0))], 3, history.step_of)
    with pytest.raises(UnknownVersionError, match="weight version 7"):
        learner.step([group(0, rollout((20,), 1.0, 7), rollout((21,), 0.0))], 3, history.step_of)
    short = Rollout((20, 21), (-1.0, -1.0), (VersionSpan(0, 0, 1),), "stop", "", rollout((), 1.0).verdict)
    with pytest.raises(ValueError, match="has 2 tokens, and its spans cover 1"):
        learner.step([group(0, short, rollout((21,), 0.0))], 3, history.step_of)
    assert same(before, weights(policy))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_sampler_logprob_that_is_not_finite_names_group_and_engine(folder, value):
    learner, policy = make_learner(folder)
    before = weights(policy)
    with pytest.raises(NonFiniteStepError, match="group 17 has a log-prob of the sampler that is not finite; look at engine rollout-0"):
        learner.step([group(17, rollout((20,), 1.0, logprob=value), rollout((21,), 0.0))], 0, at_step_0)
    assert same(before, weights(policy))


def test_a_loss_that_is_not_finite_refuses_the_step_and_names_its_groups(folder):
    learner, policy = make_learner(folder, algorithm=DPPO, tokens_per_micro_batch=16)
    before, state = weights(policy), learner.scalars()
    groups = [*batch(), group(99, rollout((20, 1), 0.0, logprob=-200.0), rollout((21, 1), 1.0, logprob=-2.0))]
    with pytest.raises(NonFiniteStepError, match=r"step 7 is refused.*groups \[99\]"):
        learner.step(groups, 6, at_step_0)
    assert same(before, weights(policy))
    assert learner.scalars() == state
    assert not any(name.startswith("optimizer/") for name in learner.tensors())
    assert all(parameter.grad is None for parameter in policy.parameters().values())


def test_a_gradient_that_is_not_finite_refuses_the_step(folder):
    learner, policy = make_learner(folder)
    handle = policy.parameters()["model.norm.weight"].register_hook(lambda gradient: gradient * math.inf)
    before = weights(policy)
    with pytest.raises(NonFiniteStepError, match=r"gradient norm (nan|inf), and the fault is in groups \[10, 12\]"):
        learner.step(batch(), 0, at_step_0)
    handle.remove()
    assert same(before, weights(policy))
    assert learner.step(batch(), 0, at_step_0).updated


def test_equal_inputs_give_equal_bits(folder):
    ends = []
    for _ in range(2):
        learner, policy = make_learner(folder, tokens_per_micro_batch=16)
        for step in range(3):
            learner.step(batch(), step, at_step_0)
        ends.append(weights(policy))
    assert same(*ends)


@pytest.mark.parametrize("changes", [{}, {"algorithm": {"ppo": {}}, "minibatches": 2}], ids=["grpo", "ppo"])
def test_a_resumed_learner_goes_on_with_the_same_bits(folder, changes):
    straight, policy = make_learner(folder, schedule="cosine", **changes)
    for step in range(2):
        straight.step(batch(), step, at_step_0)
    saved = {name: tensor.clone() for name, tensor in straight.tensors().items()}
    scalars = {**straight.scalars(), "versions": [[0, 0]]}
    torch.manual_seed(5)
    resumed, other = make_learner(folder, schedule="cosine", **changes)
    resumed.load(saved, scalars)
    assert torch.equal(torch.get_rng_state(), saved["generator/cpu"])
    assert resumed.step(batch(), 2, at_step_0).learning_rate == straight.step(batch(), 2, at_step_0).learning_rate
    assert same(weights(policy), weights(other))
    assert same(straight.tensors(), resumed.tensors())


def test_a_checkpoint_of_another_program_is_refused(folder):
    learner, _ = make_learner(folder)
    with pytest.raises(ValueError, match="learner_step"):
        learner.load(learner.tensors(), {})
    with pytest.raises(ValueError, match="learner_step"):
        learner.load({}, learner.scalars())
