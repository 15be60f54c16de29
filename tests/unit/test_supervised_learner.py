import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from rlvr_api.spec import RLVRJobSpec
from rlvr_api.stages import Optimizer
from rlvr_trainer.policy import Policy
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.supervised_learner import SupervisedLearner
from rlvr_trainer.traces import Example
from rlvr_trainer.training import NonFiniteStepError

EXAMPLES = [
    Example("line 1", (4, 9, 13), (20, 21, 22, 1)),
    Example("line 2", (4, 9), (30, 1)),
    Example("line 3", (4, 9, 13, 14), (20, 1)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("supervised") / "tiny"
    write_tiny_model(place)
    return place


def make(folder, tokens_per_micro_batch=4096):
    spec = RLVRJobSpec.model_validate(
        {
            "model": {"uri": "file:///model", "maxModelLen": 128},
            "environments": [{"name": "sums", "arithmetic": {}}],
            "sampling": {"maxTokens": 8},
            "stages": [{"name": "cold", "sft": {"traces": "file:///t"}}],
        }
    )
    policy = Policy.load(folder, spec)
    return SupervisedLearner(policy, Optimizer(learning_rate=1e-2), 10, tokens_per_micro_batch), policy


def gradients(folder, tokens_per_micro_batch):
    learner, policy = make(folder, tokens_per_micro_batch)
    kept = {}

    def spy(norm, step):
        kept.update({name: parameter.grad.clone() for name, parameter in policy.parameters().items()})
        return 0.0

    learner._trainer._optimizer.apply = spy
    return learner.step(EXAMPLES, "step 1"), kept


@pytest.mark.parametrize("tokens_per_micro_batch", [16, 4096])
def test_the_loss_is_the_mean_over_completion_tokens_of_sequences_that_do_not_see_each_other(folder, tokens_per_micro_batch):
    from transformers import AutoModelForCausalLM

    report, found = gradients(folder, tokens_per_micro_batch)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")
    total = 0.0
    for one in EXAMPLES:
        ids = torch.tensor([[*one.prompt_ids, *one.completion_ids]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(one.prompt_ids) - 1 : -1]
        total = total + cross_entropy(logits, torch.tensor(one.completion_ids), reduction="sum")
    (total / 8).backward()
    assert report.tokens == 8
    assert report.loss == pytest.approx(total.item() / 8, rel=1e-5)
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    difference = math.sqrt(sum(float((found[name].double() - wanted[name]).square().sum()) for name in wanted))
    assert difference <= 1e-5 * math.sqrt(sum(float(wanted[name].square().sum()) for name in wanted))
    assert 0 < report.entropy < math.log(80)


def test_steps_make_the_traces_likelier(folder):
    learner, _ = make(folder)
    reports = [learner.step(EXAMPLES, "step") for _ in range(8)]
    assert reports[-1].loss < reports[0].loss - 2
    assert learner.scalars() == {"learner_step": 8}


def test_a_gradient_that_is_not_finite_names_the_examples(folder):
    learner, policy = make(folder)
    policy.parameters()["model.norm.weight"].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteStepError, match=r"step 7 is refused.*the examples line 1, line 2, line 3"):
        learner.step(EXAMPLES, "step 7")
