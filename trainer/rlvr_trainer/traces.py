"""Supervised examples from a file of traces: prompts and completions as token ids, exactly as an engine would see and say them.

    JSONL or Parquet (file:// or s3://) -> TraceFile -> conversations -> one example for each turn of the assistant -> tokens -> TraceSet

Every fault of the file is a `BadInputError` that lists the first lines at fault; nothing is dropped in silence.

Not covered: files larger than memory, tools and images in messages.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import pyarrow
import pyarrow.parquet
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlvr_api.stages import Distill, Sft
from rlvr_api.wire import Message
from rlvr_trainer.chat import ChatFormat
from rlvr_trainer.context import BadInputError, RunContext
from rlvr_trainer.storage.client import ObjectStore, S3Settings
from rlvr_trainer.storage.documents import first_fault
from rlvr_trainer.storage.errors import StorageError

logger = logging.getLogger(__name__)

SHOWN_FAULTS = 10
FILE_SCHEME = "file://"
PARQUET_MAGIC = b"PAR1"

ItemT = TypeVar("ItemT")
Conversation = tuple[Message, ...]
"""Ends with the assistant's words that are learned."""


@dataclass(frozen=True, slots=True)
class Example:
    """What a supervised step learns from."""

    name: str
    """For messages, for example `line 12`."""
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    """Ends with an end token."""

    @property
    def tokens(self) -> int:
        """Prompt and completion together."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A file of traces as it is."""

    uri: str
    data: bytes

    @property
    def sha256(self) -> str:
        """Digest of the file."""
        return hashlib.sha256(self.data).hexdigest()

    def conversations(self) -> Iterator[tuple[str, Conversation]]:
        """Each turn of the assistant with all that came before it, and the name of its line.

        Raises:
            BadInputError: lines have faults; the first ones are listed.
        """
        return self.convert(lambda name, conversation: (name, conversation))

    def convert(self, convert: Callable[[str, Conversation], ItemT]) -> Iterator[ItemT]:
        """As `conversations`; what `convert` raises as a `ValueError` is a fault of the line."""
        faults: list[str] = []
        for name, parse in self._traces():
            try:
                yield from [convert(name, conversation) for conversation in parse().conversations()]
            except ValidationError as error:
                faults.append(f"{name}: {first_fault(error)}")
            except ValueError as error:
                faults.append(f"{name}: {error}")
        if faults:
            more = f"; and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
            raise BadInputError(f"traces {self.uri}: {'; '.join(faults[:SHOWN_FAULTS])}{more}")

    def _traces(self) -> Iterator[tuple[str, Callable[[], "Trace"]]]:
        """Name of each trace, and what parses it."""
        if self.data.startswith(PARQUET_MAGIC):
            for number, row in enumerate(self._rows(), 1):
                yield f"row {number}", partial(Trace.model_validate, row)
            return
        for number, line in enumerate(self.data.split(b"\n"), 1):
            if line.strip():
                yield f"line {number}", partial(Trace.model_validate_json, line)

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(self.data))
            columns = [name for name in Trace.model_fields if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns):
                yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            raise BadInputError(f"traces {self.uri} begin as a Parquet file, and are none: {error}; write them again") from None


@dataclass(frozen=True, slots=True)
class TraceSet:
    """All examples of a file."""

    examples: tuple[Example, ...]
    sha256: str
    """Digest of the file."""
    too_long: int
    """Examples that were left out."""


class Trace(BaseModel):
    """One line of the file; fields that it does not know, such as a source or a score, are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    messages: Annotated[tuple[Message, ...], Field(min_length=2)] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None
    completion: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.messages is None) is not (self.prompt is not None and self.completion is not None):
            raise ValueError("a trace has either messages, or prompt and completion")
        if self.messages is not None and not any(message.role == "assistant" for message in self.messages[1:]):
            raise ValueError("no message after the first is the assistant's, so there is nothing to learn")
        return self

    def conversations(self) -> Iterator[Conversation]:
        """Each turn of the assistant with all that came before it."""
        messages = self.messages or (
            Message(role="user", content=self.prompt or ""),
            Message(role="assistant", content=self.completion or ""),
        )
        for place, message in enumerate(messages):
            if place > 0 and message.role == "assistant":
                yield messages[: place + 1]


def read_trace_file(context: RunContext, uri: str) -> TraceFile:
    """A file of traces.

    Raises:
        BadInputError: it is not there.
    """
    return TraceFile(uri, _read(uri, S3Settings(context.s3_endpoint, context.job.spec.storage.region), f"traces {uri}"))


def read_traces(context: RunContext, stage: Sft, chat: ChatFormat) -> TraceSet:
    """The examples of a stage, from its file; see `make_examples`."""
    return make_examples(read_trace_file(context, stage.traces), stage, chat, context.job.spec.model.max_model_len)


def make_examples(file: TraceFile, stage: Sft | Distill, chat: ChatFormat, max_model_len: int) -> TraceSet:
    """The examples of a stage.

    Args:
        max_model_len: tokens of the longest example.

    Raises:
        BadInputError: the file has faults, or leaves no example.
    """
    place = f"traces {file.uri}"
    examples = tuple(file.convert(lambda name, conversation: Example(name, *chat.answer(conversation))))
    fitting = tuple(example for example in examples if example.tokens <= max_model_len)
    longest = max((example.tokens for example in examples), default=0)
    if not fitting or (stage.too_long == "refuse" and len(fitting) < len(examples)):
        raise BadInputError(
            f"{place}: {len(examples) - len(fitting)} of {len(examples)} examples have more tokens than model.maxModelLen "
            f"{max_model_len}, the longest {longest}: raise it, or shorten the traces"
            if examples
            else f"{place} has no line, so there is nothing to learn: write at least one trace"
        )
    if len(fitting) < len(examples):
        logger.warning("%s: %d of %d examples are too long and left out", place, len(examples) - len(fitting), len(examples))
    return TraceSet(fitting, file.sha256, len(examples) - len(fitting))


def _read(uri: str, settings: S3Settings, place: str) -> bytes:
    try:
        if uri.startswith(FILE_SCHEME):
            return Path(uri.removeprefix(FILE_SCHEME)).read_bytes()
        folder, _, key = uri.rpartition("/")
        return ObjectStore.open(folder, settings).get(key)
    except OSError as error:
        raise BadInputError(f"{place} cannot be read: {error.strerror or error}; check the path") from None
    except (StorageError, ValueError) as error:
        if isinstance(error, StorageError) and not error.permanent:
            raise
        raise BadInputError(f"{place} cannot be read: {error}") from None
