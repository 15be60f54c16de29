"""The tiny job trains in real pods, from `kubectl apply` to `Complete`, and its remains are where they should be."""

import io

import pyarrow.parquet as parquet
import pytest

pytestmark = pytest.mark.timeout(900)

READY_SECONDS = 300
TRAIN_SECONDS = 300


def test_the_example_trains_to_its_end(train, store):
    job = train()
    job.wait(lambda job: job.status.get("phase") == "Running", READY_SECONDS, "running")
    job.wait(lambda job: job.condition("Complete").get("status") == "True", TRAIN_SECONDS, "complete")
    status = job.status
    assert (status["executionAttempt"], status["progress"]["step"], status["restarts"]) == (1, 20, 0)
    assert all(role["restarts"] == 0 for role in status["roles"])
    keys = store.keys(job.namespace)
    assert any(key.endswith("MANIFEST.json") for key in keys)
    rollouts = [key for key in keys if key.endswith(".parquet")]
    table = parquet.read_table(io.BytesIO(store.client().get_object(Bucket="runs", Key=rollouts[0])["Body"].read()))
    assert table.num_rows > 0
    job.wait(lambda job: job.status["phase"] == "Succeeded" and not job.pods("rollout"), 120, "engines are gone")
    shown = job.shown()
    assert [shown[name] for name in ("PHASE", "STEP", "ROLLOUTS")] == ["Succeeded", "20", "0/0"]
