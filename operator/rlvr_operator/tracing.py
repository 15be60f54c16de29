"""Traces of the operator: a span for each look at a job, linked to the trace that the job's pods go on with.

A job's trace id is its uid, so that operator and pods name the same trace without a word between them. Nothing is exported unless
OTEL_EXPORTER_OTLP_ENDPOINT (or the variable for traces alone) is set.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from rlvr_operator.render.site import traceparent
from rlvr_operator.work_queue import Key

VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class SystemRandomIds(RandomIdGenerator):
    """Ids that a seeded program does not repeat."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def generate_span_id(self) -> int:
        """A random 64-bit id."""
        return self._random.getrandbits(64) or 1

    def generate_trace_id(self) -> int:
        """A random 128-bit id."""
        return self._random.getrandbits(128) or 1


def start_tracing() -> TracerProvider:
    """Start the export, if an endpoint is set; `shutdown` of what is returned ends it."""
    provider = TracerProvider(id_generator=SystemRandomIds(), resource=Resource.create({"service.name": "rlvr-operator"}))
    if any(os.environ.get(name) for name in VARIABLES):
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
    return provider


@contextmanager
def reconcile_span(key: Key, uid: str | None) -> Iterator[trace.Span]:
    """A span for one look at a job."""
    links = [] if uid is None else [trace.Link(job_context(uid))]
    with trace.get_tracer("rlvr_operator").start_as_current_span("reconcile", links=links) as span:
        span.set_attribute("k8s.namespace.name", key[0])
        span.set_attribute("rlvr.job", key[1])
        yield span


def job_context(uid: str) -> trace.SpanContext:
    """The context of a job's trace, which its pods know from `rlvr_operator.render.site.traceparent`."""
    _, trace_id, span_id, flags = traceparent(uid).split("-")
    return trace.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16)))
