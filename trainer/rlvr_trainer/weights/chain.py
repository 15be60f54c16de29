"""What is said of weights in the object store: a chain of links, each a version, from a base through the deltas after it.

    base (all buckets whole) <- delta <- delta <- ...        until the chain is long enough, and the next version is a base again

A link's document names its parent by the digest of that one's document, and every blob by size and digest: whoever has the digest of the
last link can check everything. Engines get no credentials. The learner hands them `SignedLink`s, addresses that anyone may read for a
while.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlvr_trainer.storage.documents import Count, Sha256, StoredBlob, StoredDocument
from rlvr_trainer.weights.protocol import Message


class BucketPart(StoredDocument):
    """What a link says of one bucket."""

    whole: bool
    """The blob is the bucket itself; otherwise it is what changed (`deltas`)."""
    blob: StoredBlob
    """The bytes; of a bucket in which nothing changed there are none."""
    result_sha256: Sha256
    """Digest of the whole bucket at this version."""


class ChainLink(StoredDocument):
    """One version; the document that commits it."""

    format: Literal[1] = 1
    """Of this document."""
    attempt: Count
    """Of the learner that wrote it."""
    version: Count
    """Of the weights."""
    parent: Sha256 | None
    """Digest of the document of the link before; None: a base."""
    parts: Annotated[tuple[BucketPart, ...], Field(min_length=1)]
    """By bucket of the layout."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.parent is None and not all(part.whole for part in self.parts):
            raise ValueError("a link without a parent has a bucket that is not whole")
        return self

    @property
    def sent_bytes(self) -> int:
        """Bytes of all blobs."""
        return sum(part.blob.bytes for part in self.parts)


class SignedAddress(Message):
    """An object that anyone with this address may read for a while."""

    url: Annotated[str, Field(pattern=r"^https?://", max_length=8192)]


class SignedLink(Message):
    """A link as an engine gets it."""

    sha256: Sha256
    """Digest of the link's document."""
    size_bytes: Annotated[int, Field(ge=1, le=2**30)]
    """Size of the document."""
    document: SignedAddress
    """Where it is."""
    blobs: tuple[SignedAddress | None, ...]
    """Where the blobs are, by bucket; None where there is none."""


class Offer(Message):
    """An update through the object store: the end of the chain, at least what comes after what the members of the group hold."""

    links: Annotated[tuple[SignedLink, ...], Field(min_length=1)]
    """In their order; the last is the version of the update."""
