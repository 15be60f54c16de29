"""Brings a model from S3 into the run's folder. Files that are there with the right size stay, so a run that resumes loads nothing twice.

Each file is written under another name and renamed when it is whole.
"""

from pathlib import Path, PurePosixPath

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from rlvr_api.cli import UserError
from rlvr_api.spec import Storage


def download_model(uri: str, storage: Storage, destination: Path) -> int:
    """Downloads every object below `uri` (`s3://bucket/prefix`) into `destination`; returns the bytes that were fetched.

    Raises:
        UserError: the store refuses, nothing is there, or a key leads out of the folder.
    """
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/") + "/"
    config = Config(connect_timeout=10, read_timeout=60, retries={"max_attempts": 4, "mode": "standard"})
    try:
        client = boto3.Session().client("s3", endpoint_url=storage.endpoint, region_name=storage.region, config=config)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        sizes = {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", ()) if not item["Key"].endswith("/")}
        if not sizes:
            raise UserError(f"spec.model.uri: nothing is below {uri}: check the bucket and the prefix")
        fetched = 0
        for key, size in sizes.items():
            file = destination / _inside(key.removeprefix(prefix), uri)
            if file.is_file() and file.stat().st_size == size:
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_name(f".{file.name}.draft")
            client.download_file(bucket, key, str(draft))
            draft.replace(file)
            fetched += size
        return fetched
    except (ClientError, BotoCoreError) as error:
        raise UserError(f"spec.model.uri: {uri} cannot be read from {storage.endpoint}: {error}") from None


def _inside(name: str, uri: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"spec.model.uri: {uri} holds the key '{name}', which leads out of the model's folder")
    return path
