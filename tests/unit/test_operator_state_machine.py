"""Whatever happens, in whatever order, and whenever the operator dies: what must always hold of a job, and that it gets well again.

Hypothesis plays people, controllers, nodes and the watches' delay on a simulated cluster; the operator is the real reconciler. At every
write the API server checks that

- an attempt's number is in the status before its Job exists, never goes back, and never has two Jobs;
- no learner is started while an older one may still be alive, and no engine before a learner was ready;
- a job that is over stays so, a suspended one has no pod, and transition times never go back.

The operator may act on old news: then two of these cannot be promised (fencing by attempt covers them), and are checked at its next look.
"""

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Phases
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from operator_jobs import manifest
from simulated_cluster import SimulatedCluster
from simulated_operator import SimulatedOperator, use_simulated_time

from rlvr_api import names
from rlvr_api.conditions import ConditionType, Phase, Reason
from rlvr_api.lifecycle import Deadlines
from rlvr_api.process import ExitCode, Role
from rlvr_api.status import Progress, RLVRJobStatus
from rlvr_operator.observe import read_children
from rlvr_operator.render import Owner

FINAL = (ConditionType.COMPLETE, ConditionType.FAILED)
OVER = (Phase.COMPLETING, Phase.SUCCEEDED, Phase.FAILED)
KINDS = (names.KIND, "Pod", "Job", "StatefulSet", "Deployment", "ConfigMap")
INDEX = st.integers(0, 5)
REASONS_TO_END = (
    Reason.ALL_STAGES_FINISHED,
    Reason.RESTART_BUDGET_EXHAUSTED,
    Reason.SUPERSEDED,
    Reason.PROVISIONING_DEADLINE_EXCEEDED,
)


