"""The learner's end of a chain: writes each version as the bytes that changed, and removes what no engine needs any more.

write: bucket by bucket: cast and pack -> what differs from the version before -> blob; all blobs, then the document (`If-None-Match`)

A base is written when there is nothing to build on, a damaged link was found, the chain is `maxDeltas` long or its deltas have as many
bytes as its base, so that an engine that comes late never fetches more than twice the model. With it the links before it go. A version
whose every bucket changed too much for a delta is a base by itself: in float32 nearly all elements change in a step. The learner keeps
one copy of the weights in the engines' dtype in its memory. Keys carry the attempt, and a new attempt removes those of older ones.
"""

import hashlib
import logging
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from rlvr_trainer.storage.client import ObjectStore
from rlvr_trainer.storage.documents import StoredBlob
from rlvr_trainer.storage.errors import StorageError
from rlvr_trainer.storage.layout import WEIGHTS, weights_attempt_of, weights_key
from rlvr_trainer.weights.buckets import pack_bucket
from rlvr_trainer.weights.chain import BucketPart, ChainLink, SignedAddress, SignedLink
from rlvr_trainer.weights.deltas import encode_delta
from rlvr_trainer.weights.protocol import DTYPE_BYTES, Bucket, Layout

log = logging.getLogger("rlvr.weights")

UPLOADS = 4
"""Buckets that are written at the same time."""
DOCUMENT = "link.json"


