import io
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr_api.wire import AuditVerdict, Verdict, VerdictStatus
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan
from rlvr_trainer.storage import rollouts as module
from rlvr_trainer.storage.errors import CorruptObjectError
from rlvr_trainer.storage.rollouts import SCHEMA, VERSION_KEY, decode_groups, encode_groups

IDS = st.integers(0, 2**31 - 1)
SECONDS = st.floats(0, 1e6)
RATES = st.none() | st.floats(0, 1)


@st.composite
def audits(draw):
    return AuditVerdict(
        probability=draw(st.floats(1e-6, 1)), score=draw(st.floats(0, 1)), verifier=draw(st.text(max_size=5)), verifier_version="1",
        flaky=draw(st.booleans()), reason=draw(st.text(max_size=20)),
    )  # fmt: skip


@st.composite
def verdicts(draw):
    status = draw(st.sampled_from(VerdictStatus))
    score = {VerdictStatus.INFRA_ERROR: None, VerdictStatus.PASS: draw(st.floats(1e-6, 1))}.get(status, 0.0)
    return Verdict(
        id=draw(st.text(min_size=1, max_size=10)), status=status, score=score, verifier=draw(st.text(max_size=5)), verifier_version="1",
        false_positive_rate=draw(RATES), false_negative_rate=draw(RATES), reason=draw(st.text(max_size=20)), seconds=draw(SECONDS),
        audit=None if status is VerdictStatus.INFRA_ERROR else draw(st.none() | audits()),
    )  # fmt: skip


@st.composite
def rollouts(draw):
    tokens = draw(st.lists(IDS, max_size=8))
    logprobs = draw(st.lists(st.floats(allow_nan=False), min_size=len(tokens), max_size=len(tokens)))
    cut = draw(st.integers(0, len(tokens)))
    spans = [VersionSpan(draw(st.integers(0, 2**62)), 0, cut), VersionSpan(draw(st.integers(0, 2**62)), cut, len(tokens))]
    return Rollout(
        tuple(tokens), tuple(logprobs), tuple(spans[: draw(st.integers(0, 2))]), draw(st.sampled_from(["stop", "length"])),
        draw(st.text(max_size=20)), draw(verdicts()),
    )  # fmt: skip


@st.composite
def groups(draw):
    admission = Admission(
        draw(st.integers(0, 2**62)), draw(st.text(max_size=5)), draw(st.integers(0, 100)), draw(st.integers(0, 2**63 - 1))
    )
    return RolloutGroup(
        admission, "0123456789abcdef", tuple(draw(st.lists(IDS, max_size=5))), draw(st.text(max_size=20)),
        tuple(draw(st.lists(rollouts(), min_size=1, max_size=3))), "rollout-0", draw(st.text(max_size=5)), draw(SECONDS), draw(SECONDS),
    )  # fmt: skip


def simple_group(index, logprobs=(-0.5, -1.25), text="42"):
    verdict = Verdict(id="a", status=VerdictStatus.PASS, score=1.0, verifier="arithmetic", verifier_version="1")
    tokens = tuple(range(len(logprobs)))
    rollout = Rollout(tokens, tuple(logprobs), (VersionSpan(3, 0, len(tokens)),), "stop", text, verdict)
    return RolloutGroup(Admission(index, "sums", 0, index), "0" * 16, (1, 2, 3), "1+1?", (rollout, rollout), "rollout-0", "", 0.5, 0.25)


def encode(some):
    return b"".join(encode_groups(some))


def decode(data):
    return list(decode_groups(io.BytesIO(data), "here"))


@settings(deadline=None, max_examples=60)
@given(st.lists(groups(), max_size=4))
def test_round_trip_keeps_every_bit(some):
    read = decode(encode(some))
    assert read == some
    for before, after in zip(some, read, strict=True):
        for one, other in zip(before.rollouts, after.rollouts, strict=True):
            size = len(one.logprobs)
            assert struct.pack(f"{size}d", *one.logprobs) == struct.pack(f"{size}d", *other.logprobs)


def test_neighbours_with_one_index_stay_two_groups():
    some = [simple_group(7), simple_group(7)]
    assert decode(encode(some)) == some


