"""A learner of two pods trains over gloo, with weights through the object store; the loss of one costs an attempt and no more."""

import pytest
from training_cluster import READY_SECONDS

pytestmark = pytest.mark.timeout(1500)

TRAIN_SECONDS = 600


def test_a_learner_of_two_pods_outlives_the_loss_of_one_and_trains_to_its_end(train):
    job = train(learner={"nodes": 2, "checkpoint": {"everySteps": 2}}, weightSync={"objectStore": {}})
    job.wait(lambda job: job.status.get("phase") == "Running", READY_SECONDS, "running")
    job.wait(lambda job: (job.progress().get("checkpointStep") or 0) >= 2, TRAIN_SECONDS, "a checkpoint")
    engines = job.untouched("rollout", "verifier")
    (learner,) = [role for role in job.status["roles"] if role["name"] == "learner"]
    assert learner["desired"] == 2
    (follower,) = [pod for pod in job.live_pods("learner") if "-learner-1-1-" in pod["metadata"]["name"]]
    lead_uid = next(pod["metadata"]["uid"] for pod in job.live_pods("learner") if "-learner-1-0-" in pod["metadata"]["name"])
    job.kill("learner", follower["metadata"]["name"])
    job.wait(lambda job: job.status["executionAttempt"] == 2, 120, "the next attempt")
    job.wait(lambda job: job.condition("LearnerReady").get("status") == "True", READY_SECONDS, "both learner pods are ready")
    assert job.untouched("rollout", "verifier") == engines
    assert len(job.live_pods("learner")) == 2
    assert not {lead_uid, follower["metadata"]["uid"]} & job.uids("learner")
    job.wait(lambda job: job.condition("Complete").get("status") == "True", TRAIN_SECONDS, "complete")
    status = job.status
    assert (status["executionAttempt"], status["progress"]["step"]) == (2, 20)
