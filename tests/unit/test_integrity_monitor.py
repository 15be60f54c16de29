"""When a reward is believed: certain violations, mere doubts, and what a paused job says."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_api.conditions import Reason
from rlvr_api.integrity import Integrity
from rlvr_api.spec import RLVRJobSpec
from rlvr_api.wire import AuditVerdict, CanaryTag, CanaryVerdict, Verdict, VerdictStatus
from rlvr_trainer.integrity.drift import divergence, shift
from rlvr_trainer.integrity.enforcement import RewardMonitor
from rlvr_trainer.integrity.estimators import AuditTally
from rlvr_trainer.integrity.evidence import Behaviour, CanaryTally, StepEvidence, gather_evidence, repeated_share
from rlvr_trainer.integrity.monitor import assess
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan
from rlvr_trainer.run import UntrustworthyRewardError

HONEST = AuditTally(paid=64, refused=64, audited_paid=8, wrong_paid=0, audited_refused=8, right_refused=0)
HACKED = AuditTally(paid=120, refused=8, audited_paid=12, wrong_paid=11, audited_refused=1, right_refused=0)


def steps(*tallies, behaviour=None):
    return [StepEvidence(audits={"sums": tally}, behaviour=behaviour) for tally in tallies]


def judge(evidence, audited=("sums",), **settings):
    return assess(Integrity(**settings), audited, evidence)


def test_a_verifier_that_audits_confirm_is_trustworthy():
    found = judge(steps(*[HONEST] * 20))
    assert (found.status, found.reason, found.audited) == ("True", Reason.BOUNDS_HELD, 320)
    assert "false positives 0.0% [0.0%, " in found.message


def test_hacked_steps_are_a_violation_in_words_with_the_interval():
    found = judge(steps(HONEST, *[HACKED] * 4))
    assert (found.status, found.reason) == ("False", Reason.HACK_RATE_EXCEEDED)
    assert "environment sums pays wrong answers in " in found.message
    assert "beyond integrity.maxHackRate 0.02" in found.message
    progress = found.progress()
    assert (progress.status, progress.environment) == ("False", "sums")
    assert progress.hack_rate > 0.5


def test_old_steps_do_not_count():
    assert judge(steps(*[HACKED] * 5, *[HONEST] * 8), window_steps=8).status == "True"


def test_few_audits_and_none_are_doubts_not_violations():
    assert judge(steps(HONEST)).reason is Reason.TOO_FEW_AUDITS
    found = judge(steps(HONEST), audited=())
    assert (found.status, found.reason) == ("Unknown", Reason.NOT_AUDITED)
    one_unlucky_audit = AuditTally(paid=64, refused=64, audited_paid=2, wrong_paid=1)
    assert judge(steps(one_unlucky_audit)).status == "Unknown"


def test_noise_that_leaves_no_signal_is_a_violation():
    coin = AuditTally(paid=60, refused=60, audited_paid=60, wrong_paid=30, audited_refused=60, right_refused=30)
    found = judge(steps(*[coin] * 5), max_hack_rate=0.9)
    assert (found.status, found.reason) == ("False", Reason.VERIFIER_TOO_NOISY)


@pytest.mark.parametrize(("tag", "status"), [(CanaryTag.EXPLOIT, "False"), (CanaryTag.WRONG, "False"), (CanaryTag.RIGHT, "True")])
def test_one_wrong_canary_that_is_paid_is_enough_and_a_right_one_refused_is_noise(tag, status):
    canary = CanaryTally.of([CanaryVerdict(environment="sums", tag=tag, probe="question-echo", kept=False)])
    evidence = [*steps(*[HONEST] * 10), StepEvidence(canaries={"sums": canary})]
    found = judge(evidence)
    assert found.status == status
    if status == "False":
        assert (found.reason, "question-echo (1)" in found.message) == (Reason.CANARY_PAID, True)


def test_paid_reward_that_rises_while_right_answers_fall_is_a_violation():
    before = AuditTally(paid=60, refused=60, audited_paid=30, wrong_paid=0, audited_refused=30, right_refused=0)
    after = AuditTally(paid=110, refused=10, audited_paid=55, wrong_paid=50, audited_refused=5, right_refused=0)
    found = judge(steps(*[before] * 6, *[after] * 6), max_hack_rate=0.99, min_youden=0.0)
    assert (found.status, found.reason) == ("False", Reason.REWARD_DIVERGED)
    assert "from 50.0% to 91.7%" in found.message
    assert divergence([before] * 12) is None
    assert divergence([after] * 6 + [before] * 6) is None, "the reward fell"


def test_looks_that_change_are_a_doubt():
    looks = [Behaviour(completion_tokens=40 + step % 3, invalid_share=0.1, repeated_share=0.0) for step in range(15)]
    looks += [Behaviour(completion_tokens=400 + step % 3, invalid_share=0.1, repeated_share=0.9) for step in range(5)]
    evidence = [StepEvidence(audits={"sums": HONEST}, behaviour=look) for look in looks]
    found = judge(evidence)
    assert (found.status, found.reason) == ("Unknown", Reason.DRIFT_SUSPECTED)
    assert "mean length in tokens went from 41 to 401" in found.message
    assert "copies of each other" in found.message


@given(st.integers(0, 2**32))
def test_a_series_that_only_wobbles_is_no_shift(seed):
    rng = random.Random(seed)
    values = [rng.gauss(1.0, 0.1) for _ in range(20)]
    found = shift(values, 0.0)
    assert found is None or abs(found.t) >= 6
    assert shift(values, 0.5) is None


def test_a_step_in_a_series_is_a_shift_and_needs_a_past():
    series = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 2.0, 2.1, 1.9, 2.0, 2.0]
    found = shift(series, 0.5)
    assert (found.before, found.after) == pytest.approx((1.0, 2.0), abs=0.02)
    assert shift(series[2:], 0.5) is None, "four steps before the last five"
    assert shift([1.0] * 10, 0.0) is None


def test_templates_are_counted_over_different_problems():
    text = "Because we know that {} is what it is, done."
    assert repeated_share({"a": [text.format(1)], "b": [text.format(22)], "c": ["something else that is long enough"]}) == pytest.approx(
        2 / 3
    )
    assert repeated_share({"a": [text.format(1), text.format(2)]}) == 0.0, "of one problem"
    assert repeated_share({"a": ["7"], "b": ["8"]}) == 0.0, "short answers are alike by nature"
    assert repeated_share({}) == 0.0


def group(index, *verdicts):
    rollouts = tuple(
        Rollout((1, 2), (-0.1, -0.1), (VersionSpan(0, 0, 2),), "stop", f"a text of more than twenty-four characters {n}", verdict)
        for n, verdict in enumerate(verdicts)
    )
    return RolloutGroup(Admission(index, "sums", 0, index), f"{index:016x}", (1,), "p", rollouts, "rollout-0", "", 1.0, 0.1)


def verdict(status, audit_score=None):
    score = None if status is VerdictStatus.INFRA_ERROR else float(status is VerdictStatus.PASS)
    audit = None
    if audit_score is not None:
        audit = AuditVerdict(probability=0.5, score=audit_score, verifier="final-answer", verifier_version="1")
    return Verdict(id="x", status=status, score=score, verifier="v", verifier_version="1", audit=audit)


def test_evidence_is_gathered_by_environment_and_survives_the_store():
    groups = [
        group(0, verdict(VerdictStatus.PASS, 0.0), verdict(VerdictStatus.INVALID)),
        group(1, verdict(VerdictStatus.PASS), verdict(VerdictStatus.INFRA_ERROR)),
    ]
    canaries = [CanaryVerdict(environment="sums", tag=CanaryTag.WRONG, probe="empty", kept=True)] * 3
    found = gather_evidence(groups, canaries)
    assert found.audits == {"sums": AuditTally(paid=2, refused=1, audited_paid=1, wrong_paid=1)}
    assert found.canaries["sums"].judged == {CanaryTag.WRONG: 3}
    assert found.behaviour == Behaviour(completion_tokens=2.0, invalid_share=1 / 3, repeated_share=1.0)
    assert StepEvidence.model_validate_json(found.to_bytes()) == found
    assert gather_evidence([], []).behaviour is None


def spec(on_violation):
    return RLVRJobSpec.model_validate({
        "model": {"uri": "file:///model"},
        "environments": [{"name": "sums", "arithmetic": {}, "audit": {"finalAnswer": {}}}],
        "stages": [{"name": "climb", "rlvr": {"steps": 10, "optimizer": {"maxGradientNorm": 10.0}}}],
        "integrity": {"audit": {}, "onViolation": on_violation},
    })  # fmt: skip


def test_pause_raises_with_the_way_on_and_warn_warns_once(caplog):
    pausing, warning = RewardMonitor(spec("Pause")), RewardMonitor(spec("Warn"))
    for evidence in steps(*[HACKED] * 4):
        pausing.add(evidence)
        warning.add(evidence)
    with pytest.raises(UntrustworthyRewardError, match=r"pays wrong answers in .* set integrity.onViolation to Warn"):
        pausing.enforce()
    warning.enforce()
    assert sum("cannot be believed" in record.message for record in caplog.records) == 2, "once for each monitor"


@pytest.mark.parametrize(("on_violation", "rolls_back"), [("Warn", False), ("Pause", False), ("Rollback", True)])
def test_only_rollback_takes_steps_back(on_violation, rolls_back):
    monitor = RewardMonitor(spec(on_violation))
    for evidence in steps(*[HACKED] * 4):
        monitor.add(evidence)
    assert (monitor.rolls_back, monitor.steps) == (rolls_back, 4)
    if on_violation != "Warn":
        with pytest.raises(UntrustworthyRewardError):
            monitor.enforce()


def test_a_resumed_attempt_finds_what_the_one_before_found():
    before, after = RewardMonitor(spec("Pause")), RewardMonitor(spec("Pause"))
    for evidence in steps(*[HACKED] * 4):
        before.add(evidence)
    after.restore(steps(*[HACKED] * 4))
    assert after.assessment == before.assessment
    with pytest.raises(UntrustworthyRewardError):
        after.enforce()
