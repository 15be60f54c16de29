"""Traces of the verifier service over OTLP/HTTP; ids from the kernel, whatever a task generator seeds."""

import os

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from rlvr_api.observability import Tracing


class UrandomIds(IdGenerator):
    """Ids from the kernel."""

    def generate_span_id(self) -> int:
        """A 64-bit id, never 0."""
        return int.from_bytes(os.urandom(8), "big") or 1

    def generate_trace_id(self) -> int:
        """A 128-bit id, never 0."""
        return int.from_bytes(os.urandom(16), "big") or 1


def start(tracing: Tracing | None, job: str) -> None:
    """Set the process's tracer provider; does nothing when the job exports no traces."""
    if tracing is None:
        return
    resource = Resource.create({"service.name": "rlvr-verifier", "rlvr.job": job})
    provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(tracing.sampling_ratio)), id_generator=UrandomIds())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{tracing.endpoint.rstrip('/')}/v1/traces", timeout=10)))
    trace.set_tracer_provider(provider)
