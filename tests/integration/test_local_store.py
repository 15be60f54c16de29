"""What a local run does with a store that is not its own: it asks before anything starts, and brings the model from it."""

import json

import boto3
import pytest

from rlvr_api.loading import load_job
from rlvr_operator.local.preflight import find_problems
from rlvr_trainer.context import BadInputError
from rlvr_trainer.model_source import download_model


@pytest.fixture
def job(s3):
    def make(bucket, model="s3://models/base"):
        return load_job(
            json.dumps({
                "apiVersion": "rlvr.dev/v1alpha1",
                "kind": "RLVRJob",
                "metadata": {"name": "job"},
                "spec": {
                    "model": {"uri": model},
                    "storage": {"uri": f"s3://{bucket}", "endpoint": s3.endpoint},
                    "environments": [{"name": "sums", "arithmetic": {}}],
                    "stages": [{"name": "climb", "rlvr": {"steps": 4}}],
                },
            }).encode()
        )  # fmt: skip

    return make


@pytest.fixture
def credentials(monkeypatch):
    def set_to(key, secret):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)

    return set_to


def test_credentials_and_bucket_are_looked_at_before_anything_starts(s3, job, credentials, tmp_path):
    s3.make_bucket("there")
    credentials(s3.access_key, s3.secret_key)
    assert find_problems(job("there"), tmp_path) == ()
    (missing,) = find_problems(job("not-there"), tmp_path)
    assert missing.path == "spec.storage.uri"
    assert "answered 404 for bucket 'not-there': create the bucket" in missing.text
    credentials(s3.access_key, "wrong")
    (refused,) = find_problems(job("there"), tmp_path)
    assert "answered 403 for bucket 'there': check AWS_ACCESS_KEY_ID" in refused.text


def test_a_model_is_fetched_once(s3, job, credentials, tmp_path):
    credentials(s3.access_key, s3.secret_key)
    s3.make_bucket("models")
    client = boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1")
    for name, body in {"config.json": b"{}", "part/model.safetensors": b"weights"}.items():
        client.put_object(Bucket="models", Key=f"base/{name}", Body=body)
    client.put_object(Bucket="models", Key="base2/config.json", Body=b"another model")
    client.close()
    storage = job("models").spec.storage
    assert download_model("s3://models/base", storage, tmp_path) == len(b"{}" + b"weights")
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()) == [
        "config.json",
        "part/model.safetensors",
    ]
    assert (tmp_path / "part" / "model.safetensors").read_bytes() == b"weights"
    assert download_model("s3://models/base/", storage, tmp_path) == 0
    (tmp_path / "config.json").write_bytes(b"{")
    assert download_model("s3://models/base", storage, tmp_path) == len(b"{}")
    with pytest.raises(BadInputError, match="nothing is below s3://models/none"):
        download_model("s3://models/none", storage, tmp_path)
