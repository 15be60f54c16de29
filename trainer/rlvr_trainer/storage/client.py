"""One bucket and prefix of an S3 store, with time-outs, checksums and plain errors.

    S3Settings -> connect() -> boto3 client -> ObjectStore(client, bucket, prefix)

Small objects go in one request, large ones as multipart uploads (`upload.py`). `put_if_absent` is the commit of everything in this
package. Every wait is bounded: `connect_timeout_seconds` and `read_timeout_seconds` for each try, `outage_seconds` for all tries of one
request.
Durability is the store's: what it acknowledged is taken to be there.
"""

import hashlib
import os
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO, TypedDict

import boto3
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import ClientError

from rlvr_trainer.storage.documents import StoredBlob
from rlvr_trainer.storage.errors import (
    AlreadyExistsError,
    CorruptObjectError,
    ObjectMissingError,
    StorageSetupError,
    StoreFailedError,
    UnsupportedStoreError,
    error_code,
    explained,
)
from rlvr_trainer.storage.patience import Patience
from rlvr_trainer.storage.upload import Buffer, TransferSettings, Uploader, base64_sha256

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import DeleteObjectsOutputTypeDef

CONFLICT_ATTEMPTS = 5
"""Tries of a conditional write to which the store answers "somebody else is writing this right now"."""
PROBE_OUTAGE_SECONDS = 10.0
"""How long `ObjectStore.check` waits for a store that does not answer."""
DELETE_BATCH = 1000
"""S3's limit of keys in one request."""


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where the store is. Credentials are the usual AWS_ environment variables."""

    endpoint: str | None = None
    """For example `http://127.0.0.1:8333`; None is AWS."""
    region: str = "us-east-1"
    """Region of request signatures."""
    connect_timeout_seconds: float = 5.0
    """Longest wait for a connection."""
    read_timeout_seconds: float = 60.0
    """Longest silence while an answer is awaited."""
    max_attempts: int = 3
    """Quick tries of one request, the first included; `outage_seconds` bounds the patient ones."""
    outage_seconds: float = 60.0
    """How long a request is repeated while the store does not answer or fails: long enough to restart it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in a listing."""

    bytes: int
    """Size."""
    etag: str
    """Changes when the content does."""


def connect(settings: S3Settings, concurrency: int = 16) -> "S3Client":
    """A thread-safe S3 client with at most `concurrency` connections; talks to nobody yet.

    Raises:
        StorageSetupError: the endpoint is not an http(s) address.
    """
    config = Config(
        signature_version="s3v4",  # botocore would sign addresses by the old scheme
        connect_timeout=settings.connect_timeout_seconds,
        read_timeout=settings.read_timeout_seconds,
        retries={"total_max_attempts": settings.max_attempts, "mode": "standard"},
        # Bucket names as host names need wildcard DNS, which self-hosted stores do not have.
        s3={"addressing_style": "path" if settings.endpoint else "auto"},
        max_pool_connections=concurrency,
        tcp_keepalive=True,
    )
    session = boto3.session.Session(region_name=settings.region)
    try:
        client = session.client("s3", endpoint_url=settings.endpoint, config=config)
    except ValueError as error:
        raise StorageSetupError(f"storage.endpoint '{settings.endpoint}' is not an address ({error}); write http://host:port") from error
    client.meta.events.register("before-sign.s3.UploadPart", _sign_checksum_only)
    return client


def _sign_checksum_only(request: AWSRequest, **_: object) -> None:
    """Over plain HTTP botocore would digest a part once more for its signature, and the server too. The signed header with the part's
    SHA-256 binds the body as well; the server refuses a body that differs."""
    unsigned = request.context["client_config"].merge(Config(s3={"payload_signing_enabled": False}))
    request.context = {**request.context, "client_config": unsigned}


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`; the prefix has no slash at its ends.

    Raises:
        StorageSetupError: `uri` has another form.
    """
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise StorageSetupError(f"'{uri}' is not a place in an object store; write s3://bucket/prefix")
    return bucket, prefix.strip("/")


