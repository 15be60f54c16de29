"""OpenTelemetry of the learner's process: traces and metrics over OTLP/HTTP, and the names that they go by.

    spec.observability.tracing -> start() -> global providers -> spans and instruments anywhere in the process -> shutdown()

One trace tells a group's story: `rollout_group` is its root, with `sample`, `generate` and `score` below it and, through the W3C header
of each request, the engine's and the verifier's spans below those. A training step is a trace of its own, `train_step`, which links to
the root of every group that it consumed; `publish_weights` and `checkpoint` are below it where they belong to a step.

Span and trace ids come from `os.urandom`: a program that seeds `random` would repeat the ids of its last run. Unset tracing costs
nothing: the API's no-op tracer stays in place. Exporting never blocks a step; spans that the collector does not take in time are dropped.
Headers, certificates and compression of the exporter are read from the usual OTEL_EXPORTER_OTLP_ variables.

Not covered: logs, and traces of vLLM and of the verifier service, which export their own.
"""

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from enum import StrEnum

from opentelemetry import context, metrics, propagate, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from rlvr_api.observability import Tracing
from rlvr_trainer.metrics import StepMetrics

SERVICE_NAME = "rlvr-learner"
SCOPE = "rlvr_trainer"
"""Name of the tracer and the meter."""
JOB_TRACEPARENT = "TRACEPARENT"
"""Environment variable with the W3C context of the job's trace; the operator sets it."""
MAX_LINKS = 16_384
"""Links of one span; the SDK's own 128 would cut a large batch off without a word."""
EXPORT_TIMEOUT_SECONDS = 10.0
METRIC_INTERVAL_SECONDS = 10.0
SHUTDOWN_SECONDS = 5.0


class SpanName(StrEnum):
    """Spans of this process."""

    ROLLOUT_GROUP = "rollout_group"
    """Root: one prompt from its admission to its verdicts."""
    SAMPLE = "sample"
    """Asking the verifier service for the task."""
    GENERATE = "generate"
    """Asking an engine for all completions of the prompt; once for each try."""
    SCORE = "score"
    """Asking the verifier service for the verdicts."""
    TRAIN_STEP = "train_step"
    """Root: one optimizer step; links to the groups that it consumed."""
    PUBLISH_WEIGHTS = "publish_weights"
    """Bringing a weight version to the engines, probe included."""
    CHECKPOINT = "checkpoint"
    """Copying the state and committing it in the store."""


class EventName(StrEnum):
    """Events of spans."""

    GOVERNOR = "governor"
    """train_step: what the governor of asynchrony did after it, with `action` and `message`."""


class Attribute(StrEnum):
    """Attributes of spans, metrics and the resource."""

    JOB = "rlvr.job"
    """Resource: name of the job."""
    ATTEMPT = "rlvr.attempt"
    """Resource: number of the learner's attempt."""
    EPISODE = "rlvr.episode"
    """rollout_group: its id, unique in the run."""
    ENVIRONMENT = "rlvr.environment"
    """rollout_group, and metrics by level: name of the environment."""
    LEVEL = "rlvr.level"
    """rollout_group: difficulty."""
    ENGINE = "rlvr.engine"
    """generate: name of the engine."""
    TOKENS = "rlvr.tokens"
    """generate: completion tokens; train_step: tokens trained."""
    PASSED = "rlvr.passed"
    """score: completions that passed."""
    STAGE = "rlvr.stage"
    """train_step: name of the stage."""
    STEP = "rlvr.step"
    """train_step, checkpoint: optimizer step."""
    GROUPS = "rlvr.groups"
    """train_step: groups consumed; links go to those whose trace is sampled."""
    WEIGHT_VERSION = "rlvr.weight_version"
    """train_step, publish_weights: version of the weights."""
    PART = "rlvr.part"
    """Metric of time: what the learner waited for or did."""


class UrandomIds(IdGenerator):
    """Ids from the kernel, whatever the program seeds."""

    def generate_span_id(self) -> int:
        """A 64-bit id, never 0."""
        return _random_id(8)

    def generate_trace_id(self) -> int:
        """A 128-bit id, never 0."""
        return _random_id(16)


