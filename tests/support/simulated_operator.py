"""The operator's real reconciler, cache and writer on a simulated cluster; a restart is a new one, which knows what it lists."""

from datetime import datetime
from types import SimpleNamespace

from operator_jobs import OWNER, SITE
from simulated_cluster import OperatorKilledError, finished

from rlvr_api import names
from rlvr_api.process import Role
from rlvr_operator import reconcile, warning_events
from rlvr_operator.cache import Cache
from rlvr_operator.cluster import ClusterError, ConflictError
from rlvr_operator.kueue import Kueue
from rlvr_operator.reconcile import Reconciler

KEY = (OWNER.namespace, OWNER.name)


class SimulatedClock:
    """Stands in for `datetime` and `time` of the operator's modules."""

    fromisoformat = staticmethod(datetime.fromisoformat)

    def __init__(self):
        self.cluster = None

    def now(self, _zone):
        return self.cluster.now

    def monotonic(self):
        return self.cluster.now.timestamp()


class Appointments:
    """In place of the work queue: remembers when a job wants to be looked at again, and does not ask for it."""

    def __init__(self):
        self.seconds = []

    def add(self, key):
        self.seconds.append(0.0)

    def add_after(self, key, seconds, is_routine=False):
        self.seconds.append(seconds)


class HeardLearners:
    """In place of the pollers: what the learner of a pod last said, and how long completions wait."""

    def __init__(self, progress):
        self._progress, self.wait = progress, None

    def progress(self, key, uid):
        return self._progress.get(uid), None if uid not in self._progress else 0.0

    def queue_wait_seconds(self, key):
        return self.wait


class Phases(dict):
    """In place of the metric, which registers itself for the life of a process."""

    def note(self, key, phase):
        self[key] = phase


class SimulatedOperator:
    """One life of the operator after another."""

    def __init__(self, cluster, clock, site=SITE):
        clock.cluster = cluster
        self.cluster, self.site, self.progress, self.lives = cluster, site, {}, 0
        self.restart()

    def restart(self):
        """What it remembered is gone; the cache is filled by lists."""
        self.lives += 1
        self.cache, self.queue = Cache(), Appointments()
        self.cluster.changes.clear()
        for item in self.cluster.objects.values():
            self.cache.put(item)
        kueue = Kueue(self.cluster, self.cache, is_enabled=True)
        self.reconciler = Reconciler(self.cluster, self.cache, self.site, self.queue, Phases(), kueue)
        self.reconciler.pollers = HeardLearners(self.progress)

    def look(self, kill_at=None, fresh=True):
        """One look, with a cache that knows everything unless it is not `fresh`; returns what came of it.

        Args:
            kill_at: the operator dies right after this many writes, and is restarted.
        """
        if fresh:
            self.cluster.deliver(self.cache)
        self.queue.seconds.clear()
        self.cluster.kill_at = None if kill_at is None else len(self.cluster.writes) + kill_at
        try:
            finished(self.reconciler.reconcile(KEY))
        except ConflictError:
            return "conflict"
        except ClusterError as error:
            return f"error: {error}"
        except OperatorKilledError:
            self.restart()
            return "killed"
        finally:
            self.cluster.kill_at = None
        return "done"

    def settle(self, looks=10):
        """Look until nothing more is written; returns the number of looks that wrote."""
        for count in range(looks):
            before = len(self.cluster.writes)
            result = self.look()
            assert not result.startswith("error"), result
            if len(self.cluster.writes) == before and result == "done":
                return count
        raise AssertionError(f"it still writes after {looks} looks: {self.cluster.writes[-20:]}")

    def bring_up(self):
        """Controllers, nodes and operator take turns until every pod is ready."""
        for _ in range(4):
            self.settle()
            self.cluster.run_controllers()
            self.cluster.run()
        self.settle()

    @property
    def item(self):
        return self.cluster.objects[names.KIND, OWNER.name]

    @property
    def status(self):
        return reconcile.read_status(self.item)

    def learner_ends(self, code=0):
        """The learner's process ends."""
        self.cluster.end(self.cluster.pods(Role.LEARNER)[-1], code)


def use_simulated_time(monkeypatch):
    """Has the reconciler live in a simulated cluster's time."""
    clock = SimulatedClock()
    for module in (reconcile, warning_events):
        monkeypatch.setattr(module, "datetime", clock)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock
