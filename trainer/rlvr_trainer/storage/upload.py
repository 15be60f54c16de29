"""Sends a stream of bytes to one object: several parts at a time, bounded memory, a digest of every part and of the whole.

    chunks of any size -> parts of `part_bytes` -> one PUT, or a multipart upload with `concurrency` parts in flight

The store verifies the SHA-256 of each part; the caller gets the SHA-256 of all bytes. A failed upload is aborted. What a killed process
leaves behind is an unfinished multipart upload, which no reader sees; `checkpoint_reader.prune` clears it away.
"""

import base64
import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from rlvr_trainer.storage.errors import error_code
from rlvr_trainer.storage.patience import Patience

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import CompletedPartTypeDef

log = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview
MIB = 1 << 20
MAX_PARTS = 10_000
"""S3's limit."""


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """How big objects travel."""

    part_bytes: int = 8 * MIB
    """Bytes of one part, at least S3's 5 MiB; on a store on the same machine 8 MiB was 5 to 10 % faster than 16 or 32."""
    concurrency: int = 8
    """Parts in flight: what hides the latency of a store that is far away. Memory in flight is `(concurrency + 2) * part_bytes`."""


class Uploader:
    """Uploads to one bucket. Safe to use from several threads."""

    def __init__(self, client: "S3Client", bucket: str, settings: TransferSettings, patience: Patience) -> None:
        self._client, self._bucket, self._settings, self._patience = client, bucket, settings, patience

    def send(self, key: str, chunks: Iterable[Buffer]) -> tuple[int, str]:
        """Writes `chunks`, one after another, as object `key`.

        Returns:
            Bytes written, and their SHA-256 in hexadecimal.

        Raises:
            BotoCoreError, ClientError: the store failed; nothing is visible at `key` then.
            ValueError: the stream is longer than 10 000 parts.
        """
        parts = _regroup(chunks, self._settings.part_bytes)
        first = next(parts, b"")
        second = next(parts, None)
        if second is None:
            self._patience.call(
                lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=first, ChecksumSHA256=base64_sha256(first))
            )
            return len(first), hashlib.sha256(first).hexdigest()
        return self._send_parts(key, _chain(first, second, parts))

    def _send_parts(self, key: str, parts: Iterator[bytes]) -> tuple[int, str]:
        upload = self._patience.call(
            lambda: self._client.create_multipart_upload(Bucket=self._bucket, Key=key, ChecksumAlgorithm="SHA256")["UploadId"]
        )
        digest, size, sent = hashlib.sha256(), 0, list[Future["CompletedPartTypeDef"]]()
        in_flight: set[Future[CompletedPartTypeDef]] = set()
        try:
            with ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="s3-upload") as pool:
                for number, part in enumerate(parts, start=1):
                    if number > MAX_PARTS:
                        raise ValueError(f"{key} is longer than {MAX_PARTS} parts of {self._settings.part_bytes} bytes; raise part_bytes")
                    sent.append(pool.submit(self._send_part, key, upload, number, part))
                    in_flight.add(sent[-1])
                    digest.update(part)
                    size += len(part)
                    # Whichever part is first makes room for the next: one that is slow must not hold up the others.
                    while len(in_flight) > self._settings.concurrency:
                        done, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
                        for future in done:
                            future.result()
                completed = [future.result() for future in sent]
            self._complete(key, upload, completed, size)
        except BaseException:
            self._abort(key, upload)
            raise
        return size, digest.hexdigest()

    def _send_part(self, key: str, upload: str, number: int, part: bytes) -> "CompletedPartTypeDef":
        checksum = base64_sha256(part)
        answer = self._patience.call(
            lambda: self._client.upload_part(
                Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=part, ChecksumSHA256=checksum
            )
        )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

    def _complete(self, key: str, upload: str, parts: Sequence["CompletedPartTypeDef"], size: int) -> None:
        try:
            self._patience.call(
                lambda: self._client.complete_multipart_upload(
                    Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
                )
            )
        except ClientError as error:
            # A repeated request whose first answer was lost finds the upload completed, hence gone.
            if error_code(error) != "NoSuchUpload" or self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"] != size:
                raise

    def _abort(self, key: str, upload: str) -> None:
        try:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
        except (BotoCoreError, ClientError) as error:
            log.warning("could not abort the upload of %s, its parts stay in the store until they are pruned: %s", key, error)


def base64_sha256(data: Buffer) -> str:
    """SHA-256 as S3 wants it in a header."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _chain(first: bytes, second: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield second
    yield from rest


def _regroup(chunks: Iterable[Buffer], part_bytes: int) -> Iterator[bytes]:
    """The same bytes in pieces of `part_bytes`, the last one shorter. One copy of every byte."""
    waiting: list[memoryview] = []
    size = 0
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        while size + len(view) >= part_bytes:
            cut = part_bytes - size
            waiting.append(view[:cut])
            yield b"".join(waiting)
            waiting, size, view = [], 0, view[cut:]
        if view:
            waiting.append(view)
            size += len(view)
    if waiting:
        yield b"".join(waiting)