@dataclass(frozen=True)
class Telemetry:
    """The providers of this process, or none when nothing is exported."""

    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None

    def shutdown(self, timeout_seconds: float = SHUTDOWN_SECONDS) -> bool:
        """Export what is left and stop; returns within `timeout_seconds`, whatever the collector does.

        Returns:
            Whether everything ended in time.
        """
        providers = [provider for provider in (self.tracer_provider, self.meter_provider) if provider is not None]
        # The SDK's own bounds do not reach a request that hangs, so the work is left to threads that may be abandoned.
        threads = [threading.Thread(target=provider.shutdown, name="telemetry-shutdown", daemon=True) for provider in providers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout_seconds / len(threads))
        return not any(thread.is_alive() for thread in threads)


def start(tracing: Tracing | None, job: str, attempt: int) -> Telemetry:
    """Set up the process's global tracer and meter providers; call it once, before anything traces.

    Args:
        tracing: where to export to and what share of traces; None leaves the API's no-ops in place.
        job: name of the job.
        attempt: number of the learner's attempt.
    """
    if tracing is None:
        return Telemetry()
    telemetry = build(tracing, job, attempt)
    if telemetry.tracer_provider is not None and telemetry.meter_provider is not None:
        trace.set_tracer_provider(telemetry.tracer_provider)
        metrics.set_meter_provider(telemetry.meter_provider)
    return telemetry


def build(tracing: Tracing, job: str, attempt: int) -> Telemetry:
    """Providers that export to `tracing.endpoint`, without making them the process's own."""
    endpoint = tracing.endpoint.rstrip("/")
    attributes: Mapping[str, AttributeValue] = {"service.name": SERVICE_NAME, Attribute.JOB.value: job, Attribute.ATTEMPT.value: attempt}
    resource = Resource.create(attributes)
    tracers = TracerProvider(
        resource=resource,
        sampler=ParentBased(TraceIdRatioBased(tracing.sampling_ratio)),
        id_generator=UrandomIds(),
        span_limits=SpanLimits(max_links=MAX_LINKS),
        shutdown_on_exit=False,
    )
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=EXPORT_TIMEOUT_SECONDS)))
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(f"{endpoint}/v1/metrics", timeout=EXPORT_TIMEOUT_SECONDS),
        export_interval_millis=METRIC_INTERVAL_SECONDS * 1000,
        export_timeout_millis=EXPORT_TIMEOUT_SECONDS * 1000,
    )
    return Telemetry(tracers, MeterProvider([reader], resource=resource, shutdown_on_exit=False))


def tracer() -> trace.Tracer:
    """This package's tracer; a no-op until `start` has set a provider."""
    return trace.get_tracer(SCOPE)


def inject_context(headers: MutableMapping[str, str]) -> None:
    """Add the W3C headers of the current span to the headers of a request; adds nothing outside a span."""
    propagate.inject(headers)


def current_traceparent() -> str:
    """W3C `traceparent` of the current span; empty when there is none."""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


def links_to(traceparents: Iterable[str]) -> list[trace.Link]:
    """A link to each span named by a `traceparent`, in order, each once.

    Empty and malformed ones, and those of traces that are not sampled, are left out: their links would lead nowhere.
    """
    found: dict[tuple[int, int], trace.Link] = {}
    for traceparent in traceparents:
        remote = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, context=context.Context())
        span_context = trace.get_current_span(remote).get_span_context()
        if span_context.is_valid and span_context.trace_flags.sampled:
            found.setdefault((span_context.trace_id, span_context.span_id), trace.Link(span_context))
    return list(found.values())


@contextlib.contextmanager
def root_span(name: SpanName, attributes: Mapping[str, AttributeValue], traceparents: Iterable[str] = ()) -> Iterator[trace.Span]:
    """A current span that begins a trace of its own, with links to the spans of `traceparents`."""
    links = links_to(traceparents)
    with tracer().start_as_current_span(name, context=context.Context(), attributes=dict(attributes), links=links) as span:
        yield span


