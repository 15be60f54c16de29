"""Prometheus metrics of one verifier service.

    an item arrives -> queued -> a scorer takes it (its wait is observed) -> in flight -> verdict

`rlvr_verifier_queue_wait_seconds` is what the operator scales by: the mean over a scrape interval is the growth of `_sum` over that of
`_count`. It runs from the arrival of the request until a scorer takes the item: a worker process for slow environments, a sandbox slot for
code, the event loop for the rest. Not covered: time on the network, and items refused with 429, which never waited.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rlvr_api.wire import CanaryVerdict, Verdict, VerdictStatus

WAIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class QueueTicket:
    """One item on its way through the queue."""

    def __init__(self, instruments: "Instruments", environment: str, arrived: float) -> None:
        self._instruments, self._environment, self._arrived = instruments, environment, arrived
        self.begun: float | None = None
        """Monotonic time at which a scorer took it."""
        instruments.queued.inc()

    def begin(self) -> None:
        """A scorer takes the item; a second try of the same item is no second wait."""
        if self.begun is None:
            self.begun = time.monotonic()
            self._instruments.queued.dec()
            self._instruments.in_flight.inc()
            self._instruments.queue_wait.labels(self._environment).observe(self.begun - self._arrived)

    def close(self) -> None:
        """The item is judged, or given up."""
        (self._instruments.queued if self.begun is None else self._instruments.in_flight).dec()


class Instruments:
    """Counters, gauges and histograms in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.verdicts = Counter("rlvr_verifier_verdicts", "Verdicts", ["environment", "status"], registry=self.registry)
        self.seconds = Histogram("rlvr_verifier_verdict_seconds", "Scoring time without queueing", ["environment"], registry=self.registry)
        self.queue_wait = Histogram(
            "rlvr_verifier_queue_wait_seconds",
            "From the arrival of an item until a scorer takes it",
            ["environment"],
            registry=self.registry,
            buckets=WAIT_BUCKETS,
        )
        self.sandbox_level = Gauge(
            "rlvr_verifier_sandbox_level", "Level of the sandbox as measured at the start; 1.5 is L1u", registry=self.registry
        )
        self.sandbox_blocked = Gauge(
            "rlvr_verifier_sandbox_blocked", "1 when the attack failed inside a slot", ["attack"], registry=self.registry
        )
        self.certified = Gauge("rlvr_verifier_certified", "1 when it has a valid certificate", ["environment"], registry=self.registry)
        self.audits = Counter("rlvr_verifier_audits", "Audited verdicts", ["environment", "paid", "right", "flaky"], registry=self.registry)
        self.canaries = Counter("rlvr_verifier_canaries", "Canaries", ["environment", "tag", "kept"], registry=self.registry)
        self.queued = Gauge("rlvr_verifier_queued_items", "Items that wait for a scorer", registry=self.registry)
        self.in_flight = Gauge("rlvr_verifier_in_flight_items", "Items that a scorer works on", registry=self.registry)

    def note_verdict(self, environment: str, verdict: Verdict) -> None:
        """Count a verdict, and its audit if it has one."""
        self.verdicts.labels(environment, verdict.status.value).inc()
        self.seconds.labels(environment).observe(verdict.seconds)
        if verdict.audit is not None:
            paid, right = verdict.status is VerdictStatus.PASS, verdict.audit.score > 0
            self.audits.labels(environment, _word(paid), _word(right), _word(verdict.audit.flaky)).inc()

    def note_canary(self, verdict: CanaryVerdict) -> None:
        """Count a canary."""
        self.canaries.labels(verdict.environment, verdict.tag.value, _word(verdict.kept)).inc()

    @contextmanager
    def queue(self, environment: str, arrived: float) -> Iterator[QueueTicket]:
        """An item that arrived at that monotonic time, from now until its verdict."""
        ticket = QueueTicket(self, environment, arrived)
        try:
            yield ticket
        finally:
            ticket.close()


def _word(value: bool) -> str:
    return "true" if value else "false"
