"""Parts of a training job die, one after the other; each test says what must not notice and how long the rest may take.

One job with two engines trains all the while. The bounds are those of a two-core machine, where an engine needs a minute to start.
"""

import time

import pytest

pytestmark = pytest.mark.timeout(900)

READY_SECONDS = 420


@pytest.fixture(scope="module")
def job(train):
    job = train(
        stages=[{"name": "climb", "rlvr": {"steps": 100_000, "promptsPerStep": 8, "groupSize": 4, "optimizer": {"learningRate": 1e-3}}}],
        rollouts={"replicas": 2, "minAvailable": 1},
        learner={"checkpoint": {"everySteps": 10, "keepLast": 2}},
    )
    job.wait(lambda job: job.status.get("phase") == "Running", READY_SECONDS, "running")
    job.wait(lambda job: engines(job) == {"rollout-0": "clean", "rollout-1": "clean"}, READY_SECONDS, "both engines have weights")
    return job


def engines(job):
    return {name: engine["status"] for name, engine in job.progress().get("engines", {}).items()}


def steps_go_on(job, seconds):
    """Seconds until two more steps are finished."""
    started, first = time.monotonic(), None
    while True:
        now = job.progress().get("step")
        if now is not None and first is not None and now >= first + 2:
            return time.monotonic() - started
        first = now if first is None or (now is not None and now < first) else first
        assert time.monotonic() - started < seconds, f"no two steps within {seconds} s\n{job.describe()}"
        time.sleep(0.3)


def untouched(job, *roles):
    """What may not change while something else is mended."""
    return {role: {(pod["metadata"]["uid"], restarts(pod)) for pod in job.live_pods(role)} for role in roles}


def restarts(pod):
    return sum(status["restartCount"] for status in pod["status"].get("containerStatuses", ()))


def test_one_of_two_engines_is_killed(job):
    before, attempt = untouched(job, "learner", "verifier"), job.status["executionAttempt"]
    job.kill("rollout", "-1")
    assert steps_go_on(job, 30) < 30
    job.wait(lambda job: engines(job).get("rollout-1") == "clean", READY_SECONDS, "the engine is back and has weights")
    assert (untouched(job, "learner", "verifier"), job.status["executionAttempt"]) == (before, attempt)


def test_the_verifier_is_deleted(job):
    before = untouched(job, "learner", "rollout")
    job.delete_pods("verifier")
    steps_go_on(job, 60)
    assert untouched(job, "learner", "rollout") == before


def test_the_operator_is_killed(job, operator):
    before = untouched(job, "learner", "rollout", "verifier")
    operator.kill()
    steps_go_on(job, 30)
    job.wait(lambda _: operator.leads(), 60, "the operator leads again")
    assert untouched(job, "learner", "rollout", "verifier") == before


def test_the_store_is_away_for_twenty_seconds(job, store):
    before, attempt = untouched(job, "learner", "rollout", "verifier"), job.status["executionAttempt"]
    store.scale(0)
    time.sleep(20)
    store.scale(1)
    job.wait(lambda _: store.is_up(), 60, "the store is back")
    steps_go_on(job, 60)
    assert (untouched(job, "learner", "rollout", "verifier"), job.status["executionAttempt"]) == (before, attempt)


def test_the_learner_is_deleted(job):
    before, attempt = untouched(job, "rollout", "verifier"), job.status["executionAttempt"]
    job.delete_pods("learner")
    job.wait(lambda job: job.status["executionAttempt"] == attempt + 1, 60, "the next attempt")
    job.wait(lambda job: job.condition("LearnerReady").get("status") == "True", 120, "the learner is ready")
    steps_go_on(job, 90)
    assert untouched(job, "rollout", "verifier") == before


def test_the_learner_is_killed(job):
    before, attempt, step = untouched(job, "rollout", "verifier"), job.status["executionAttempt"], job.progress()["step"]
    job.kill("learner")
    job.wait(lambda job: job.status["executionAttempt"] == attempt + 1, 60, "the next attempt")
    steps_go_on(job, 150)
    assert job.progress()["step"] >= step - 10  # learner.checkpoint.everySteps
    assert untouched(job, "rollout", "verifier") == before


def test_engines_are_scaled_down_and_up(job):
    before = untouched(job, "learner", "verifier")
    job.scale(1)
    job.wait(lambda job: len(job.pods("rollout")) == 1 and set(engines(job)) == {"rollout-0"}, 90, "one engine")
    steps_go_on(job, 30)
    job.scale(2)
    job.wait(lambda job: engines(job) == {"rollout-0": "clean", "rollout-1": "clean"}, READY_SECONDS, "two engines with weights")
    assert untouched(job, "learner", "verifier") == before


def test_it_is_suspended_and_resumed(job):
    attempt, step = job.status["executionAttempt"], job.progress()["step"]
    job.patch({"suspend": True})
    job.wait(lambda job: job.condition("Suspended").get("status") == "True", 120, "suspended")
    assert job.pods() == []
    assert job.status["checkpoint"]["step"] >= step
    job.patch({"suspend": False})
    job.wait(lambda job: job.status.get("phase") == "Running", READY_SECONDS, "running again")
    assert job.status["executionAttempt"] == attempt + 1
    steps_go_on(job, 90)
    assert job.progress()["step"] >= step