@contextlib.contextmanager
def train_step_span(stage: str, step: int, traceparents: Iterable[str]) -> Iterator[trace.Span]:
    """The root span of an optimizer step, linked to the groups that it consumes (`RolloutGroup.traceparent`) and to the job's trace."""
    consumed = list(traceparents)
    attributes: dict[str, AttributeValue] = {Attribute.STAGE: stage, Attribute.STEP: step, Attribute.GROUPS: len(consumed)}
    with root_span(SpanName.TRAIN_STEP, attributes, [*consumed, os.environ.get(JOB_TRACEPARENT, "")]) as span:
        yield span


class StepInstruments:
    """Gauges and counters of a run, fed once an optimizer step. Uses `meter`, or the process's own."""

    def __init__(self, meter: metrics.Meter | None = None) -> None:
        meter = meter or metrics.get_meter(SCOPE)
        self._gauges = {name: meter.create_gauge(f"rlvr.{name}", unit, text) for name, (unit, text) in GAUGES.items()}
        self._level = meter.create_gauge("rlvr.level", "1", "Current level of the environment")
        self._tokens = meter.create_counter("rlvr.trained_tokens", "{token}", "Tokens trained on")
        self._rollouts = meter.create_counter("rlvr.rollouts", "{rollout}", "Rollouts consumed")
        self._seconds = meter.create_counter("rlvr.learner_seconds", "s", "The learner's time by part")

    def record(self, step: StepMetrics) -> None:
        """Take in one step; a value that the step does not have leaves its gauge alone."""
        stage = {Attribute.STAGE.value: step.stage}
        for name, gauge in self._gauges.items():
            value = getattr(step, name)
            if value is not None:
                gauge.set(value, stage)
        for environment, level in step.levels.items():
            self._level.set(level, {**stage, Attribute.ENVIRONMENT.value: environment})
        self._tokens.add(step.tokens_trained, stage)
        self._rollouts.add(step.rollouts, stage)
        for part, seconds in step.phase_seconds.items():
            self._seconds.add(seconds, {**stage, Attribute.PART.value: part})


GAUGES: Mapping[str, tuple[str, str]] = {
    "step": ("{step}", "Optimizer steps of the stage"),
    "weight_version": ("1", "Version of the weights after the step"),
    "reward_mean": ("1", "Mean score of the judged rollouts of the step"),
    "pass_rate": ("1", "Share of the judged rollouts with verdict pass"),
    "loss": ("1", "Loss of the step"),
    "gradient_norm": ("1", "Global gradient norm before clipping"),
    "learning_rate": ("1", "Learning rate of the step"),
    "staleness_mean": ("{step}", "Mean age of the tokens, in optimizer steps"),
    "staleness_max": ("{step}", "Largest age of a token, in optimizer steps"),
    "mismatch_kl": ("nat", "KL divergence of the sampler from the trainer at the sampled tokens"),
    "mismatch_max": ("nat", "Largest difference of a token's log-prob between sampler and trainer"),
    "ess": ("1", "Effective sample size of the importance weights, as a share of the tokens"),
    "chi2": ("1", "Chi-square divergence of the trainer from the sampler at the sampled tokens"),
    "clip_fraction": ("1", "Share of tokens whose ratio was clipped"),
    "rejected_share": ("1", "Share of tokens that correction or rejection dropped"),
    "entropy": ("nat", "Mean entropy of the next-token distribution"),
    "reference_kl": ("nat", "KL divergence of the policy from the reference policy at the sampled tokens"),
    "explained_variance": ("1", "Share of the returns' variance that the critic explains"),
    "tokens_per_second": ("{token}/s", "Completion tokens generated over the step's wall time"),
    "paused_seconds": ("s", "Time that engines were paused for the step's weight update"),
    "engines": ("{engine}", "Engines that took part in the step's weight update"),
}
"""Gauges, each named after the field of `StepMetrics` that it shows: unit and description."""


def _random_id(num_bytes: int) -> int:
    while True:
        value = int.from_bytes(os.urandom(num_bytes), "big")
        if value:
            return value