def test_any_parquet_reader_gets_one_row_a_rollout_with_compressed_columns():
    table = pq.read_table(io.BytesIO(encode([simple_group(1), simple_group(2)])))
    assert table.column("index").to_pylist() == [1, 1, 2, 2]
    assert table.column("text").to_pylist() == ["42"] * 4
    columns = pq.ParquetFile(io.BytesIO(encode([simple_group(1)]))).metadata.row_group(0)
    by_path = {columns.column(number).path_in_schema: columns.column(number) for number in range(columns.num_columns)}
    assert {column.compression for column in by_path.values()} == {"ZSTD"}
    assert "BYTE_STREAM_SPLIT" in by_path["logprobs.list.element"].encodings


def test_large_inputs_become_several_row_groups_of_whole_groups(monkeypatch):
    monkeypatch.setattr(module, "ROW_GROUP_TOKENS", 25)
    some = [simple_group(index) for index in range(7)]
    pieces = list(encode_groups(iter(some)))
    assert len(pieces) > 3
    file = pq.ParquetFile(io.BytesIO(b"".join(pieces)))
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [6, 6, 2]
    assert decode(b"".join(pieces)) == some


def test_float32_logprobs_cost_about_four_bytes_and_not_eight():
    values = [struct.unpack("f", struct.pack("f", -((index * 0.61803) % 7) - 1e-3))[0] for index in range(20_000)]
    small = len(encode([simple_group(0, logprobs=values[:10])]))
    large = len(encode([simple_group(0, logprobs=values)]))
    assert (large - small) / 40_000 < 5.5  # two rollouts; token ids cost about one byte here


def test_a_group_without_rollouts_is_refused():
    group = simple_group(4)
    with pytest.raises(ValueError, match="group 4 has no rollout"):
        encode([RolloutGroup(group.admission, "0" * 16, (), "", (), "e", "", 0, 0)])


def test_text_that_is_not_unicode_is_refused_by_name():
    with pytest.raises(ValueError, match="text of group 9 is not Unicode"):
        encode([simple_group(8), simple_group(9, text="\ud800")])


def test_other_versions_and_other_files_are_refused():
    table = pq.read_table(io.BytesIO(encode([simple_group(1)])))

    def written(changed):
        sink = io.BytesIO()
        pq.write_table(changed, sink)
        return sink.getvalue()

    with pytest.raises(CorruptObjectError, match="schema version 4, and this code reads 1, 2, 3"):
        decode(written(table.replace_schema_metadata({VERSION_KEY: b"4"})))
    with pytest.raises(CorruptObjectError, match="version none"):
        decode(written(table.replace_schema_metadata({})))
    with pytest.raises(CorruptObjectError, match="columns are others"):
        decode(written(table.drop_columns(["text"])))
    with pytest.raises(CorruptObjectError, match="here is not a Parquet file"):
        decode(b"not Parquet at all")


@pytest.mark.parametrize(("version", "missing"), [(b"1", ["audit", "observations"]), (b"2", ["observations"])])
def test_files_from_before_audits_and_turns_are_read(version, missing):
    table = pq.read_table(io.BytesIO(encode([simple_group(1)])))
    sink = io.BytesIO()
    pq.write_table(table.drop_columns(missing).replace_schema_metadata({VERSION_KEY: version}), sink)
    assert decode(sink.getvalue()) == [simple_group(1)]


def test_changed_rows_are_refused():
    table = pq.read_table(io.BytesIO(encode([simple_group(1)])))

    def with_column(name, values):
        sink = io.BytesIO()
        place = SCHEMA.get_field_index(name)
        changed = table.set_column(place, SCHEMA.field(name), pa.array(values, SCHEMA.field(name).type))
        pq.write_table(changed, sink)
        return sink.getvalue()

    with pytest.raises(CorruptObjectError, match="not its samples 0 to 1"):
        decode(with_column("sample", [0, 2]))
    with pytest.raises(CorruptObjectError, match="verdict that cannot be"):
        decode(with_column("score", [1.0, 0.0]))
    with pytest.raises(CorruptObjectError, match="verdict that cannot be"):
        decode(with_column("status", ["pass", "perhaps"]))
