"""Ids, links, context headers and instruments, without a collector."""

import random
import socket
import time

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from rlvr_api.observability import Tracing
from rlvr_trainer import telemetry
from rlvr_trainer.metrics import StepMetrics
from rlvr_trainer.telemetry import GAUGES, StepInstruments, UrandomIds

SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_ids_do_not_follow_the_seed():
    seen = set()
    for _ in range(50):
        random.seed(0)
        seen.add((UrandomIds().generate_trace_id(), UrandomIds().generate_span_id()))
    assert len(seen) == 50
    assert all(0 < trace_id < 2**128 and 0 < span_id < 2**64 for trace_id, span_id in seen)


def test_links_are_to_sampled_valid_spans_each_once_and_in_order():
    other = SAMPLED.replace("902b7", "902b8")
    links = telemetry.links_to([SAMPLED, "", "nonsense", SAMPLED, SAMPLED[:-1] + "0", other])
    assert [f"{link.context.span_id:016x}" for link in links] == ["00f067aa0ba902b7", "00f067aa0ba902b8"]
    assert {f"{link.context.trace_id:032x}" for link in links} == {"4bf92f3577b34da6a3ce929d0e0e4736"}


def test_a_span_reaches_headers_as_w3c_context_and_nothing_else_does():
    tracer = TracerProvider(id_generator=UrandomIds()).get_tracer("t")
    with tracer.start_as_current_span("outer") as span:
        headers = {"accept": "x"}
        telemetry.inject_context(headers)
        context = span.get_span_context()
        assert headers["traceparent"] == f"00-{context.trace_id:032x}-{context.span_id:016x}-01" == telemetry.current_traceparent()
    headers = {}
    telemetry.inject_context(headers)
    assert headers == {}
    assert telemetry.current_traceparent() == ""


def test_unset_tracing_is_a_no_op():
    unset = telemetry.start(None, "job", 1)
    assert unset.shutdown(0.01)
    with telemetry.train_step_span("climb", 1, [SAMPLED]) as span:
        assert not span.is_recording()


def test_more_links_than_the_sdk_keeps_by_default_are_kept():
    built = telemetry.build(Tracing(endpoint="http://127.0.0.1:9"), "job", 1)
    links = telemetry.links_to(f"00-{'a' * 32}-{number:016x}-01" for number in range(1, 2001))
    span = built.tracer_provider.get_tracer("t").start_span("train_step", links=links)
    assert len(span.links) == 2000
    assert built.shutdown(5)


def test_shutdown_is_bounded_when_the_collector_hangs(silent_server):
    built = telemetry.build(Tracing(endpoint=silent_server), "job", 1)
    with built.tracer_provider.get_tracer("t").start_as_current_span("lost"):
        pass
    started = time.monotonic()
    assert not built.shutdown(0.3)
    assert time.monotonic() - started < 3


def test_the_sampling_ratio_is_the_share_of_traces_kept():
    none = telemetry.build(Tracing(endpoint="http://127.0.0.1:9", sampling_ratio=0.0), "job", 1)
    with none.tracer_provider.get_tracer("t").start_as_current_span("root") as span:
        assert not span.is_recording()
        assert telemetry.current_traceparent().endswith("-00")
    assert none.shutdown(5)


def test_every_gauge_is_a_number_of_the_step_and_reaches_the_reader():
    values = {name: 0.5 for name, field in StepMetrics.model_fields.items() if name in GAUGES and "float" in str(field.annotation)}
    step = StepMetrics(
        stage="climb", step=3, attempt=1, time="2026-01-01T00:00:00Z", weight_version=4, groups=2, live_groups=1, rollouts=8,
        tokens_trained=40, levels={"sums": 1}, engines=2, phase_seconds={"train": 1.5, "wait": 0.5}, **values,
    )  # fmt: skip
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    instruments = StepInstruments(provider.get_meter("t"))
    instruments.record(step)
    instruments.record(step.model_copy(update={"loss": None, "ess": 0.25}))
    metrics = {
        metric.name: {tuple(sorted(point.attributes.items())): point.value for point in metric.data.data_points}
        for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    }
    stage = ("rlvr.stage", "climb")
    assert {f"rlvr.{name}" for name in GAUGES} <= metrics.keys()
    assert metrics["rlvr.ess"] == {(stage,): 0.25}
    assert metrics["rlvr.loss"] == {(stage,): 0.5}
    assert metrics["rlvr.level"] == {(("rlvr.environment", "sums"), stage): 1}
    assert metrics["rlvr.learner_seconds"] == {(("rlvr.part", "train"), stage): 3.0, (("rlvr.part", "wait"), stage): 1.0}
    assert metrics["rlvr.rollouts"] == {(stage,): 16}
    provider.shutdown()


@pytest.fixture
def silent_server():
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
