"""What the learner makes of audits: a reward that an audit refutes pushes down, and the paid score alone is what metrics call reward."""

import pytest
import torch

from rlvr_api.spec import RLVRJobSpec
from rlvr_api.wire import AuditVerdict, Verdict, VerdictStatus
from rlvr_trainer.collector.collector import has_variance
from rlvr_trainer.learner import Learner
from rlvr_trainer.policy import Policy
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("learner") / "tiny"
    write_tiny_model(place)
    return place


def spec(rewards):
    return RLVRJobSpec.model_validate({
        "model": {"uri": "file:///model", "maxModelLen": 128},
        "environments": [{"name": "sums", "arithmetic": {}, "audit": {"finalAnswer": {}}}],
        "sampling": {"maxTokens": 8},
        "stages": [{"name": "climb", "rlvr": {"steps": 10, "optimizer": {"learningRate": 1e-2, "maxGradientNorm": 10.0}}}],
        "integrity": {"audit": {"rewards": rewards}},
    })  # fmt: skip


def rollout(tokens, audit_score=None, paid=True):
    audit = None
    if audit_score is not None:
        audit = AuditVerdict(probability=0.1, score=audit_score, verifier="final-answer", verifier_version="1")
    status = VerdictStatus.PASS if paid else VerdictStatus.FAIL
    verdict = Verdict(id="x", status=status, score=float(paid), verifier="arithmetic", verifier_version="3", audit=audit)
    return Rollout(tokens, (-2.0,) * len(tokens), (VersionSpan(0, 0, len(tokens)),), "stop", "", verdict)


def group():
    """All paid; one was audited, and is wrong."""
    return RolloutGroup(
        Admission(0, "sums", 0, 0), "0" * 16, (4, 9, 13), "1 + 1", (rollout((20, 21, 1), 0.0), rollout((30, 1)), rollout((31, 1))),
        "rollout-0", "", 1.0, 0.1,
    )  # fmt: skip


def step(folder, rewards):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        job = spec(rewards)
        policy = Policy.load(folder, job)
        learner = Learner(policy, job.stages[0].rlvr, job)

        def logprob(tokens):
            return sum(policy.sequence_logprobs((4, 9, 13), tokens, "float32"))

        before = logprob((20, 21, 1)), logprob((30, 1))
        report = learner.step([group()], 0, lambda version: version)
        return report, [after - old for after, old in zip((logprob((20, 21, 1)), logprob((30, 1))), before, strict=True)]
    finally:
        torch.set_num_threads(threads)


def test_a_refuted_reward_pushes_its_completion_down_and_the_others_up(folder):
    report, (refuted, other) = step(folder, "corrected")
    assert report.updated
    assert (refuted < 0, other > 0) == (True, True), (refuted, other)
    assert report.batch.reward_mean == 1.0, "the paid reward"


def test_audits_that_only_measure_change_nothing(folder):
    report, _ = step(folder, "paid")
    assert not report.updated


def test_a_group_in_which_an_audit_differs_is_not_resampled():
    job = spec("corrected")
    assert has_variance(group(), job.integrity.audit)
    assert not has_variance(group(), spec("paid").integrity.audit)
    assert not has_variance(group())
