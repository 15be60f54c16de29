"""Queries: right on databases that nobody sees, unable to do anything but read, and bounded by steps, rows and memory."""

import asyncio
import sqlite3

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from verifier_jobs import open_rows, verifier_job, write_rows

from rlvr_api.wire import VerdictStatus
from rlvr_verifier.environments.base import EnvironmentSetupError
from rlvr_verifier.environments.databases import make_database, mirrored, same_rows, thinned
from rlvr_verifier.environments.sql import ends_with_order, sql_literal
from rlvr_verifier.exploits import TASKS, read_answers
from rlvr_verifier.integrity.probes import probes_for
from rlvr_verifier.pool import ScorerTimeoutError, WorkerPool

PASS, FAIL, INVALID, TIMEOUT = VerdictStatus.PASS, VerdictStatus.FAIL, VerdictStatus.INVALID, VerdictStatus.TIMEOUT
CITIES = TASKS["sql"]
CELLS = st.none() | st.integers(-(2**40), 2**40) | st.text(max_size=4) | st.binary(max_size=3) | st.floats(-1e6, 1e6)


@pytest.fixture(scope="module")
def cities(tmp_path_factory):
    return open_rows(tmp_path_factory.mktemp("rows"), "sql", CITIES)


@pytest.mark.parametrize("sample", list(read_answers("sql")), ids=lambda sample: sample.name)
def test_no_wrong_query_of_the_corpus_is_paid_and_every_right_one_is(cities, sample):
    found = cities.score(cities.sample("train", 0, 0).payload, sample.completion, False)
    assert (found.status is PASS) is sample.is_right, found.reason


def test_statuses_say_what_was_wrong(cities):
    payload = cities.sample("train", 0, 0).payload
    for query, status, reason in (
        ("SELECT 1", FAIL, "the result is wrong on the visible database"),
        ("VALUES ('New York', 100.0), ('London', 53.75), ('Erlangen', 13.5)", FAIL, "the result is wrong on a hidden database"),
        ("PRAGMA user_version", INVALID, "only one query may be asked, and it may only read tables and call known functions"),
        ("SELECT * FROM nowhere", FAIL, "the query fails: OperationalError"),
        ("WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r", TIMEOUT,
         "the query takes more than 20000000 steps"),
        ("WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r LIMIT 20000) SELECT n FROM r", FAIL,
         "the result has more than 10000 rows or 4000000 characters"),
    ):  # fmt: skip
        found = cities.score(payload, query, False)
        assert (found.status, found.reason) == (status, reason)


def test_every_probe_keeps_its_verdict(cities):
    payload = cities.sample("train", 0, 0).payload
    probes = probes_for(cities, payload)
    assert len({probe.name for probe in probes}) == len(probes) > 18
    assert [probe.name for probe in probes if (cities.score(payload, probe.completion, False).status is PASS) is not probe.paid] == []


@given(st.text(max_size=60) | st.lists(st.sampled_from(
    ["SELECT", "city", "FROM", "people", ",", "*", "(", ")", "WHERE", "'x'", "1", "GROUP BY", "ORDER BY", ";", "VALUES", "NULL", "--"]
), max_size=12).map(" ".join))  # fmt: skip
def test_any_text_gets_a_verdict_and_chance_is_not_paid(cities, text):
    assert cities.score(cities.sample("train", 0, 0).payload, text, False).status in (FAIL, INVALID)


def test_nothing_of_a_query_is_left_for_the_next(cities):
    payload = cities.sample("train", 0, 0).payload
    for attack in (
        "PRAGMA case_sensitive_like = 1",
        "CREATE TEMP VIEW people AS SELECT 1",
        "DELETE FROM orders",
        "PRAGMA hard_heap_limit = 1",
    ):
        assert cities.score(payload, attack, False).score == 0
        assert cities.score(payload, CITIES["reference"], False).status is PASS


SCHEMA = (
    "CREATE TABLE a (x INTEGER PRIMARY KEY AUTOINCREMENT, y TEXT UNIQUE); CREATE TABLE b (k TEXT REFERENCES a(y), z REAL, w AS (z * 2));"
)


def filled(count):
    rows = f"INSERT INTO a VALUES {','.join(f'({n}, {n})' for n in range(count))};" if count else ""
    return make_database(SCHEMA, f"{rows} INSERT INTO b(k, z) SELECT y, x / 7.0 FROM a; INSERT INTO b(k, z) SELECT y, x FROM a;")


@pytest.mark.parametrize("count", [0, 1, 40])
def test_the_opposite_order_has_the_same_rows(count):
    database = filled(count)
    other = mirrored(database)
    for table in ("a", "b"):
        assert same_rows(database.query(f"SELECT * FROM {table}"), other.query(f"SELECT * FROM {table}")[::-1], ordered=True)


@given(st.text(max_size=5))
def test_fewer_rows_are_a_part_without_dangling_references_and_follow_from_the_seed(seed):
    database = filled(40)
    fewer = thinned(database, seed, keep=0.5)
    everything = set(database.query("SELECT x, y FROM a"))
    assert set(fewer.query("SELECT x, y FROM a")) < everything
    assert fewer.query("SELECT count(*) FROM b WHERE k NOT IN (SELECT y FROM a)") == [(0,)]
    assert fewer.query("SELECT * FROM a") == thinned(database, seed, keep=0.5).query("SELECT * FROM a")


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=8), st.randoms())
def test_multisets_do_not_depend_on_order_and_lists_do(rows, generator):
    shuffled = generator.sample(rows, len(rows))
    assert same_rows(rows, shuffled, ordered=False)
    assert same_rows(rows, rows, ordered=True)
    if rows:
        assert not same_rows(rows, [*rows, rows[0]], ordered=False)
        assert not same_rows(rows, [(*row, 1) for row in rows], ordered=False)


