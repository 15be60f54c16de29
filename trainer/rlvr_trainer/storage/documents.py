"""The base of the JSON documents in the store, and the few values that several of them hold."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class StoredDocument(BaseModel):
    """A frozen JSON document; a field it does not know is an error, so that a newer writer is noticed and not misread."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def to_bytes(self) -> bytes:
        """UTF-8 JSON, indented for people."""
        return self.model_dump_json(indent=1).encode()


class StoredBlob(StoredDocument):
    """An object and what must be in it."""

    key: Annotated[str, Field(min_length=1, max_length=1024)]
    """Key below the store's prefix."""
    bytes: Count
    """Size."""
    sha256: Sha256
    """Digest of the whole object, hexadecimal, as `sha256sum` prints it."""


class Discard(StoredDocument):
    """An admitted group that is never trained on."""

    index: Count
    """Its index."""
    reason: Annotated[str, Field(min_length=1, max_length=500)]
    """Why, for example `stale: oldest token 9 steps back, dropBeyond is 8`."""


def first_fault(error: ValidationError) -> str:
    """Path and message of the first thing that is wrong with a document."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}"
