"""Rollout groups as Parquet: one row a rollout, readable by any Parquet reader, the same values back bit by bit.

    groups -> row groups of whole rollout groups -> Parquet (zstd) -> one object, streamed

The columns of a group repeat on each of its rows, in the order of the group's rollouts; `sample` counts them from 0. Log-probs are
float64, since that is what the sampler's JSON holds; byte-stream split makes the bytes that a float32 origin leaves empty cost nothing.
The file's metadata names the schema's version, and a reader refuses versions it does not know.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlvr_api.wire import AuditVerdict, Verdict, VerdictStatus
from rlvr_trainer.rollout import Admission, Observation, Rollout, RolloutGroup, VersionSpan
from rlvr_trainer.storage.client import ObjectStore
from rlvr_trainer.storage.documents import StoredBlob
from rlvr_trainer.storage.errors import CorruptObjectError

SCHEMA_VERSION = 3
VERSION_KEY = b"rlvr.rollouts.version"
ROW_GROUP_TOKENS = 1 << 20
"""Tokens after which a row group ends: about 12 MB in memory."""
IN_MEMORY_BYTES = 64 << 20
"""A larger file is read through a temporary file."""

_SPAN = pa.struct([
    pa.field("version", pa.int64(), False),
    pa.field("start", pa.int32(), False),
    pa.field("end", pa.int32(), False),
])  # fmt: skip
_OBSERVATION = pa.struct([
    pa.field("start", pa.int32(), False),
    pa.field("end", pa.int32(), False),
    pa.field("text", pa.string(), False),
])  # fmt: skip
_AUDIT = pa.struct([
    pa.field("probability", pa.float64(), False),
    pa.field("score", pa.float64(), False),
    pa.field("verifier", pa.string(), False),
    pa.field("verifier_version", pa.string(), False),
    pa.field("flaky", pa.bool_(), False),
    pa.field("reason", pa.string(), False),
])  # fmt: skip
SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), False),
        pa.field("environment", pa.string(), False),
        pa.field("level", pa.int32(), False),
        pa.field("task_seed", pa.int64(), False),
        pa.field("problem_id", pa.string(), False),
        pa.field("prompt", pa.string(), False),
        pa.field("prompt_ids", pa.list_(pa.field("element", pa.int32(), False)), False),
        pa.field("engine", pa.string(), False),
        pa.field("traceparent", pa.string(), False),
        pa.field("generate_seconds", pa.float64(), False),
        pa.field("score_seconds", pa.float64(), False),
        pa.field("sample", pa.int32(), False),
        pa.field("text", pa.string(), False),
        pa.field("finish_reason", pa.string(), False),
        pa.field("token_ids", pa.list_(pa.field("element", pa.int32(), False)), False),
        pa.field("logprobs", pa.list_(pa.field("element", pa.float64(), False)), False),
        pa.field("spans", pa.list_(pa.field("element", _SPAN, False)), False),
        pa.field("verdict_id", pa.string(), False),
        pa.field("status", pa.string(), False),
        pa.field("score", pa.float64()),
        pa.field("verifier", pa.string(), False),
        pa.field("verifier_version", pa.string(), False),
        pa.field("false_positive_rate", pa.float64()),
        pa.field("false_negative_rate", pa.float64()),
        pa.field("reason", pa.string(), False),
        pa.field("verdict_seconds", pa.float64(), False),
        pa.field("audit", _AUDIT),
        pa.field("observations", pa.list_(pa.field("element", _OBSERVATION, False)), False),
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()},
)
SCHEMAS = {
    "1": pa.schema([field for field in SCHEMA if field.name not in ("audit", "observations")]),
    "2": pa.schema([field for field in SCHEMA if field.name != "observations"]),
    str(SCHEMA_VERSION): SCHEMA,
}
"""What is read: version 1 had no audits, version 2 no episodes of several turns."""
_NESTED = ("spans", "observations")
_SPLIT = ["logprobs.list.element"]
_DICTIONARY = [name for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True) if kind == pa.string() and name != "text"]


def write_groups(store: ObjectStore, key: str, groups: Iterable[RolloutGroup]) -> StoredBlob:
    """Write groups as one Parquet object, streaming; `groups` may be larger than memory.

    Raises:
        ValueError: a group has no rollout, or text that is not Unicode.
    """
    return store.upload(key, encode_groups(groups))


def read_groups(store: ObjectStore, blob: StoredBlob) -> tuple[RolloutGroup, ...]:
    """All groups of a Parquet object, in order, verified against its digest.

    Raises:
        CorruptObjectError: the object differs from what was committed, or has a schema that this code does not know.
    """
    return tuple(iterate_groups(store, blob))


def iterate_groups(store: ObjectStore, blob: StoredBlob) -> Iterator[RolloutGroup]:
    """As `read_groups`, with one row group in memory at a time for large files."""
    if blob.bytes <= IN_MEMORY_BYTES:
        yield from decode_groups(pa.BufferReader(pa.py_buffer(store.read(blob))), store.uri(blob.key))
        return
    with tempfile.TemporaryFile(prefix="rlvr-rollouts-") as file:
        store.download(blob, file)
        file.seek(0)
        yield from decode_groups(file, store.uri(blob.key))


def encode_groups(groups: Iterable[RolloutGroup]) -> Iterator[bytes]:
    """The Parquet file of `groups` in pieces, one row group at a time."""
    sink = _Sink()
    with pq.ParquetWriter(
        sink,
        SCHEMA,
        compression="zstd",
        compression_level=3,
        use_byte_stream_split=_SPLIT,
        use_dictionary=_DICTIONARY,
    ) as writer:
        for some in _row_groups(groups):
            writer.write_table(_table(some))
            yield sink.take()
    yield sink.take()


def decode_groups(source: Any, place: str) -> Iterator[RolloutGroup]:
    """Groups of a Parquet file.

    Args:
        source: what pyarrow reads: a seekable binary file or buffer reader.
        place: its name, for messages.

    Raises:
        CorruptObjectError: not Parquet, another schema, or rows that are no groups.
    """
    try:
        file = pq.ParquetFile(source)
    except pa.ArrowInvalid as error:
        raise CorruptObjectError(f"{place} is not a Parquet file ({error}); restore it or delete it") from error
    with file:
        _check_schema(file.schema_arrow, place)
        for number in range(file.num_row_groups):
            yield from _groups(file.read_row_group(number).to_pylist(), f"{place}, row group {number}")


class _Sink:
    """A write-only file that hands out what was written so far."""

    closed = False

    def __init__(self) -> None:
        self._written: list[bytes] = []
        self._position = 0

    def write(self, data: bytes) -> int:
        self._written.append(bytes(data))
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """The uploader ends the object."""

    def take(self) -> bytes:
        data = b"".join(self._written)
        self._written.clear()
        return data


def _row_groups(groups: Iterable[RolloutGroup]) -> Iterator[list[RolloutGroup]]:
    some: list[RolloutGroup] = []
    tokens = 0
    for group in groups:
        if not group.rollouts:
            raise ValueError(f"group {group.admission.index} has no rollout, so it has no row to be kept in")
        some.append(group)
        tokens += sum(len(group.prompt_ids) + len(rollout.token_ids) for rollout in group.rollouts)
        if tokens >= ROW_GROUP_TOKENS:
            yield some
            some, tokens = [], 0
    if some:
        yield some


def _table(groups: Sequence[RolloutGroup]) -> pa.Table:
    rows = [row for group in groups for row in _rows(group)]
    columns = []
    for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True):
        values = [row[name] for row in rows]
        try:
            columns.append(_list_array(values, kind) if pa.types.is_list(kind) and name not in _NESTED else pa.array(values, kind))
        except UnicodeEncodeError as error:
            index = next(row["index"] for row in rows if not _is_unicode(row[name]))
            raise ValueError(f"{name} of group {index} is not Unicode ({error}); replace what cannot be decoded by U+FFFD") from error
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _list_array(values: Sequence[Sequence[float]], kind: pa.ListType) -> pa.ListArray:
    """Several times faster than `pa.array`, which looks at every list by itself."""
    offsets = [0]
    for value in values:
        offsets.append(offsets[-1] + len(value))
    flat = pa.array(chain.from_iterable(values), kind.value_type, size=offsets[-1])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, kind)


def _is_unicode(text: str) -> bool:
    return not any(0xD800 <= ord(character) < 0xE000 for character in text)


def _rows(group: RolloutGroup) -> Iterator[dict[str, Any]]:
    admission = group.admission
    shared = {
        "index": admission.index,
        "environment": admission.environment,
        "level": admission.level,
        "task_seed": admission.task_seed,
        "problem_id": group.problem_id,
        "prompt": group.prompt,
        "prompt_ids": group.prompt_ids,
        "engine": group.engine,
        "traceparent": group.traceparent,
        "generate_seconds": group.generate_seconds,
        "score_seconds": group.score_seconds,
    }
    for sample, rollout in enumerate(group.rollouts):
        verdict = rollout.verdict
        yield {
            **shared,
            "sample": sample,
            "text": rollout.text,
            "finish_reason": rollout.finish_reason,
            "token_ids": rollout.token_ids,
            "logprobs": rollout.logprobs,
            "spans": [{"version": span.version, "start": span.start, "end": span.end} for span in rollout.spans],
            "verdict_id": verdict.id,
            "status": verdict.status.value,
            "score": verdict.score,
            "verifier": verdict.verifier,
            "verifier_version": verdict.verifier_version,
            "false_positive_rate": verdict.false_positive_rate,
            "false_negative_rate": verdict.false_negative_rate,
            "reason": verdict.reason,
            "verdict_seconds": verdict.seconds,
            "audit": None if verdict.audit is None else verdict.audit.model_dump(by_alias=False),
            "observations": [{"start": seen.start, "end": seen.end, "text": seen.text} for seen in rollout.observations],
        }


def _check_schema(schema: pa.Schema, place: str) -> None:
    version = (schema.metadata or {}).get(VERSION_KEY, b"none").decode(errors="replace")
    if version not in SCHEMAS:
        known = ", ".join(SCHEMAS)
        raise CorruptObjectError(
            f"{place} has rollout schema version {version}, and this code reads {known}; use the version that wrote it"
        )
    if not schema.equals(SCHEMAS[version]):
        raise CorruptObjectError(f"{place} says schema version {version}, but its columns are others; it was not written by this code")


def _groups(rows: Sequence[dict[str, Any]], place: str) -> Iterator[RolloutGroup]:
    start = 0
    for end in range(1, len(rows) + 1):
        if end < len(rows) and rows[end]["sample"] != 0:
            continue
        yield _group(rows[start:end], place)
        start = end


def _group(rows: Sequence[dict[str, Any]], place: str) -> RolloutGroup:
    first = rows[0]
    if [row["sample"] for row in rows] != list(range(len(rows))) or len({row["index"] for row in rows}) != 1:
        raise CorruptObjectError(f"{place}: the rows of group {first['index']} are not its samples 0 to {len(rows) - 1}; it was changed")
    try:
        rollouts = tuple(map(_rollout, rows))
    except ValueError as error:
        raise CorruptObjectError(f"{place}: group {first['index']} holds a verdict that cannot be ({error}); it was changed") from error
    return RolloutGroup(
        admission=Admission(first["index"], first["environment"], first["level"], first["task_seed"]),
        problem_id=first["problem_id"],
        prompt_ids=tuple(first["prompt_ids"]),
        prompt=first["prompt"],
        rollouts=rollouts,
        engine=first["engine"],
        traceparent=first["traceparent"],
        generate_seconds=first["generate_seconds"],
        score_seconds=first["score_seconds"],
    )


def _rollout(row: dict[str, Any]) -> Rollout:
    return Rollout(
        token_ids=tuple(row["token_ids"]),
        logprobs=tuple(row["logprobs"]),
        spans=tuple(VersionSpan(span["version"], span["start"], span["end"]) for span in row["spans"]),
        finish_reason=row["finish_reason"],
        text=row["text"],
        verdict=Verdict(
            id=row["verdict_id"],
            status=VerdictStatus(row["status"]),
            score=row["score"],
            verifier=row["verifier"],
            verifier_version=row["verifier_version"],
            false_positive_rate=row["false_positive_rate"],
            false_negative_rate=row["false_negative_rate"],
            reason=row["reason"],
            seconds=row["verdict_seconds"],
            audit=AuditVerdict.model_validate(row["audit"]) if row.get("audit") is not None else None,
        ),
        observations=tuple(Observation(seen["start"], seen["end"], seen["text"]) for seen in row.get("observations", ())),
    )
