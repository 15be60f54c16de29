"""A worker's end of a chain: its own copy of the weights, brought to the newest version by the links that it lacks.

follow: from the link that it holds, or else from the base: document -> blobs -> all verified -> applied -> every bucket's digest verified

A delta is applied only when all of it is here and right; from then on until the digests have been compared, the copy counts as nothing. So
a worker that was cut off goes on from what it had, and one whose copy is of no use begins at the base. What is fetched is bounded by the
sizes in documents that are named by digest. Every wait ends at the deadline. The copy is in the memory of the CPU, once for each worker.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import torch
from pydantic import ValidationError

from rlvr_trainer.weights.buckets import unpack_bucket
from rlvr_trainer.weights.chain import ChainLink, SignedAddress, SignedLink
from rlvr_trainer.weights.deltas import DamagedDeltaError, apply_delta
from rlvr_trainer.weights.protocol import DTYPE_BYTES, Layout

DOWNLOADS = 4
"""Buckets that are fetched at the same time."""
SILENCE_SECONDS = 30.0
"""Longest wait for a connection or the next bytes."""
TRIES = 4
"""Of one object, while the store does not answer or fails."""
PAUSE_SECONDS = 0.25
"""Before the second try; it doubles."""


class DamagedChainError(RuntimeError):
    """An object is missing, or is not what its link says: a new base helps, trying again does not."""


class FetchError(RuntimeError):
    """The store does not answer, or not in time, or this worker may not go on."""


class WeightCopy:
    """The weights of one worker, in buckets of bytes. `lock` is held by whoever works with it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._layout: Layout | None = None
        self._buckets: list[torch.Tensor] = []
        self._held: str | None = None
        """Digest of the document of the link that the copy is at."""

    def follow(self, layout: Layout, links: Sequence[SignedLink], deadline: float, given_up: Callable[[], bool]) -> None:
        """Bring the copy to the last of the links, of a chain of that layout.

        Raises:
            DamagedChainError: links do not fit together, or objects are not as they should be.
            FetchError: not all could be fetched until `deadline` (`time.monotonic`), or it was given up.
        """
        missing = self._missing(layout, links)
        # A blob is what its digest says, not what somebody on the way makes of it.
        client = httpx.Client(timeout=SILENCE_SECONDS, headers={"accept-encoding": "identity"})
        with client as http, ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="weights-fetch") as pool:
            fetch = _Fetcher(http, deadline, given_up)
            link = None
            for signed in missing:
                link = self._apply(layout, signed, fetch, pool)
            self._verify(link or _read_link(links[-1], layout, fetch), pool)

    def tensors(self) -> Iterator[Sequence[tuple[str, torch.Tensor]]]:
        """All tensors, bucket by bucket, in memory of their own: the engine may keep it, and deltas change this copy."""
        assert self._layout is not None
        for bucket, buffer in zip(self._layout.buckets, self._buckets, strict=True):
            yield tuple(unpack_bucket(bucket, buffer.clone()))

    def _missing(self, layout: Layout, links: Sequence[SignedLink]) -> Sequence[SignedLink]:
        digests = [link.sha256 for link in links]
        if self._layout == layout and self._held in digests:
            return links[digests.index(self._held) + 1 :]
        if self._layout != layout:
            self._held, self._layout = None, layout
            self._buckets = [torch.zeros(bucket.size_bytes, dtype=torch.uint8) for bucket in layout.buckets]
        return links

    def _apply(self, layout: Layout, signed: SignedLink, fetch: "_Fetcher", pool: ThreadPoolExecutor) -> ChainLink:
        link = _read_link(signed, layout, fetch)
        if link.parent not in (None, self._held):
            raise DamagedChainError(f"version {link.version} builds on weights that this engine does not have: it needs a base")
        work = list(zip(link.parts, signed.blobs, range(len(link.parts)), strict=True))

        def get(item: int) -> bytes:
            part, address, _ = work[item]
            if address is None:
                return b""
            return fetch.get(address, part.blob.bytes, part.blob.sha256, f"version {link.version}, bucket {item}")

        def write(item: int, data: bytes) -> None:
            bucket = self._buckets[item]
            if not link.parts[item].whole:
                apply_delta(bucket, data, DTYPE_BYTES[layout.buckets[item].slots[0].dtype])
            elif len(data) == bucket.numel():
                bucket.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            else:
                raise DamagedDeltaError(f"bucket {item} has {len(data)} bytes, and the layout says {bucket.numel()}")

        try:
            if link.parent is None:  # nothing that is held is of use any more, so nothing need wait for the rest
                self._held = None
                list(pool.map(lambda item: write(item, get(item)), range(len(work))))
            else:
                blobs = list(pool.map(get, range(len(work))))
                self._held = None
                for item, data in enumerate(blobs):
                    write(item, data)
        except DamagedDeltaError as error:
            raise DamagedChainError(f"version {link.version}: {error}") from error
        self._held = signed.sha256
        return link

    def _verify(self, link: ChainLink, pool: ThreadPoolExecutor) -> None:
        found = list(pool.map(lambda bucket: hashlib.sha256(bucket.numpy()).hexdigest(), self._buckets))
        wrong = [index for index, part in enumerate(link.parts) if part.result_sha256 != found[index]]
        if wrong:
            self._held = None
            raise DamagedChainError(f"version {link.version} is not what the learner has in {len(wrong)} buckets, the first is {wrong[0]}")


