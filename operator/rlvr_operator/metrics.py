"""Metrics of the operator: controller-runtime's names, so that dashboards and alerts made for it work, and a few of our own."""

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

CONTROLLER = "rlvrjob"
LONG_BUCKETS = (1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800)

REST_REQUESTS = Counter("rest_client_requests_total", "Requests to the API server.", ["code", "method"])
QUEUE_DEPTH = Gauge("workqueue_depth", "Jobs that wait for a look.", ["name"])
QUEUE_ADDS = Counter("workqueue_adds_total", "Jobs put on the queue.", ["name"])
QUEUE_RETRIES = Counter("workqueue_retries_total", "Looks that failed and are repeated.", ["name"])
QUEUE_SECONDS = Histogram("workqueue_queue_duration_seconds", "From being put on the queue until the look.", ["name"])
WORK_SECONDS = Histogram("workqueue_work_duration_seconds", "Duration of a look.", ["name"])
UNFINISHED_SECONDS = Gauge("workqueue_unfinished_work_seconds", "Duration of the longest look that is under way.", ["name"])
RECONCILES = Counter("controller_runtime_reconcile_total", "Looks, by what came of them.", ["controller", "result"])
RECONCILE_ERRORS = Counter("controller_runtime_reconcile_errors_total", "Looks that failed.", ["controller"])
RECONCILE_SECONDS = Histogram("controller_runtime_reconcile_time_seconds", "Duration of a look.", ["controller"])
ACTIVE_WORKERS = Gauge("controller_runtime_active_workers", "Looks under way.", ["controller"])
IS_LEADER = Gauge("leader_election_master_status", "1 while this replica acts.", ["name"])
WATCH_AGE_SECONDS = Gauge("rlvr_watch_age_seconds", "Since the API server was last heard, by any watch or list.")
RESTARTS = Counter("rlvr_job_restarts_total", "Attempts and pods that were replaced after a failure.", ["namespace", "role"])
RECOVERY_SECONDS = Histogram(
    "rlvr_job_recovery_seconds", "From the loss of a part until the job ran again.", ["role"], buckets=LONG_BUCKETS
)


class JobPhases(Collector):
    """`rlvr_jobs{namespace,phase}`: counted when it is asked for, so that jobs that are gone leave nothing behind."""

    def __init__(self) -> None:
        self._phases: dict[tuple[str, str], str] = {}
        REGISTRY.register(self)

    def note(self, key: tuple[str, str], phase: str | None) -> None:
        """A job's phase; None when it is gone."""
        if phase is None:
            self._phases.pop(key, None)
        else:
            self._phases[key] = phase

    def collect(self) -> list[GaugeMetricFamily]:
        """For the registry."""
        family = GaugeMetricFamily("rlvr_jobs", "Jobs, by phase.", labels=["namespace", "phase"])
        counts: dict[tuple[str, str], int] = {}
        for (namespace, _), phase in list(self._phases.items()):
            counts[namespace, phase] = counts.get((namespace, phase), 0) + 1
        for labels, count in sorted(counts.items()):
            family.add_metric(list(labels), count)
        return [family]
