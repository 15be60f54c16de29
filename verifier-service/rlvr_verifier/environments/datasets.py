"""Reads datasets of JSON lines from files and from S3."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from rlvr_api.process import Variable
from rlvr_api.spec import Storage
from rlvr_verifier.environments.base import EnvironmentSetupError

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client


class DatasetMissingError(EnvironmentSetupError):
    """There is no such file or object."""


MAX_DATASET_BYTES = 2 << 30
MAX_REPORTED_LINES = 20
Row = TypeVar("Row", bound=BaseModel)


class DatasetReader:
    """Opens `file://` and `s3://` datasets of one job.

    Args:
        checked: the rows were checked before, by the service whose worker this is: trying each again would make its start long.
    """

    def __init__(self, storage: Storage, environ: Mapping[str, str], *, checked: bool = False) -> None:
        self.checked = checked
        self.environ = environ
        self._storage = storage
        self._endpoint = storage.endpoint or environ.get(Variable.S3_ENDPOINT)

    def read(self, uri: str) -> bytes:
        """All bytes of a dataset.

        Raises:
            EnvironmentSetupError: it is not there, too large, or of another scheme.
        """
        if uri.startswith("s3://"):
            data = self._read_s3(uri)
        elif uri.startswith("file://"):
            path = Path(uri.removeprefix("file://"))
            try:
                data = path.read_bytes()
            except FileNotFoundError as error:
                raise DatasetMissingError(f"dataset {uri} cannot be read: {error.strerror}; check the path") from None
            except OSError as error:
                raise EnvironmentSetupError(f"dataset {uri} cannot be read: {error.strerror or error}; check the path") from None
        else:
            raise EnvironmentSetupError(f"dataset {uri!r} is neither file:// nor s3://; write file:///path/to.jsonl or s3://bucket/key")
        if len(data) > MAX_DATASET_BYTES:
            raise EnvironmentSetupError(f"dataset {uri} has {len(data)} bytes, more than {MAX_DATASET_BYTES}; split it")
        return data

    def _s3_client(self) -> "S3Client":
        import boto3

        return boto3.client("s3", endpoint_url=self._endpoint, region_name=self._storage.region)

    def _read_s3(self, uri: str) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, key = uri.removeprefix("s3://").partition("/")
        try:
            return self._s3_client().get_object(Bucket=bucket, Key=key)["Body"].read()
        except (BotoCoreError, ClientError) as error:
            kind = DatasetMissingError if _is_missing(error) else EnvironmentSetupError
            raise kind(f"dataset {uri} cannot be read from {self._endpoint or 'AWS'}: {error}") from None

    def write(self, uri: str, data: bytes) -> None:
        """Write an object beside a dataset, over one that is there.

        Raises:
            EnvironmentSetupError: it cannot be written.
        """
        if not uri.startswith("s3://"):
            try:
                Path(uri.removeprefix("file://")).write_bytes(data)
            except OSError as error:
                raise EnvironmentSetupError(f"{uri} cannot be written: {error.strerror or error}") from None
            return
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, key = uri.removeprefix("s3://").partition("/")
        try:
            self._s3_client().put_object(Bucket=bucket, Key=key, Body=data)
        except (BotoCoreError, ClientError) as error:
            raise EnvironmentSetupError(f"{uri} cannot be written to {self._endpoint or 'AWS'}: {error}") from None


def _is_missing(error: Exception) -> bool:
    answer = getattr(error, "response", None)
    return isinstance(answer, dict) and answer.get("Error", {}).get("Code") in ("NoSuchKey", "404")


def parse_models(data: bytes, uri: str, model: type[Row]) -> Iterator[tuple[int, Row]]:
    """Line number and row of every line that is not empty.

    Raises:
        EnvironmentSetupError: lists the first lines that are no such rows.
    """
    rows: list[tuple[int, Row]] = []
    faults: list[str] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append((number, model.model_validate_json(line)))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the line"
            faults.append(f"line {number}: {place}: {first['msg']}")
    refuse_faults(faults, uri, bool(rows))
    return iter(rows)


def parse_rows(data: bytes, uri: str, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and row of every line that is not empty.

    Raises:
        EnvironmentSetupError: lists the first lines that are not JSON objects with text in `columns`.
    """
    rows: list[tuple[int, dict[str, str]]] = []
    faults: list[str] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value: JsonValue = json.loads(line)
        except ValueError as error:
            faults.append(f"line {number} is not JSON ({error})")
            continue
        missing = [name for name in columns if not isinstance(value, dict) or not isinstance(value.get(name), str)]
        if missing:
            faults.append(f"line {number} has no text {', '.join(missing)}")
        elif isinstance(value, dict):
            rows.append((number, {name: str(value[name]) for name in columns}))
    refuse_faults(faults, uri, bool(rows))
    return iter(rows)


def refuse_faults(faults: list[str], uri: str, has_rows: bool) -> None:
    """Raises EnvironmentSetupError for a dataset with faults, of which it lists the first, or without rows."""
    if faults:
        more = f"; and {len(faults) - MAX_REPORTED_LINES} more" if len(faults) > MAX_REPORTED_LINES else ""
        raise EnvironmentSetupError(f"dataset {uri}: {'; '.join(faults[:MAX_REPORTED_LINES])}{more}")
    if not has_rows:
        raise EnvironmentSetupError(f"dataset {uri} has no rows")
