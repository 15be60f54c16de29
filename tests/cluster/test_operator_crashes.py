"""The operator is killed right after each write of a job's life, and started again: nothing is there twice, nothing is left behind.

Also: the job itself goes away right after each write.
"""

from dataclasses import dataclass

import pytest
from cluster_operator import FAKE, Api, Fault, Operators, manifest
from commands import wait_for
from whole_jobs import STANDING, assert_whole, finish, is_running, nothing_left, own_names, settled

from rlvr_api import names
from rlvr_api.process import Role

pytestmark = [pytest.mark.usefixtures("fake_nodes"), pytest.mark.timeout(300)]
WRITES_OF_A_START = 15
"""A job's start takes at least as many; the learner's Job is among them."""
MAX_WRITES = 60


@dataclass
class Life:
    """One part of a job's life, of which every write is the operator's last one in some job."""

    api: Api
    namespace: str
    operators: Operators

    def prepare(self, job):
        """Without a fault."""

    def act(self, job):
        """What a person does."""

    def is_done(self, job):
        """Whether all of it has happened."""

    def check(self, job):
        """What must be then."""

    def die_at_each_write(self):
        """Each operator heals what the one before it left, and dies in the next job; returns the number of writes."""
        healthy = self.operators.leader()
        self.prepare("life-1")
        healthy.kill()
        for write in range(1, MAX_WRITES):
            job = f"life-{write}"
            operator = self.operators.leader(Fault(job, write))
            if write > 1:
                self.check(f"life-{write - 1}")
            self.prepare(f"life-{write + 1}")
            self.act(job)
            if self.lives_until_done(operator, job):
                self.check(job)
                return write - 1
            assert operator.wait(1) == 9, operator.words()
        raise AssertionError(f"still not done after {MAX_WRITES} writes: {operator.words()}")

    def lives_until_done(self, operator, job):
        outcome = wait_for(lambda: (not operator.process.is_alive() and "died") or (self.is_done(job) and "done"), 40, operator.words)
        return outcome == "done"


class Start(Life):
    """From nothing to running."""

    def act(self, job):
        self.api.create(manifest(job, self.namespace))

    def is_done(self, job):
        return is_running(self.api, self.namespace, job)

    def check(self, job):
        assert_whole(self.api, self.namespace, job, settled(self.api, self.namespace, job))
        self.api.delete("RLVRJob", self.namespace, job)


class Suspension(Life):
    """From running to suspended."""

    def prepare(self, job):
        self.api.create(manifest(job, self.namespace))
        settled(self.api, self.namespace, job)

    def act(self, job):
        self.api.patch("RLVRJob", self.namespace, job, {"spec": {"suspend": True}})

    def is_done(self, job):
        phase = self.api.status(self.namespace, job).get("phase")
        return phase == "Suspended" and not any(kind in ("Pod", "Job") for kind, _ in self.api.children(self.namespace, job))

    def check(self, job):
        wait_for(lambda: self.is_done(job), 30, lambda: self.api.status(self.namespace, job))
        assert own_names(self.api.children(self.namespace, job), job) == STANDING
        assert self.api.status(self.namespace, job)["executionAttempt"] == 1


class Resumption(Suspension):
    """From suspended to running. The attempt before the suspension never comes back."""

    def prepare(self, job):
        self.api.create(manifest(job, self.namespace, suspend=True))
        wait_for(lambda: self.api.status(self.namespace, job).get("phase") == "Suspended", 30, "suspended from the start")

    def act(self, job):
        self.api.patch("RLVRJob", self.namespace, job, {"spec": {"suspend": False}})

    def is_done(self, job):
        return is_running(self.api, self.namespace, job)

    def check(self, job):
        assert_whole(self.api, self.namespace, job, settled(self.api, self.namespace, job))


def test_killed_after_each_write_of_a_start(api, namespace, operators):
    assert Start(api, namespace, operators).die_at_each_write() >= WRITES_OF_A_START
    for item in api.items("RLVRJob", namespace):
        api.delete("RLVRJob", namespace, item["metadata"]["name"])
    nothing_left(api, namespace)


def test_killed_after_each_write_of_a_suspension(api, namespace, operators):
    assert Suspension(api, namespace, operators).die_at_each_write() >= 5


def test_killed_after_each_write_of_a_resumption(api, namespace, operators):
    assert Resumption(api, namespace, operators).die_at_each_write() >= 5


def test_deleted_after_each_write(api, namespace, operators):
    """Nothing is made for a job that is gone."""
    jobs = {f"gone-{write}": write for write in range(1, WRITES_OF_A_START + 1)}
    operator = operators.leader(*(Fault(job, write, "delete") for job, write in jobs.items()))
    for job in jobs:
        api.create(manifest(job, namespace))
    wait_for(lambda: not api.items("RLVRJob", namespace), 60, lambda: f"{len(api.items('RLVRJob', namespace))} jobs left")
    nothing_left(api, namespace)
    assert operator.process.is_alive()


def test_pods_of_an_earlier_job_of_the_name_are_not_its_own(api, namespace, operators):
    """The learner of a job that was finished and deleted can stay for a while; the next job of the name is not finished by that."""
    labels = {**names.MANAGED_BY, **names.labels("twice", Role.LEARNER, 1)}
    meta = {"name": "twice-learner-1-0-old", "namespace": namespace, "labels": labels}
    container = {"name": "learner", "image": "example.test/learner:1"}
    api.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {**FAKE, "restartPolicy": "Never", "containers": [container]}})
    finish(api, wait_for(lambda: running_pod(api, namespace, meta["name"]), 30, "the old pod runs"), exit_code=0)
    operators.leader()
    api.create(manifest("twice", namespace))
    status = wait_for(lambda: is_running(api, namespace, "twice", attempts=(1,)), 30, lambda: api.status(namespace, "twice"))
    assert "completionTime" not in status


def running_pod(api, namespace, name):
    pod = api.get("Pod", namespace, name)
    return pod if pod["status"].get("podIP") else None
