"""The governor with real engines: pauses end what they have in flight, and the run goes on; a critic and a reference are beside it."""

from collections import Counter
from itertools import pairwise

import pytest

from rlvr_trainer.metrics_log import read_steps
from rlvr_trainer.storage.checkpoint_reader import load_latest
from rlvr_trainer.storage.layout import StageKeys

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
STAGE = StageKeys(0, "climb")
STEPS = 18


def governed(spec):
    spec["stages"][0]["rlvr"].update(
        algorithm={"ppo": {}}, minibatches=2, entropyBonus=1e-3, referenceKl={"coefficient": 1e-3, "estimator": "k3"}
    )
    spec["sampling"] = {"maxTokens": 24}  # long enough that some are in flight when weights change
    # Fresh tokens differ by rounding alone, and every stale one is too far.
    spec["offPolicy"] = {"maxStaleness": 3, "governor": {"maxKl": 1e-4, "pauseKl": 1e-3, "healthySteps": 1}}


def test_a_run_that_is_paused_again_and_again_ends_and_loses_nothing(make_run):
    run = make_run("governed", steps=STEPS, change=governed)
    run.start()
    run.finish()
    run.check_exactly_once({}, STEPS)
    with run.store() as store:
        steps = list(read_steps(store))
        checkpoint = load_latest(store, STAGE)
    kinds = Counter(action.partition(":")[0] for step in steps for action in step.governor.actions)
    assert min(kinds[kind] for kind in ("pause", "resume", "loosen")) > 0, kinds
    for before, after in pairwise(steps):
        if before.governor.paused:
            assert (after.staleness_max, before.governor.max_staleness) == (0, 0)
    assert sum(step.discarded.get("stale", 0) for step in steps) > 0
    assert all(step.mismatch_kl < 1e-4 for step in steps if step.staleness_max == 0)
    assert all(step.reference_kl is not None for step in steps if step.tokens_trained)
    varied = [step for step in steps if 0.0 < step.reward_mean < 1.0]  # where all returns are equal there is nothing to explain
    assert varied
    assert all(step.explained_variance is not None for step in varied)
    assert {"critic/weight", "critic/bias"} < checkpoint.tensors.keys()
    shown = run.status()["progress"]["governor"]
    assert shown["mode"] in ("open", "tightened", "paused")
    assert "maxStaleness is now" in shown["message"]
