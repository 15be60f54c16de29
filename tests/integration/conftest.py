"""A real S3 server for a test session, and a bucket or a folder of its own for each test that asks."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import boto3
import pytest
from botocore.config import Config

from rlvr_api.embedded_s3 import EmbeddedS3


@dataclass(frozen=True)
class S3Server:
    """Where the server is, and whom it knows."""

    endpoint: str
    access_key: str
    secret_key: str
    limited_access_key: str
    """May do nothing but read a bucket that does not exist."""
    limited_secret_key: str
    bucket: str
    """Shared by all folders: a bucket takes seven volumes of the server, which has as many as the disk has room for."""

    def folder(self, name: str) -> str:
        """URI of a place that no other test has."""
        return f"s3://{self.bucket}/{name}"

    def make_bucket(self, name: str) -> str:
        """Creates an empty bucket."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(connect_timeout=5, read_timeout=30, s3={"addressing_style": "path"}),
        )
        client.create_bucket(Bucket=name)
        client.close()
        return name


def identity(name: str, actions: list[str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": f"{name}-key", "secretKey": f"{name}-secret"}], "actions": actions}


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS on a free port of loopback, with its data in a temporary folder."""
    folder = tmp_path_factory.mktemp("s3")
    everything = identity("all", ["Admin", "Read", "Write", "List", "Tagging"])
    (folder / "s3.json").write_text(json.dumps({"identities": [everything, identity("limited", ["Read:elsewhere"])]}))
    with EmbeddedS3(folder / "data", folder / "s3.json") as server:
        yield S3Server(server.endpoint, server.access_key, server.secret_key, "limited-key", "limited-secret", server.bucket)
