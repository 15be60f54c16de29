"""Parts of a training job die, one after the other; each test says what must not notice and how long the rest may take.

One job with two engines trains all the while. The bounds are those of a two-core machine, where an engine needs a minute to start.
"""

import time

import pytest
from training_cluster import READY_SECONDS

pytestmark = pytest.mark.timeout(900)


def test_one_of_two_engines_is_killed(job):
    before, attempt = job.untouched("learner", "verifier"), job.status["executionAttempt"]
    job.kill("rollout", "-1")
    assert job.steps_go_on(30) < 30
    job.wait(lambda job: job.engines().get("rollout-1") == "clean", READY_SECONDS, "the engine is back and has weights")
    assert (job.untouched("learner", "verifier"), job.status["executionAttempt"]) == (before, attempt)


def test_the_verifier_is_deleted(job):
    before = job.untouched("learner", "rollout")
    job.delete_pods("verifier")
    job.steps_go_on(60)
    assert job.untouched("learner", "rollout") == before


def test_the_operator_is_killed(job, operator):
    before = job.untouched("learner", "rollout", "verifier")
    operator.kill()
    job.steps_go_on(30)
    job.wait(lambda _: operator.leads(), 60, "the operator leads again")
    assert job.untouched("learner", "rollout", "verifier") == before


def test_the_store_is_away_for_twenty_seconds(job, store):
    before, attempt = job.untouched("learner", "rollout", "verifier"), job.status["executionAttempt"]
    store.scale(0)
    time.sleep(20)
    store.scale(1)
    job.wait(lambda _: store.is_up(), 60, "the store is back")
    job.steps_go_on(60)
    assert (job.untouched("learner", "rollout", "verifier"), job.status["executionAttempt"]) == (before, attempt)


def test_the_learner_is_deleted(job):
    before, attempt = job.untouched("rollout", "verifier"), job.status["executionAttempt"]
    job.delete_pods("learner")
    job.wait(lambda job: job.status["executionAttempt"] == attempt + 1, 60, "the next attempt")
    job.wait(lambda job: job.condition("LearnerReady").get("status") == "True", 120, "the learner is ready")
    job.steps_go_on(90)
    assert job.untouched("rollout", "verifier") == before


def test_the_learner_is_killed(job):
    before, attempt, step = job.untouched("rollout", "verifier"), job.status["executionAttempt"], job.progress()["step"]
    job.kill("learner")
    job.wait(lambda job: job.status["executionAttempt"] == attempt + 1, 60, "the next attempt")
    job.steps_go_on(150)
    assert job.progress()["step"] >= step - 10  # learner.checkpoint.everySteps
    assert job.untouched("rollout", "verifier") == before


def test_engines_are_scaled_down_and_up(job):
    before = job.untouched("learner", "verifier")
    job.scale(1)
    job.wait(lambda job: len(job.pods("rollout")) == 1 and set(job.engines()) == {"rollout-0"}, 90, "one engine")
    job.steps_go_on(30)
    job.scale(2)
    job.wait(lambda job: job.engines() == {"rollout-0": "clean", "rollout-1": "clean"}, READY_SECONDS, "two engines with weights")
    assert job.untouched("learner", "verifier") == before


def test_it_is_suspended_and_resumed(job):
    attempt, step = job.status["executionAttempt"], job.progress()["step"]
    job.patch({"suspend": True})
    job.wait(lambda job: job.condition("Suspended").get("status") == "True", 120, "suspended")
    assert job.pods() == []
    assert job.status["checkpoint"]["step"] >= step
    job.patch({"suspend": False})
    job.wait(lambda job: job.status.get("phase") == "Running", READY_SECONDS, "running again")
    assert job.status["executionAttempt"] == attempt + 1
    job.steps_go_on(90)
    assert job.progress()["step"] >= step
