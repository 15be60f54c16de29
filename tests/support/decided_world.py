"""A job in a simulated cluster, under the operator's decisions alone: look at it, and carry out what was decided."""

from datetime import timedelta

from operator_jobs import OWNER, SITE, manifest
from simulated_cluster import SimulatedCluster, finished

from rlvr_api import names
from rlvr_api.process import Role
from rlvr_api.status import Progress
from rlvr_operator.lifecycle import decide
from rlvr_operator.look import Look
from rlvr_operator.observe import read_children
from rlvr_operator.reconcile import read_job, read_status
from rlvr_operator.render import Owner


class World:
    """One job."""

    def __init__(self, **sections):
        self.cluster, self.sections, self.unborn, self.progress, self.site = SimulatedCluster(), sections, None, None, SITE
        self.witnessed = 0
        self.cluster.put_job(manifest(**sections))

    @property
    def item(self):
        return self.cluster.objects[names.KIND, OWNER.name]

    @property
    def status(self):
        return read_status(self.item)

    def edit(self, **sections):
        """A person changes the spec."""
        self.sections = {**self.sections, **sections}
        self.cluster.put_job(manifest(**self.sections))

    def decide(self):
        """What the operator would do now."""
        meta = self.item["metadata"]
        owner = Owner(meta["name"], meta["namespace"], meta["uid"])
        raw = [item for item in self.cluster.objects.values() if item["kind"] != names.KIND]
        seen = read_children(owner, raw, self.cluster.now)
        seen = type(seen)(**{**vars(seen), "progress": self.progress})
        if seen.learner_job(self.status.execution_attempt) is not None:
            self.witnessed = self.status.execution_attempt
        return decide(
            Look(
                read_job(self.item), owner, meta["generation"], self.site, self.status, seen, self.cluster.now, self.unborn, self.witnessed
            )
        )

    def look(self):
        """Decide, and carry it out as the reconciler does."""
        decision = self.decide()
        if decision.status.execution_attempt != self.status.execution_attempt:
            self._write(decision.status)
            self.unborn = decision.status.execution_attempt
        for item in decision.objects:
            known = self.cluster.objects.get((item["kind"], item["metadata"]["name"]))
            if known is None or item["kind"] != "Job":
                finished(self.cluster.apply(item))
            if item["kind"] == "Job":
                self.unborn = None
        for deletion in decision.deletions:
            finished(self.cluster.delete(OWNER.namespace, deletion))
        self._write(decision.status)
        return decision

    def settle(self, looks=4):
        """Controllers and operator take turns; nodes do nothing. Returns the last decision."""
        for _ in range(looks):
            decision = self.look()
            self.cluster.run_controllers()
        return decision

    def bring_up(self, step=None):
        """Every pod is started and ready, as soon as it is there."""
        for _ in range(3):
            self.settle(2)
            self.cluster.run()
        self.progress = None if step is None else self.progress_at(step)
        return self.settle(2)

    def drain(self, exit_code=75):
        """Nodes let deleted pods go."""
        for _ in range(3):
            self.cluster.stop_deleted(exit_code)
            self.cluster.run_controllers()
        return self.settle()

    def progress_at(self, step, **fields):
        """What a learner says of itself."""
        return Progress(stage="climb", stage_index=0, stages=1, step=step, steps=20, last_updated=self.cluster.now, **fields)

    def wait(self, seconds):
        self.cluster.advance(seconds)

    def learner(self):
        """The learner's newest pod."""
        return self.cluster.pods(Role.LEARNER)[-1]

    def jobs(self):
        """Attempts of the Jobs that exist."""
        return sorted(int(job["metadata"]["labels"][names.LABEL_ATTEMPT]) for job in self.cluster.of("Job"))

    def uids(self, role):
        return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in self.cluster.pods(role)}

    def condition(self, kind):
        return next(condition for condition in self.status.conditions if condition.type == kind)

    def later(self, seconds):
        return self.cluster.now + timedelta(seconds=seconds)

    def _write(self, status):
        body = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        finished(self.cluster.apply_status(OWNER.namespace, OWNER.name, self.item["metadata"]["resourceVersion"], body))
