"""Ordered mode: a run that was killed again and again gives the records, rollouts, metrics and weights of an undisturbed one.

Batching may differ between the runs, and with it the last bits of log-probs: tokens and verdicts are compared exactly, numbers with a
tolerance.
"""

import pytest
from safetensors.torch import load

from rlvr_trainer.metrics_log import read_evaluations, read_steps
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.records import read_records
from rlvr_trainer.storage.rollouts import read_groups

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
STAGE = StageKeys(0, "climb")
STEPS = 12
OF_AN_ATTEMPT = dict.fromkeys(("attempt", "time", "weight_version", "previous", "rollouts"), True)
OF_A_RUN = {"evidence": {"canaries"}}
"""Canaries are drawn by the run's own secret, and counted by the step that is recorded when they are back."""
MEASURED = {
    "reward_mean", "pass_rate", "groups", "live_groups", "rollouts", "masked", "invalid", "timeouts", "discarded", "truncated_share",
    "shares", "effective_environments",
    "completion_tokens_mean", "tokens_trained", "levels", "learning_rate", "staleness_mean", "staleness_max",
    "loss", "gradient_norm", "mismatch_kl", "ess", "clip_fraction", "entropy",
}  # fmt: skip


def ordered(spec):
    spec["stages"][0]["rlvr"]["ordered"] = True
    spec["offPolicy"] = {"maxStaleness": 0}
    spec["evaluation"]["everySteps"] = 4
    # What is drawn depends on how the run went: levels, shares and problems left alone must come back as they were.
    spec["environments"][0]["levels"] = {"maximum": 1, "raiseAt": 0.08, "window": 6}
    spec["environments"].append({"name": "differences", "arithmetic": {"operations": ["-"], "instruction": "{problem}="}})
    spec["mixing"] = {"window": 8, "floor": 0.2}
    spec["stages"][0]["rlvr"]["revisit"] = {"solvedAfter": 24, "hopelessAfter": 12}


def read(run):
    """What a run consumed, measured and made."""
    with run.store() as store:
        records = [item.record for item in read_records(store, STAGE)]
        groups = [group for record in records for blob in record.rollouts for group in read_groups(store, blob)]
        weights = next(key for key in store.list(f"{STAGE.model}/") if key.endswith(".safetensors"))
        return {
            "records": [record.model_dump(exclude={**OF_AN_ATTEMPT, **OF_A_RUN}) for record in records],
            "tokens": [(group.admission, group.problem_id, rollout.token_ids) for group in groups for rollout in group.rollouts],
            "verdicts": [(rollout.verdict.status, rollout.verdict.score) for group in groups for rollout in group.rollouts],
            "logprobs": [value for group in groups for rollout in group.rollouts for value in rollout.logprobs],
            "metrics": [step.model_dump(include=MEASURED) for step in read_steps(store)],
            "evaluations": [(result.step, [cell.task_pass_rates for cell in result.cells]) for result in read_evaluations(store)],
            "weights": load(store.get(weights)),
        }


def smooth(spec):
    ordered(spec)
    # Two processes add up in another order, and AdamW makes of that a step as large as any where epsilon does not hold it down.
    spec["stages"][0]["rlvr"]["optimizer"]["epsilon"] = 1e-3


def sharded(spec):
    smooth(spec)
    spec["learner"]["processesPerNode"] = 2


def kill_follower(run):
    """SIGKILL to the process that the learner has started; waits for the next attempt."""
    learner = run.parts()["learner"]
    (follower,) = learner.children()
    follower.kill()
    run.wait(lambda: run.parts().get("learner", learner) != learner, "new learner")


def test_a_learner_of_two_processes_of_which_one_is_killed_equals_a_learner_of_one(make_run):
    one, two = (make_run(name, steps=STEPS, change=change) for name, change in (("one", smooth), ("two", sharded)))
    one.start()
    one.finish()
    two.start()
    two.wait_for_step(5)
    kill_follower(two)
    two.finish()
    assert two.status()["executionAttempt"] == 2
    compare(read(one), read(two))


def test_a_killed_run_equals_an_undisturbed_one(make_run):
    undisturbed, killed = (make_run(name, steps=STEPS, change=ordered) for name in ("undisturbed", "killed"))
    undisturbed.start()
    undisturbed.finish()
    killed.start()
    for step, name in ((2, "learner"), (5, "learner"), (7, "run"), (9, "rollout-0")):
        killed.wait_for_step(step)
        killed.kill(name)
    killed.finish()
    compare(read(undisturbed), read(killed))


def compare(one, other):
    """Two runs, of which `one` was not disturbed."""
    for exact in ("records", "tokens", "verdicts", "evaluations"):
        assert other[exact] == one[exact], exact
    assert len(one["records"]) == STEPS
    assert any(record["discarded"] for record in one["records"]), "nothing was left alone"
    assert len({tuple(sorted(step["shares"].items())) for step in one["metrics"]}) > 1
    assert [step for step, _ in one["evaluations"]] == [0, 4, 8, 12]
    assert other["logprobs"] == pytest.approx(one["logprobs"], abs=1e-4)
    for ours, theirs in zip(other["metrics"], one["metrics"], strict=True):
        for metric, value in theirs.items():
            assert ours[metric] == (pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value), metric
    assert one["weights"].keys() == other["weights"].keys()
    for name, tensor in one["weights"].items():
        assert (tensor - other["weights"][name]).abs().max() < 1e-4, name
