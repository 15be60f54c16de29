"""Events tell what changed of a job, once, and count what happens again."""

import logging

from operator_jobs import OWNER
from simulated_cluster import SimulatedCluster, finished

from rlvr_api.conditions import Phase, Reason
from rlvr_api.status import RLVRJobStatus
from rlvr_operator.cluster import RefusedError
from rlvr_operator.notices import Notice, Recorder, notices


def told(before, after):
    return [(notice.reason, notice.is_warning) for notice in notices(RLVRJobStatus(**before), RLVRJobStatus(**after))]


def test_what_a_person_would_want_to_know_is_told_and_nothing_else():
    running = {"phase": Phase.RUNNING, "execution_attempt": 1}
    assert told({}, {"phase": Phase.PROVISIONING, "execution_attempt": 1}) == [("AttemptStarted", False)]
    assert told(running, {**running, "message": "step 5"}) == []
    assert told(running, {**running, "phase": Phase.RECOVERING}) == [("Recovering", True)]
    assert told(running, {**running, "execution_attempt": 2, "restarts": 1}) == [("AttemptStarted", True)]
    waiting = {"phase": Phase.PROVISIONING, "execution_attempt": 1}
    assert told(waiting, {**waiting, "reason": Reason.STARTING, "message": "0 of 1 engines answer"}) == []
    assert told(waiting, {**waiting, "reason": Reason.UNSCHEDULABLE, "message": "no node"}) == [("Unschedulable", True)]
    assert told(running, {**running, "phase": Phase.FAILED, "message": "why"}) == [("Failed", True)]


def test_the_same_event_again_raises_a_count_also_after_a_restart():
    cluster, notice = SimulatedCluster(), Notice("Recovering", "the learner is gone", is_warning=True)
    recorder = Recorder(cluster)
    for _ in range(3):
        finished(recorder.record(OWNER, notice))
    (event,) = cluster.of("Event")
    assert (event["count"], event["type"], event["involvedObject"]["uid"]) == (3, "Warning", OWNER.uid)
    finished(Recorder(cluster).record(OWNER, notice))
    assert len(cluster.of("Event")) == 1


def test_an_event_that_cannot_be_written_stops_nothing(caplog):
    class Full(SimulatedCluster):
        async def create(self, item):
            raise RefusedError("exceeded quota")

    with caplog.at_level(logging.WARNING):
        finished(Recorder(Full()).record(OWNER, Notice("Running", "")))
    assert "exceeded quota" in caplog.text