class ObjectStore:
    """Objects of one bucket under a prefix. Keys are given and returned without the prefix. Safe to use from several threads."""

    def __init__(
        self,
        client: "S3Client",
        bucket: str,
        prefix: str = "",
        transfer: TransferSettings | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.client, self.bucket, self.prefix = client, bucket, prefix.strip("/")
        self.transfer = transfer or TransferSettings()
        self.endpoint = client.meta.endpoint_url
        self.patience = patience or Patience()
        self._uploader = Uploader(client, bucket, self.transfer, self.patience)

    @classmethod
    def open(cls, uri: str, settings: S3Settings, *below: str) -> "ObjectStore":
        """The store at `uri` (`s3://bucket/prefix`), in folder `below`; talks to nobody yet."""
        bucket, prefix = split_uri(uri)
        return cls(connect(settings), bucket, "/".join((prefix, *below)), patience=Patience(settings.outage_seconds))

    def below(self, folder: str) -> "ObjectStore":
        """The same store, with keys that count from `folder`."""
        return ObjectStore(self.client, self.bucket, f"{self.prefix}/{folder}", self.transfer, self.patience)

    def uri(self, key: str = "") -> str:
        """`s3://bucket/prefix/key`, for people."""
        return f"s3://{self.bucket}/{self._full(key)}".rstrip("/")

    def get(self, key: str) -> bytes:
        """All bytes of an object.

        Raises:
            ObjectMissingError: there is none.
        """
        return self._read(key, {})

    def size(self, key: str) -> int:
        """Bytes of an object.

        Raises:
            ObjectMissingError: there is none.
        """
        with self._explained("look at", key):
            return self.patience.call(lambda: self.client.head_object(Bucket=self.bucket, Key=self._full(key))["ContentLength"])

    def put(self, key: str, data: Buffer) -> StoredBlob:
        """Writes an object, over one that is there."""
        return self.upload(key, (data,))

    def upload(self, key: str, chunks: Iterable[Buffer]) -> StoredBlob:
        """Writes a stream of any length as one object, with bounded memory; the store verifies every part."""
        with self._explained("write", key):
            size, digest = self._uploader.send(self._full(key), chunks)
        return StoredBlob(key=key, bytes=size, sha256=digest)

    def put_if_absent(self, key: str, data: bytes) -> StoredBlob:
        """Writes an object that must not be there yet (`If-None-Match: *`): of all who try, exactly one succeeds.

        A repeated try whose first answer was lost meets its own object: content equal to `data` counts as success. Whoever needs to tell
        itself from others puts something unique in `data`.

        Raises:
            AlreadyExistsError: another object is there; `content` holds it.
        """
        blob = StoredBlob(key=key, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for attempt in range(CONFLICT_ATTEMPTS):
            if self._put_once(key, data):
                return blob
            try:
                present = self.get(key)
            except ObjectMissingError:
                time.sleep(0.05 * 2**attempt)  # 409: a write or delete of this key is under way; AWS asks to repeat
                continue
            if present == data:
                return blob
            raise AlreadyExistsError(f"cannot write {self.uri(key)}: it is there already", present)
        raise StoreFailedError(
            f"cannot write {self.uri(key)}: {CONFLICT_ATTEMPTS} tries in a row met a conflicting request; try again later"
        )

    def list(self, prefix: str = "", after: str = "") -> tuple[str, ...]:
        """Keys that begin with `prefix` and sort after `after`, in order."""
        return tuple(self.sizes(prefix, after))

    def sizes(self, prefix: str = "", after: str = "") -> dict[str, int]:
        """As `list`, with the bytes of each object."""
        return {key: entry.bytes for key, entry in self.entries(prefix, after).items()}

    def entries(self, prefix: str = "", after: str = "") -> dict[str, Entry]:
        """As `list`, with what the store says of each object."""
        pages = self.client.get_paginator("list_objects_v2")
        start = self._full(after) if after else ""

        def find() -> dict[str, Entry]:
            found: dict[str, Entry] = {}
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._full(prefix), StartAfter=start):
                for entry in page.get("Contents", ()):
                    found[self._key(entry["Key"])] = Entry(entry["Size"], entry["ETag"].strip('"'))
            return found

        with self._explained("list", prefix):
            return dict(sorted(self.patience.call(find).items()))

    def signed_url(self, key: str, valid_seconds: int) -> str:
        """An address under which anyone may read an object for a while; asks nobody."""
        url: str = self.client.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket, "Key": self._full(key)}, ExpiresIn=valid_seconds
        )
        return url

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; one that is not there is no error."""
        for batch in _batches([self._full(key) for key in keys], DELETE_BATCH):
            with self._explained("delete", self._key(batch[0])):
                answer = self.patience.call(partial(self._delete_batch, batch))
            refused = [error for error in answer.get("Errors", ()) if error.get("Code") != "NoSuchKey"]
            if refused:
                first = refused[0]
                raise StoreFailedError(
                    f"cannot delete {self.uri(self._key(first.get('Key', '')))} and {len(refused) - 1} more: {first.get('Code')} "
                    f"{first.get('Message')}; check the right to delete"
                )

    def read(self, blob: StoredBlob) -> bytearray:
        """The bytes of a committed object, in parallel ranges, verified.

        Raises:
            ObjectMissingError: it is not there.
            CorruptObjectError: size or digest differ from what was committed.
        """
        content = bytearray(blob.bytes)
        at = 0
        for part in self._verified_parts(blob):
            content[at : at + len(part)] = part
            at += len(part)
        return content

    def download(self, blob: StoredBlob, file: BinaryIO) -> None:
        """As `read`, into a file, with bounded memory. On an error the file holds what arrived: the caller throws it away."""
        for part in self._verified_parts(blob):
            file.write(part)

    def download_unverified(self, key: str, size: int, file: BinaryIO) -> None:
        """An object of `size` bytes whose digest nobody recorded, into a file, with bounded memory."""
        for part in self._parts(key, size):
            file.write(part)

    def check(self) -> None:
        """Proves, with a probe object, that this store can hold a run: write, read, list, refuse a second conditional write, delete.

        An address at which nobody answers is given up after `PROBE_OUTAGE_SECONDS`: it may just as well be wrong.

        Raises:
            StorageSetupError: credentials, bucket, rights or address are wrong, or the store ignores `If-None-Match`.
            StorageError: anything else that went wrong.
        """
        patience = Patience(min(self.patience.outage_seconds, PROBE_OUTAGE_SECONDS))
        ObjectStore(self.client, self.bucket, self.prefix, self.transfer, patience)._probe()

    def unfinished_uploads(self, prefix: str) -> dict[str, str]:
        """Multipart uploads that nobody completed yet: upload id to key."""
        pages = self.client.get_paginator("list_multipart_uploads")

        def find() -> dict[str, str]:
            found: dict[str, str] = {}
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._full(prefix)):
                found.update({upload["UploadId"]: self._key(upload["Key"]) for upload in page.get("Uploads", ())})
            return found

        with self._explained("list unfinished uploads of", prefix):
            return self.patience.call(find)

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Removes the parts of an unfinished upload; one that is gone is no error."""
        try:
            with self._explained("abort the upload of", key):
                self.patience.call(lambda: self.client.abort_multipart_upload(Bucket=self.bucket, Key=self._full(key), UploadId=upload_id))
        except ObjectMissingError:
            return

    def _probe(self) -> None:
        key, content = f".probe/{uuid.uuid4().hex}", os.urandom(32)
        self.put_if_absent(key, content)
        try:
            if self.get(key) != content or key not in self.list(".probe/"):
                raise UnsupportedStoreError(f"{self.uri(key)} cannot be read or listed right after it was written; use a consistent store")
            try:
                self.put_if_absent(key, content[::-1] + b"other")
            except AlreadyExistsError:
                return
            raise UnsupportedStoreError(
                f"the store at {self.endpoint} ignores If-None-Match, so two learners could commit the same step; use one that supports it"
            )
        finally:
            self.delete([key])

    def _delete_batch(self, batch: Sequence[str]) -> "DeleteObjectsOutputTypeDef":
        return self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True})

    def _put_once(self, key: str, data: bytes) -> bool:
        """Whether the object was written; False when somebody else's is there or under way."""
        with self._explained("write", key):
            try:
                self.patience.call(
                    lambda: self.client.put_object(
                        Bucket=self.bucket, Key=self._full(key), Body=data, IfNoneMatch="*", ChecksumSHA256=base64_sha256(data)
                    )
                )
            except ClientError as error:
                if error_code(error) in {"PreconditionFailed", "ConditionalRequestConflict", "OperationAborted", "412", "409"}:
                    return False
                raise
        return True

    def _verified_parts(self, blob: StoredBlob) -> Iterator[bytes]:
        """The object in order; raises at its end when the digest is wrong."""
        size = self.size(blob.key)
        if size != blob.bytes:
            raise CorruptObjectError(f"{self.uri(blob.key)} is corrupt: it has {size} bytes, and {blob.bytes} were committed")
        digest = hashlib.sha256()
        for part in self._parts(blob.key, size):
            digest.update(part)
            yield part
        if digest.hexdigest() != blob.sha256:
            raise CorruptObjectError(
                f"{self.uri(blob.key)} is corrupt: its SHA-256 is {digest.hexdigest()}, and {blob.sha256} was committed"
            )

    def _parts(self, key: str, size: int) -> Iterator[bytes]:
        """The object in order, fetched a few parts ahead."""
        starts = iter(range(0, size, self.transfer.part_bytes))
        with ThreadPoolExecutor(self.transfer.concurrency, thread_name_prefix="s3-download") as pool:
            ahead = deque(pool.submit(self._read_range, key, size, start) for start in islice(starts, self.transfer.concurrency))
            while ahead:
                part = ahead.popleft().result()
                ahead.extend(pool.submit(self._read_range, key, size, start) for start in islice(starts, 1))
                yield part

    def _read_range(self, key: str, size: int, start: int) -> bytes:
        end = min(start + self.transfer.part_bytes, size)
        part = self._read(key, {"Range": f"bytes={start}-{end - 1}"})
        if len(part) != end - start:
            raise CorruptObjectError(f"{self.uri(key)} changed while it was read: bytes {start} to {end} gave {len(part)}")
        return part

    def _read(self, key: str, options: "_Range") -> bytes:
        with self._explained("read", key):
            return self.patience.call(lambda: self.client.get_object(Bucket=self.bucket, Key=self._full(key), **options)["Body"].read())

    def _explained(self, action: str, key: str) -> AbstractContextManager[None]:
        return explained(action, self.uri(key), self.endpoint)

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _key(self, full: str) -> str:
        return full.removeprefix(f"{self.prefix}/") if self.prefix else full


class _Range(TypedDict, total=False):
    Range: str


def _batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
