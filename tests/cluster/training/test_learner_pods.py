"""A learner of two pods trains over gloo, with weights through the object store; what becomes of it when one of them goes."""

import pytest
from training_cluster import READY_SECONDS

pytestmark = pytest.mark.timeout(1500)

TRAIN_SECONDS = 600


def node(job, attempt, number):
    """One of an attempt's pods."""
    (pod,) = [pod for pod in job.live_pods("learner") if f"-learner-{attempt}-{number}-" in pod["metadata"]["name"]]
    return pod


def goes_on(job, attempt, engines):
    """Waits until both pods of an attempt are ready; nothing else was touched."""
    job.wait(lambda job: job.status["executionAttempt"] == attempt, 120, "the next attempt")
    job.wait(lambda job: job.condition("LearnerReady").get("status") == "True", READY_SECONDS, "both learner pods are ready")
    assert job.untouched("rollout", "verifier") == engines
    assert len(job.live_pods("learner")) == 2


def test_a_learner_of_two_pods_outlives_the_drain_and_the_loss_of_one_and_trains_to_its_end(train):
    job = train(learner={"nodes": 2, "checkpoint": {"everySteps": 2}}, weightSync={"objectStore": {}})
    job.wait(lambda job: job.status.get("phase") == "Running", READY_SECONDS, "running")
    job.wait(lambda job: (job.progress().get("checkpointStep") or 0) >= 2, TRAIN_SECONDS, "a checkpoint")
    engines = job.untouched("rollout", "verifier")
    (learner,) = [role for role in job.status["roles"] if role["name"] == "learner"]
    assert learner["desired"] == 2

    job.delete_pod(node(job, 1, 1))
    goes_on(job, 2, engines)
    assert job.status["restarts"] == 0  # stopped in order, with a checkpoint

    before = job.progress().get("checkpointStep") or 0
    job.wait(lambda job: (job.progress().get("checkpointStep") or 0) > before, TRAIN_SECONDS, "another checkpoint")
    lead, lost = node(job, 2, 0), node(job, 2, 1)
    job.kill("learner", lost["metadata"]["name"])
    goes_on(job, 3, engines)
    assert not {pod["metadata"]["uid"] for pod in (lead, lost)} & job.uids("learner")

    job.wait(lambda job: job.condition("Complete").get("status") == "True", TRAIN_SECONDS, "complete")
    assert (job.status["executionAttempt"], job.status["progress"]["step"]) == (3, 20)
