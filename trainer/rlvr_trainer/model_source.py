"""`python -m rlvr_trainer.model_source`: brings a model from S3 into the folder of RLVR_MODEL_DIR, before anything loads it.

A folder with a `MANIFEST.json`, as a stage's `model` is, holds what that names; any other holds what is listed.
Files that are there with the right size stay, so a run that resumes loads nothing twice. Each file is written under another name and
renamed when it is whole. It runs as init container of engines and learner in a cluster, and once before a local run.
"""

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from botocore.exceptions import BotoCoreError, ClientError

from rlvr_api.process import ExitCode, Variable
from rlvr_api.spec import RLVRJob, Storage
from rlvr_trainer.context import BadInputError
from rlvr_trainer.storage.client import S3Settings, connect
from rlvr_trainer.storage.errors import CorruptObjectError
from rlvr_trainer.storage.folders import parse_model_manifest
from rlvr_trainer.storage.layout import MANIFEST

logger = logging.getLogger("rlvr_trainer.model_source")


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Download the model of the job in the environment; returns an `ExitCode`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    job = RLVRJob.model_validate_json(Path(environ[Variable.JOB_FILE]).read_bytes())
    try:
        fetched = download_model(job.spec.model.uri, job.spec.storage, Path(environ[Variable.MODEL_DIR]))
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return ExitCode.BAD_INPUT
    logger.info("the model is there; %.1f MB were fetched", fetched / 1e6)
    return ExitCode.DONE


def download_model(uri: str, storage: Storage, destination: Path) -> int:
    """Download every object below `uri` (`s3://bucket/prefix`) into `destination`; returns the bytes that were fetched.

    Raises:
        BadInputError: the store refuses, nothing is there, or a key leads out of the folder.
    """
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/") + "/"
    client = connect(S3Settings(storage.endpoint, storage.region))
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        sizes = {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", ()) if not item["Key"].endswith("/")}
        if not sizes:
            raise BadInputError(f"spec.model.uri: nothing is below {uri}: check the bucket and the prefix")
        fetched = 0
        if prefix + MANIFEST in sizes:
            prefix, sizes = _named(client.get_object(Bucket=bucket, Key=prefix + MANIFEST)["Body"].read(), uri, prefix)
        for key, size in sizes.items():
            file = destination / _inside(key.removeprefix(prefix), uri)
            if file.is_file() and file.stat().st_size == size:
                continue
            logger.info("fetching %s, %.1f MB", key, size / 1e6)
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_name(f".{file.name}.draft")
            client.download_file(bucket, key, str(draft))
            draft.replace(file)
            fetched += size
        return fetched
    except (ClientError, BotoCoreError) as error:
        raise BadInputError(f"spec.model.uri: {uri} cannot be read from {storage.endpoint or 'AWS'}: {error}") from None
    finally:
        client.close()


def _named(manifest: bytes, uri: str, prefix: str) -> tuple[str, dict[str, int]]:
    """Prefix and sizes of the files that a manifest names."""
    try:
        found = parse_model_manifest(manifest, f"{uri}/{MANIFEST}")
    except CorruptObjectError as error:
        raise BadInputError(f"spec.model.uri: {error}") from None
    return f"{prefix}{found.folder}/", {prefix + blob.key: blob.bytes for blob in found.files}


def _inside(name: str, uri: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise BadInputError(f"spec.model.uri: {uri} holds the key '{name}', which leads out of the model's folder")
    return path


if __name__ == "__main__":
    sys.exit(main())
