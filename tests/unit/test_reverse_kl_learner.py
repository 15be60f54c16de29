"""The gradient of on-policy distillation is that of the reverse KL, in expectation, and following it reaches the teacher."""

import pytest
import torch
from torch.nn.functional import log_softmax

from rlvr_api.stages import SupervisedOptimizer
from rlvr_trainer.policy import Policy
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.reverse_kl_learner import MAX_WEIGHT, ReverseKlLearner, TaughtExample, reverse_kl


def test_the_expected_gradient_is_that_of_the_reverse_kl():
    torch.manual_seed(0)
    logits, teacher = torch.randn(7, dtype=torch.float64, requires_grad=True), log_softmax(torch.randn(7, dtype=torch.float64), -1)
    logprobs = log_softmax(logits, -1)
    exact = (logprobs.exp() * (logprobs - teacher)).sum()
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)
    # Every token once, weighed by its chance to be sampled: the expectation without sampling.
    values = reverse_kl(logprobs, logprobs.detach(), teacher)
    (found,) = torch.autograd.grad((logprobs.detach().exp() * values).sum(), logits)
    assert torch.allclose(found, wanted, atol=1e-12)
    assert (logprobs.exp() * values).sum().item() == pytest.approx(exact.item())


def test_a_stale_sampler_is_weighed_up_to_a_bound():
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    reverse_kl(logprobs, torch.tensor([-1.5, -9.0]), torch.tensor([-3.0, -3.0])).sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([2.0 * 2.718281828**0.5, 2.0 * MAX_WEIGHT])


def test_a_student_that_follows_it_comes_near_its_teacher(tmp_path, synthetic_run):
    from transformers import AutoModelForCausalLM

    for seed in (0, 1):
        write_tiny_model(tmp_path / str(seed), seed)
    policy = Policy.load(tmp_path / "0", synthetic_run.make_job().spec)
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "1")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "0")
    learner = ReverseKlLearner(policy, SupervisedOptimizer(learning_rate=3e-3), 60, 512)
    generator, prompt = torch.Generator().manual_seed(0), (4, 9, 12, 3)

    def scores(model):
        with torch.no_grad():
            return log_softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1], -1)

    def distance():
        student.load_state_dict(policy.engine_named_tensors(), strict=False)
        mine, theirs = scores(student), scores(teacher)
        return mine, float((mine.exp() * (mine - theirs)).sum())

    before = distance()[1]
    theirs = scores(teacher)
    for step in range(60):
        mine, _ = distance()
        drawn = torch.multinomial(mine.exp(), 32, replacement=True, generator=generator).tolist()
        examples = [TaughtExample(f"{step}/{token}", prompt, (token,), (float(mine[token]),), (float(theirs[token]),)) for token in drawn]
        report = learner.step(examples, f"step {step}")
    assert report.tokens == 32
    assert distance()[1] < 0.35 * before
