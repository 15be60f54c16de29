"""One story over real OTLP/HTTP: a group's trace, the engine's and the verifier's part in it, and the step that links to it.

A program that seeds everything traces a group and a step, sends its context over HTTP, and is run twice: the ids of the runs differ.
"""

import json
import subprocess
import sys
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PROGRAM = """
import random, sys
import httpx, torch
random.seed(0); torch.manual_seed(0)
from rlvr_api.observability import Tracing
from rlvr_trainer import telemetry
from rlvr_trainer.metrics import StepMetrics
from rlvr_trainer.telemetry import Attribute, SpanName, StepInstruments

endpoint = sys.argv[1]
running = telemetry.start(Tracing(endpoint=endpoint), "arithmetic", 7)
instruments = StepInstruments()
traceparents = []
for group in range(3):
    with telemetry.root_span(SpanName.ROLLOUT_GROUP, {Attribute.EPISODE: f"climb/{group}"}):
        traceparents.append(telemetry.current_traceparent())
        for name in (SpanName.SAMPLE, SpanName.GENERATE, SpanName.SCORE):
            with telemetry.tracer().start_as_current_span(name):
                headers = {"x-part": name}
                telemetry.inject_context(headers)
                httpx.post(f"{endpoint}/part", headers=headers, timeout=10).raise_for_status()
with telemetry.train_step_span("climb", 1, traceparents):
    with telemetry.tracer().start_as_current_span(SpanName.PUBLISH_WEIGHTS, attributes={Attribute.WEIGHT_VERSION: 1}):
        pass
instruments.record(StepMetrics(stage="climb", step=1, attempt=7, time="2026-01-01T00:00:00Z", weight_version=1, pass_rate=0.25, groups=3,
                               live_groups=2, rollouts=12, tokens_trained=80, phase_seconds={"train": 1.5}))
assert running.shutdown(10), "telemetry did not end in time"
"""


class Receiver(BaseHTTPRequestHandler):
    """An OTLP/HTTP collector, and the parts that the program calls."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.calls[self.path].append((dict(self.headers), body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.calls = defaultdict(list)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


def run_program(server):
    endpoint = f"http://127.0.0.1:{server.server_port}"
    subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM, endpoint], check=True, timeout=120)


def spans_of(server):
    requests = [ExportTraceServiceRequest.FromString(body) for _, body in server.calls["/v1/traces"]]
    return [
        (resource.resource, span)
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def attributes_of(item):
    return {entry.key: entry.value.string_value or entry.value.int_value for entry in item.attributes}


def test_one_trace_from_sampling_to_the_verdict_and_links_from_the_step_that_consumed_it(collector):
    run_program(collector)
    spans = spans_of(collector)
    by_name = defaultdict(list)
    for resource, span in spans:
        by_name[span.name].append(span)
        assert {"service.name": "rlvr-learner", "rlvr.job": "arithmetic", "rlvr.attempt": 7}.items() <= attributes_of(resource).items()
    roots = {span.span_id: span for span in by_name["rollout_group"]}
    assert len(roots) == 3
    assert all(span.parent_span_id == b"" for span in roots.values())
    for name in ("sample", "generate", "score"):
        assert {span.parent_span_id for span in by_name[name]} == roots.keys()
        assert all(roots[span.parent_span_id].trace_id == span.trace_id for span in by_name[name])
    (step,) = by_name["train_step"]
    assert step.parent_span_id == b""
    assert [(link.trace_id, link.span_id) for link in step.links] == [(root.trace_id, root.span_id) for root in by_name["rollout_group"]]
    assert attributes_of(step) == {"rlvr.stage": "climb", "rlvr.step": 1, "rlvr.groups": 3}
    assert [span.parent_span_id for span in by_name["publish_weights"]] == [step.span_id]
    # The parts that were called got the context of the very span that called them.
    called = {headers["traceparent"] for headers, _ in collector.calls["/part"]}
    assert called == {
        f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01" for name in ("sample", "generate", "score") for span in by_name[name]
    }


def test_a_seeded_program_run_twice_repeats_no_id_and_sends_its_metrics(collector):
    run_program(collector)
    run_program(collector)
    spans = spans_of(collector)
    assert len({span.span_id for _, span in spans}) == len(spans) == 2 * (3 * 4 + 2)
    points = {}
    for _, body in collector.calls["/v1/metrics"]:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    data = metric.gauge if metric.HasField("gauge") else metric.sum
                    points[metric.name] = [point.as_double or point.as_int for point in data.data_points]
    assert points["rlvr.pass_rate"] == [0.25]
    assert points["rlvr.rollouts"] == [12]
    assert points["rlvr.learner_seconds"] == [1.5]
    assert "rlvr.ess" not in points, json.dumps(points)