class ChainWriter:
    """The chain of one attempt. Used by one thread."""

    def __init__(self, store: ObjectStore, attempt: int, max_deltas: int) -> None:
        self._store, self._attempt, self._max_deltas = store, attempt, max_deltas
        self._layout: Layout | None = None
        self._held: list[torch.Tensor] = []
        self._links: list[tuple[ChainLink, bytes]] = []
        self._serial = -1
        self._garbage = self._written_by_older_attempts()
        self._pool = ThreadPoolExecutor(UPLOADS, thread_name_prefix="weights-upload")

    def write(self, tensors: Mapping[str, torch.Tensor], layout: Layout, version: int) -> int:
        """Put a version at the end of the chain; one that is there already is left as it is. Returns the bytes that were written.

        Raises:
            StorageError: the store failed; the next call writes a base.
        """
        if self._links and self._layout == layout and self._links[-1][0].version == version:
            return 0
        started, why = time.monotonic(), self._why_base(layout)
        before, self._links, self._layout = self._links, [], layout
        written = None
        try:
            written = self._write_link(tensors, layout, version, None if why else hashlib.sha256(before[-1][1]).hexdigest())
        finally:
            if written is None:  # and nothing to build on is left
                self._garbage += [weights_key(self._attempt, self._serial, name) for name in _names(layout)]
            if written is None or written[0].parent is None:
                self._garbage += [key for old, _ in before for key in self._keys(old)]
        link, _ = written
        why = why or ("" if link.parent else "too much changed for a delta in every bucket")
        self._links = [*(before if link.parent else ()), written]
        log.info(
            "version %d is %.3f MB in the object store, %.1f %% of the model, after %.2f s: %s", version, link.sent_bytes / 1e6,
            100 * link.sent_bytes / layout.size_bytes, time.monotonic() - started,
            f"whole, since {why}" if why else f"delta {len(self._links) - 1} of at most {self._max_deltas} on a base",
        )  # fmt: skip
        self._collect()
        return link.sent_bytes

    def break_off(self) -> None:
        """An engine found a link damaged or missing: whatever is written next is a base, also the same version."""
        self._garbage += [key for link, _ in self._links for key in self._keys(link)]
        self._links = []

    def offer(self, last_only: bool, valid_seconds: int) -> tuple[SignedLink, ...]:
        """Links for engines that have none of them, or all but the last."""
        return tuple(self._signed(link, document, valid_seconds) for link, document in self._links[-1 if last_only else 0 :])

    def close(self) -> None:
        """Remove everything: engines keep what they have. Failing at that is logged, and left to the next attempt."""
        self._pool.shutdown(cancel_futures=True)
        self.break_off()
        self._collect()

    def _why_base(self, layout: Layout) -> str:
        """Why the next version cannot be a delta; empty when it can."""
        if not self._links or self._layout != layout:
            return "there is nothing to build on"
        base, *deltas = [link.sent_bytes for link, _ in self._links]
        if len(deltas) >= self._max_deltas:
            return f"there are {len(deltas)} deltas on the last base"
        return f"the deltas on the last base have {sum(deltas)} bytes, and it has {base}" if sum(deltas) >= base else ""

    def _write_link(self, tensors: Mapping[str, torch.Tensor], layout: Layout, version: int, parent: str | None) -> tuple[ChainLink, bytes]:
        """A serial is used once: a write whose answer was lost may have been done."""
        self._serial += 1
        parts = self._write_parts(layout, tensors, is_base=parent is None)
        if all(part.whole for part in parts):
            parent = None
        link = ChainLink(attempt=self._attempt, version=version, parent=parent, parts=parts)
        document = link.to_bytes()
        self._store.put_if_absent(weights_key(self._attempt, self._serial, DOCUMENT), document)
        return link, document

    def _write_parts(self, layout: Layout, tensors: Mapping[str, torch.Tensor], is_base: bool) -> tuple[BucketPart, ...]:
        held, self._held = self._held, []
        under_way: deque[Future[BucketPart]] = deque()
        parts: list[BucketPart] = []
        try:
            for index, bucket in enumerate(layout.buckets):
                if len(under_way) == UPLOADS:
                    parts.append(under_way.popleft().result())
                # Streamed tensors are gathered by all processes of the learner in order: here. Padding has to be the same each time.
                packed = torch.zeros(bucket.size_bytes, dtype=torch.uint8)
                pack_bucket(bucket, tensors, packed)
                under_way.append(self._pool.submit(self._write_part, index, bucket, None if is_base else held[index], packed))
                self._held.append(packed)
            while under_way:
                parts.append(under_way.popleft().result())
        finally:
            for future in under_way:
                future.cancel()
        return tuple(parts)

    def _write_part(self, index: int, bucket: Bucket, before: torch.Tensor | None, packed: torch.Tensor) -> BucketPart:
        result = hashlib.sha256(packed.numpy().data).hexdigest()
        delta = None if before is None else encode_delta(before, packed, DTYPE_BYTES[bucket.slots[0].dtype])
        key = weights_key(self._attempt, self._serial, _name(index))
        if delta == b"":
            return BucketPart(whole=False, blob=StoredBlob(key=key, bytes=0, sha256=hashlib.sha256().hexdigest()), result_sha256=result)
        blob = self._store.put(key, packed.numpy().tobytes() if delta is None else delta)
        return BucketPart(whole=delta is None, blob=blob, result_sha256=result)

    def _signed(self, link: ChainLink, document: bytes, valid_seconds: int) -> SignedLink:
        def sign(key: str) -> SignedAddress:
            return SignedAddress(url=self._store.signed_url(key, valid_seconds))

        *blobs, own = self._keys(link)
        return SignedLink(
            sha256=hashlib.sha256(document).hexdigest(),
            size_bytes=len(document),
            document=sign(own),
            blobs=tuple(sign(key) if part.blob.bytes else None for key, part in zip(blobs, link.parts, strict=True)),
        )

    def _keys(self, link: ChainLink) -> list[str]:
        blobs = [part.blob.key for part in link.parts]
        return [*blobs, f"{blobs[0].rpartition('/')[0]}/{DOCUMENT}"]

    def _written_by_older_attempts(self) -> list[str]:
        return [key for key in self._store.list(WEIGHTS) if (attempt := weights_attempt_of(key)) is not None and attempt < self._attempt]

    def _collect(self) -> None:
        try:
            self._store.delete(self._garbage)
        except StorageError as error:
            log.warning("old weights stay in the store for now: %s", error)
        else:
            self._garbage = []


def _name(bucket: int) -> str:
    return f"{bucket:05d}"


def _names(layout: Layout) -> list[str]:
    """Of all objects that a version may have."""
    return [*map(_name, range(len(layout.buckets))), DOCUMENT]