def _read_link(signed: SignedLink, layout: Layout, fetch: "_Fetcher") -> ChainLink:
    document = fetch.get(signed.document, signed.size_bytes, signed.sha256, "the document of a version")
    try:
        link = ChainLink.model_validate_json(document)
    except ValidationError as error:
        raise DamagedChainError(f"the document of a version is not one that this program reads: {error.errors()[0]['msg']}") from error
    if not len(link.parts) == len(layout.buckets) == len(signed.blobs):
        raise DamagedChainError(f"version {link.version} has {len(link.parts)} buckets, and the layout {len(layout.buckets)}")
    return link


class _Fetcher:
    """Gets objects from signed addresses; a message never holds the address, which is a key to the object."""

    def __init__(self, http: httpx.Client, deadline: float, given_up: Callable[[], bool]) -> None:
        self._http, self._deadline, self._given_up = http, deadline, given_up

    def get(self, address: SignedAddress, size: int, sha256: str, what: str) -> bytes:
        """An object of that size and digest."""
        problem = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(min(PAUSE_SECONDS * 2**attempt, max(0.0, self._deadline - time.monotonic())))
            try:
                data = self._try(address.url, size, what)
            except httpx.HTTPError as error:
                problem = type(error).__name__
                continue
            if isinstance(data, int):
                problem = f"the store answered {data}"
                continue
            if hashlib.sha256(data).hexdigest() != sha256:
                raise DamagedChainError(f"{what}: its bytes are not those that the learner wrote")
            return data
        raise FetchError(f"{what} cannot be fetched after {TRIES} tries: {problem}")

    def _try(self, url: str, size: int, what: str) -> bytes | int:
        """The bytes, or the status of a store that failed."""
        content = bytearray()
        with self._http.stream("GET", url) as answer:
            if answer.status_code >= 500:
                return answer.status_code
            if answer.status_code != 200:
                raise DamagedChainError(f"{what}: the store answered {answer.status_code}")
            for chunk in answer.iter_raw():
                content += chunk
                if len(content) > size:
                    break
                if time.monotonic() > self._deadline or self._given_up():
                    raise FetchError(f"{what}: not fetched in time, or given up")
        if len(content) != size:
            raise DamagedChainError(f"{what}: it has {'more' if len(content) > size else 'fewer'} bytes than the {size} that were written")
        return bytes(content)
