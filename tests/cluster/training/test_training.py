"""The tiny job trains in real pods, from `kubectl apply` to `Succeeded`, and its remains are where they should be."""

import io
import json
import shutil
import subprocess
import time

import pyarrow.parquet as parquet
import pytest
from commands import kubectl, wait_for
from training_cluster import BUCKET, READY_SECONDS

pytestmark = pytest.mark.timeout(900)

TRAIN_SECONDS = 300
OTLP_PORT = 14318


@pytest.fixture
def spans(cluster, tmp_path):
    """An OpenTelemetry collector on the node; gives its address for pods, and reads what it has got so far."""
    if shutil.which("otelcol") is None:
        pytest.skip("needs otelcol on PATH")
    file, settings = tmp_path / "spans.json", tmp_path / "collector.yaml"
    settings.write_text(
        json.dumps({
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"0.0.0.0:{OTLP_PORT}"}}}},
            "exporters": {"file": {"path": str(file), "flush_interval": "200ms"}},
            "service": {
                "pipelines": {kind: {"receivers": ["otlp"], "exporters": ["file"]} for kind in ("traces", "metrics")},
                "telemetry": {"metrics": {"level": "none"}},
            },
        })
    )  # fmt: skip
    address = kubectl("get", "nodes", "-l", "type!=fake", "-o", "jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}")
    with (tmp_path / "collector.log").open("w") as log:
        collector = subprocess.Popen(["otelcol", "--config", str(settings)], stdout=log, stderr=log)

    def read():
        lines = file.read_text().splitlines() if file.exists() else []
        for batch in (json.loads(line) for line in lines if line.startswith('{"resourceSpans"')):
            for resource in batch["resourceSpans"]:
                attributes = {item["key"]: item["value"].get("stringValue") for item in resource["resource"]["attributes"]}
                for scope in resource["scopeSpans"]:
                    yield from ((attributes.get("service.name"), span) for span in scope["spans"])

    yield f"http://{address}:{OTLP_PORT}", read
    collector.terminate()
    collector.wait(30)


def test_the_example_trains_to_its_end(train, store, spans):
    endpoint, read_spans = spans
    job = train(observability={"tracing": {"endpoint": endpoint}})
    job.wait(lambda job: job.status.get("phase") == "Running", READY_SECONDS, "running")
    job.wait(lambda job: job.condition("Complete").get("status") == "True", TRAIN_SECONDS, "complete")
    status = job.status
    assert (status["executionAttempt"], status["progress"]["step"], status["restarts"]) == (1, 20, 0)
    assert all(role["restarts"] == 0 for role in status["roles"])
    keys = store.keys(job.namespace)
    assert any(key.endswith("MANIFEST.json") for key in keys)
    rollouts = [key for key in keys if key.endswith(".parquet")]
    table = parquet.read_table(io.BytesIO(store.client().get_object(Bucket=BUCKET, Key=rollouts[0])["Body"].read()))
    assert table.num_rows > 0
    job.wait(lambda job: job.status["phase"] == "Succeeded" and not job.pods("rollout"), 120, "engines are gone")
    shown = job.shown()
    assert [shown[name] for name in ("PHASE", "STEP", "ROLLOUTS")] == ["Succeeded", "20", "0/0"]
    wait_for(lambda: crossing_all_pods(read_spans()), 30, "a trace with spans of learner, engine and verifier")
    steps = [span for _, span in read_spans() if span["name"] == "train_step"]
    uid = job.get()["metadata"]["uid"].replace("-", "")
    assert steps
    assert all(any(link["traceId"] == uid for link in step.get("links", ())) for step in steps)


def crossing_all_pods(found):
    """Traces that have spans of all three services."""
    services = {}
    for service, span in found:
        services.setdefault(span["traceId"], set()).add(service)
    return [trace for trace, names in services.items() if {"rlvr-learner", "rlvr-rollout", "rlvr-verifier"} <= names]


def test_a_job_that_names_no_bucket_says_so_and_goes_on_when_it_is_made(train, store):
    job = train(storage={"uri": "s3://not-yet/jobs"})
    job.wait(lambda job: job.condition("LearnerReady").get("reason") == "PreflightRefused", READY_SECONDS, "refused")
    condition = job.condition("LearnerReady")
    assert "not-yet" in condition["message"]
    assert (job.status["phase"], job.pods("rollout"), job.status["restarts"]) == ("Provisioning", [], 0)
    store.client().create_bucket(Bucket="not-yet")
    job.wait(lambda job: job.condition("LearnerReady").get("status") == "True", 180, "the preflight passes")
    job.wait(lambda job: job.pods("rollout"), 30, "engines start")
    kubectl("-n", job.namespace, "delete", "rlvr", job.name)
    started = time.monotonic()
    wait_for(lambda: not job.pods(), 90, "all pods are gone")
    assert time.monotonic() - started < 90