def test_values_are_compared_by_type_and_floats_with_tolerance():
    assert same_rows([(1, "a"), (2, "b")], [(2, "b"), (1, "a")], ordered=False)
    assert not same_rows([(1,)], [("1",)], ordered=False)
    assert not same_rows([(None,)], [(0,)], ordered=False)
    assert not same_rows([("a",)], [(b"a",)], ordered=False)
    assert same_rows([(3,)], [(3.0,)], ordered=False)
    assert same_rows([(0.1 + 0.2, "b"), (0.3, "a")], [(0.3, "b"), (0.1 + 0.2, "a")], ordered=False)
    assert not same_rows([(0.3,)], [(0.3000001,)], ordered=False)
    assert not same_rows([(2**60,)], [(2**60 + 1,)], ordered=False)


@example(4.435795000956056e-302)
@example(5e-324)
@example(-1.7976931348623157e308)
@given(CELLS)
def test_a_value_is_written_as_sql_reads_it(cell):
    connection = sqlite3.connect(":memory:")
    assert connection.execute(f"SELECT {sql_literal(cell)}").fetchone() == (cell,)
    connection.close()


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a limit 3", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'order by', \"order by\" FROM t -- order by a", False),
        ("SELECT a /* ) order by */ FROM t", False),
        ("WITH q AS (SELECT ')' FROM t ORDER BY 1) SELECT * FROM q ORDER BY 1", True),
    ],
)  # fmt: skip
def test_the_order_counts_where_the_reference_itself_orders(query, ordered):
    assert ends_with_order(query) is ordered


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"schema": "CREATE TABLE people (id"}, "the scripts fail: incomplete input"),
        ({"rows": "INSERT INTO nowhere VALUES (1)"}, "the scripts fail: no such table: nowhere"),
        ({"rows": "ATTACH '/tmp/x.db' AS x"}, "the scripts fail: too many attached databases"),
        ({"rows": "VACUUM INTO '/tmp/x.db'"}, "the scripts fail: too many attached databases"),
        ({"reference": "SELECT nothing FROM people"}, "its reference fails: the query fails: OperationalError"),
        ({"reference": "DELETE FROM people"}, "its reference fails: only one query may be asked"),
        ({"reference": "SELECT random()"}, "its reference fails: only one query may be asked"),
        ({"reference": "SELECT name FROM people LIMIT 1"}, "depends on the order of rows"),
        ({"reference": "SELECT name FROM people ORDER BY born"}, "depends on the order of rows"),
        ({"reference": "SELECT 1"}, "has one result on all databases"),
        ({"reference": "SELECT max(amount) FROM orders WHERE amount < 0"}, "has one result on all databases"),
        ({"hidden": ["INSERT INTO people VALUES (1)"]}, "the scripts fail: table people has 4 columns"),
        ({"schema": CITIES["schema"] + "CREATE TRIGGER t AFTER INSERT ON people BEGIN SELECT 1; END;"}, "trigger t: triggers, virtual"),
    ],
)  # fmt: skip
def test_faults_of_a_dataset_are_listed_by_line(tmp_path, change, fault):
    with pytest.raises(EnvironmentSetupError) as refused:
        open_rows(tmp_path, "sql", {**CITIES, "prompt": "Another."}, {**CITIES, **change})
    assert "line 2: " in str(refused.value)
    assert fault in str(refused.value)


def test_rows_that_are_written_out_are_hidden_databases_too(tmp_path):
    row = {
        "prompt": "The largest x.", "schema": "CREATE TABLE t (x INTEGER);", "rows": "INSERT INTO t VALUES (1), (2), (3);",
        "hidden": ["INSERT INTO t VALUES (-1), (-2);", "INSERT INTO t VALUES (NULL);"], "reference": "SELECT max(x) FROM t",
    }  # fmt: skip
    largest = open_rows(tmp_path, "sql", row)
    payload = largest.sample("train", 0, 0).payload
    assert largest.score(payload, "SELECT x FROM t ORDER BY x DESC LIMIT 1", False).status is PASS
    assert largest.score(payload, "SELECT max(0, max(x)) FROM t", False).reason == "the result is wrong on a hidden database"


def test_a_step_that_is_slow_by_itself_is_the_candidates_time_out(tmp_path):
    job = verifier_job(
        [{"name": "q", "sql": {"dataset": write_rows(tmp_path, CITIES), "heldOut": 1e-4}}], workers=1, itemTimeoutSeconds=0.5
    )
    slow = "SELECT printf('%.*c', 2000000000, 'x'), 1"

    async def scenario():
        pool = WorkerPool(job.model_dump_json(), job.spec)
        try:
            payload = open_rows(tmp_path, "sql", CITIES).sample("train", 0, 0).payload
            with pytest.raises(ScorerTimeoutError):
                await pool.run("q", payload, slow, False)
            assert (await pool.run("q", payload, CITIES["reference"], False)).status is PASS, "the worker was replaced"
        finally:
            pool.close()

    asyncio.run(scenario())