class OperatorMachine(RuleBasedStateMachine):
    """One job, its cluster and its operator."""

    clock = None

    def __init__(self):
        super().__init__()
        self.cluster = SimulatedCluster()
        self.cluster.on_write = self.check_write
        self.spec, self.born, self.learner_was_ready, self.is_fresh, self.step = {}, set(), False, True, 0
        self.operator, self.began = None, self.cluster.now

    # what people do

    @initialize(suspend=st.booleans(), restarts=st.integers(0, 4), engines=st.integers(1, 3), rounds=st.integers(0, 4))
    def create(self, suspend, restarts, engines, rounds):
        budget = {"maxLearnerRestarts": restarts, "maxRoleRestarts": 4}
        self.spec = {"suspend": suspend, "failure_policy": budget, "rollouts": {"replicas": engines}}
        self.cluster.put_job(manifest(**self.spec))
        self.operator = SimulatedOperator(self.cluster, self.clock)
        self.all_is_well(rounds)

    def edit(self, **sections):
        self.spec |= sections
        self.cluster.put_job(manifest(**self.spec))

    @rule(suspend=st.booleans())
    def suspend(self, suspend):
        self.edit(suspend=suspend)

    @rule(replicas=st.integers(0, 3))
    def scale(self, replicas):
        self.edit(rollouts={**self.spec["rollouts"], "replicas": replicas})

    @rule(sequences=st.sampled_from([32, 64]), steps=st.sampled_from([5, 10]))
    def change_settings(self, sequences, steps):
        rollouts = {**self.spec["rollouts"], "engineArgs": {"max-num-seqs": sequences}}
        self.edit(rollouts=rollouts, learner={"checkpoint": {"everySteps": steps}})

    @precondition(lambda self: self.cluster.pods())
    @rule(index=INDEX)
    def delete_pod(self, index):
        self.cluster.remove("Pod", pick(self.cluster.pods(), index)["metadata"]["name"])

    @precondition(lambda self: self.cluster.of("Job"))
    @rule(index=INDEX)
    def delete_learner_job(self, index):
        self.cluster.remove("Job", pick(self.cluster.of("Job"), index)["metadata"]["name"])

    # what the cluster does

    @rule(rounds=st.integers(1, 4))
    def all_is_well(self, rounds):
        for _ in range(rounds):
            assert not self.operator.look().startswith("error")
            self.cluster.run_controllers()
            self.cluster.stop_deleted()
            self.cluster.run()
            self.note_ready()
            self.cluster.advance(1)

    @rule(roles=st.sets(st.sampled_from(list(Role))), controllers=st.booleans(), seconds=st.sampled_from([0.1, 2, 20, 170]))
    def time_passes(self, roles, controllers, seconds):
        self.cluster.advance(seconds)
        if controllers:
            self.cluster.run_controllers()
        for role in roles:
            self.cluster.run(role)
        self.note_ready()

    @rule(code=st.sampled_from([ExitCode.SUSPENDED, ExitCode.DONE, 137]))
    def stop_deleted(self, code):
        self.cluster.stop_deleted(code)

    @precondition(lambda self: self.running(Role.LEARNER))
    @rule(code=st.sampled_from([ExitCode.DONE, 1, ExitCode.BAD_INPUT, ExitCode.SUSPENDED, ExitCode.SUPERSEDED, 137]))
    def learner_ends(self, code):
        self.cluster.end(self.running(Role.LEARNER)[-1], code, "OOMKilled" if code == 137 else None)

    @precondition(lambda self: self.running())
    @rule(index=INDEX, how=st.sampled_from(["crash", "evict", "lose the node", "be slow"]))
    def pod_suffers(self, index, how):
        pod = pick(self.running(), index)
        if how == "crash":
            self.cluster.end(pod, 1)
        elif how == "evict":
            self.cluster.evict(pod)
        elif how == "be slow":
            self.cluster.make_ready(pod, ready=False)
        else:
            self.cluster.lose_node(pod)

    @precondition(lambda self: self.running(Role.LEARNER))
    @rule()
    def learner_steps(self):
        self.step += 1
        progress = Progress(stage="climb", stage_index=0, stages=1, step=self.step, steps=99, last_updated=self.cluster.now)
        self.operator.progress[self.running(Role.LEARNER)[-1]["metadata"]["uid"]] = progress

    # what the operator does

    @rule(kill_at=st.none() | st.integers(1, 6))
    def look(self, kill_at):
        assert not self.operator.look(kill_at).startswith("error")

    @rule(kinds=st.sets(st.sampled_from(KINDS)), kill_at=st.none() | st.integers(1, 6))
    def look_at_old_news(self, kinds, kill_at):
        self.is_fresh = False
        self.cluster.deliver(self.operator.cache, kinds)
        assert not self.operator.look(kill_at, fresh=False).startswith("error")
        self.is_fresh = True

    @rule()
    def settle(self):
        """Nothing happens meanwhile: the operator has done all that it wants after a few looks, and then writes nothing."""
        for _ in range(3):
            self.cluster.run_controllers()
            self.operator.look()
        self.operator.settle()
        status = self.operator.status
        if ConditionType.SUSPENDED in {condition.type for condition in status.conditions}:
            assert not self.cluster.pods()
        if self.cluster.objects.get(("StatefulSet", "arithmetic-rollout")):
            assert self.learner_was_ready

    # what must hold

    def check_write(self, item):
        if item["kind"] == names.KIND:
            self.check_status(self.operator.status, RLVRJobStatus.model_validate(item["status"]))
        elif item["kind"] == "Job":
            self.check_birth(int(item["metadata"]["labels"][names.LABEL_ATTEMPT]))
        elif item["kind"] == "StatefulSet":
            assert self.learner_was_ready

    def check_status(self, old, new):
        assert new.execution_attempt in (old.execution_attempt, old.execution_attempt + 1)
        before = {condition.type: condition for condition in old.conditions}
        after = {condition.type: condition for condition in new.conditions}
        for kind, condition in after.items():
            if kind in before and before[kind].status == condition.status:
                assert condition.last_transition_time == before[kind].last_transition_time
            else:
                assert condition.last_transition_time == self.cluster.now
        for kind in FINAL:
            if kind in before:
                assert after[kind].status == before[kind].status == "True"
                assert new.completion_time == old.completion_time
                assert new.execution_attempt == old.execution_attempt
        assert not set(FINAL) <= set(after)
        assert (new.phase in OVER) is bool(set(FINAL) & set(after))
        assert (new.phase is Phase.SUSPENDED) is (ConditionType.SUSPENDED in after)
        if new.phase is Phase.SUSPENDED and self.is_fresh:
            assert not self.cluster.pods()

    def check_birth(self, attempt):
        assert attempt == self.operator.status.execution_attempt
        assert attempt not in self.born
        self.born.add(attempt)
        if self.is_fresh:
            meta = self.operator.item["metadata"]
            seen = read_children(Owner(meta["name"], meta["namespace"], meta["uid"]), self.cluster.objects.values(), self.cluster.now)
            assert [pod.name for pod in seen.of(Role.LEARNER) if not pod.ended] == []

    def teardown(self):
        """Left in peace, a job comes to run, or has ended for a reason."""
        if self.operator is None:
            return
        self.edit(suspend=False, rollouts={"replicas": 1})
        for _ in range(12):
            self.all_is_well(1)
            self.cluster.advance(21)
        status = self.operator.status
        if status.phase in OVER:
            assert status.reason in REASONS_TO_END
            if status.reason is Reason.PROVISIONING_DEADLINE_EXCEEDED:
                assert self.cluster.now - self.began >= timedelta(seconds=Deadlines().provisioning_seconds)
            # a pod on a lost node stays until its Job goes, after ttl.podsAfterFinishedSeconds
            learners = [pod["metadata"]["uid"] for pod in self.running(Role.LEARNER)]
            assert set(learners) <= self.cluster.lost
        else:
            assert status.phase is Phase.RUNNING, (status.phase, status.reason, status.message)
            assert len(self.cluster.of("Job")) == 1
            self.operator.settle()

    def note_ready(self):
        ready = {"type": "Ready", "status": "True"}
        self.learner_was_ready |= any(ready in pod["status"].get("conditions", ()) for pod in self.cluster.pods(Role.LEARNER))

    def running(self, role=None):
        return [pod for pod in self.cluster.pods(role) if pod["status"]["phase"] == "Running"]


def pick(items, index):
    return items[index % len(items)]


@pytest.mark.timeout(300)
def test_what_must_always_hold_of_a_job(monkeypatch):
    machine = type("Machine", (OperatorMachine,), {"clock": use_simulated_time(monkeypatch)})
    found = (Phases.explicit, Phases.reuse, Phases.generate)  # shrinking takes minutes, and ends as a time-out that hides the failure
    bounds = settings(phases=found, max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=bounds)
