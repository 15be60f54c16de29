"""A job with an environment of several turns, as a person runs it: real vLLM, verifier service, learner and store; killed once."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.records import read_records
from rlvr_trainer.storage.rollouts import read_groups

EXAMPLE = Path(__file__).parents[2] / "examples" / "07-turns.yaml"


def with_turns(spec):
    example = YAML(typ="safe").load(EXAMPLE)["spec"]
    spec["model"]["maxModelLen"] = example["model"]["maxModelLen"]
    spec.update(environments=example["environments"], sampling=example["sampling"])
    spec["stages"][0]["rlvr"]["promptsPerStep"] = 16


@pytest.mark.long
def test_a_job_of_several_turns_trains_survives_a_kill_and_keeps_each_turn(make_run):
    run = make_run("turns", steps=6, change=with_turns)
    run.start()
    run.wait_for_step(2)
    earlier = run.records()
    run.kill("learner")
    run.finish()
    run.check_exactly_once(earlier, 6)
    with run.store() as store:
        blobs = [blob for item in read_records(store, StageKeys(0, "climb")) for blob in item.record.rollouts]
        rollouts = [rollout for blob in blobs for group in read_groups(store, blob) for rollout in group.rollouts]
    several = [rollout for rollout in rollouts if rollout.observations]
    assert several, "of all episodes none has two turns"
    for rollout in several:
        assert len(rollout.turns) == len(rollout.observations) + 1 <= 3
        assert rollout.longest_turn_tokens <= 2
        assert rollout.reward is not None
        for start, end in rollout.observed:
            assert set(rollout.logprobs[start:end]) == {0.0}
        assert all(logprob < 0 for place, logprob in enumerate(rollout.logprobs) if not any(a <= place < b for a, b in rollout.observed))
