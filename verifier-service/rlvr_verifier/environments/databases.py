"""SQLite databases in memory: made from trusted scripts, perturbed, and asked by queries that nobody trusts.

    scripts -> Database -> mirrored: the same rows in the opposite order; thinned: fewer rows, no reference left dangling
    query   -> read only, one statement, known functions, bounded steps, rows and memory -> rows | QueryError

A query gets at nothing but the rows: the authorizer refuses all but reading tables and calling known functions, and no file, setting or
schema is among them. Steps are counted by SQLite itself, so the verdict does not depend on the machine; single steps that are slow are the
killable worker's to bound. Not covered: table-valued functions such as `json_each`, which SQLite makes by writing to its schema.
"""

import math
import random
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_INSTRUCTIONS = 20_000_000
"""Of SQLite's machine, for one query on one database: about half a second."""
MAX_ROWS = 10_000
MAX_RESULT_CHARACTERS = 4_000_000
MAX_QUERY_CHARACTERS = 20_000
HEAP_BYTES = 128 << 20
"""Of SQLite in this process, all connections together."""
TOLERANCE = 1e-9
"""Relative difference up to which floats are equal: sums depend on the order of rows."""
KEEP = 0.7
"""Share of the rows that a thinned database has left, about."""
_TICK = 10_000
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 500,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
}
FUNCTIONS = frozenset({
    "->", "->>", "abs", "avg", "ceil", "ceiling", "char", "coalesce", "concat", "concat_ws", "count", "cume_dist", "date", "datetime",
    "dense_rank", "exp", "first_value", "floor", "format", "glob", "group_concat", "hex", "ifnull", "iif", "instr", "json",
    "json_array", "json_array_length", "json_extract", "json_group_array", "json_group_object", "json_object", "json_type",
    "json_valid", "julianday", "lag", "last_value", "lead", "length", "like", "ln", "log", "log10", "log2", "lower", "ltrim", "max",
    "min", "mod", "nth_value", "ntile", "nullif", "percent_rank", "pi", "pow", "power", "printf", "quote", "rank", "replace", "round",
    "row_number", "rtrim", "sign", "sqrt", "strftime", "string_agg", "substr", "substring", "sum", "time", "total", "trim", "trunc",
    "typeof", "unicode", "unixepoch", "upper",
})  # fmt: skip
"""What a query may call: the same rows always give the same value."""
Cell = int | float | str | bytes | None
Rows = list[tuple[Cell, ...]]


class DatabaseError(ValueError):
    """The scripts make no database that can be used; the message is for whoever wrote them."""


class QueryError(ValueError):
    """A query has no result; the message says why, and nothing of the rows."""


class QueryForbiddenError(QueryError):
    """The query does something else than read, or is more than one."""


class QueryTooLongError(QueryError):
    """The query takes too many steps."""


@dataclass(frozen=True)
class Database:
    """One database, and the script that made its tables."""

    schema: str
    image: bytes
    """As SQLite serialises it."""

    def query(self, text: str, *, reverse: bool = False) -> Rows:
        """What one query says.

        Args:
            reverse: rows come in the other order wherever the query leaves it open.

        Raises:
            QueryError: it has no result.
        """
        if len(text) > MAX_QUERY_CHARACTERS:
            raise QueryForbiddenError(f"the query has more than {MAX_QUERY_CHARACTERS} characters")
        connection = _connect()
        try:
            connection.deserialize(self.image)
            connection.execute(f"PRAGMA reverse_unordered_selects = {int(reverse)}")
            connection.execute("PRAGMA query_only = 1")
            connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 0)
            connection.set_authorizer(_authorize)
            return _fetch(connection, text)
        finally:
            connection.close()


def make_database(schema: str, rows: str) -> Database:
    """The database of two trusted scripts.

    Raises:
        DatabaseError: they fail, or make what cannot be perturbed.
    """
    connection = _connect()
    try:
        connection.executescript(schema)
        connection.executescript(rows)
        odd = connection.execute(
            "SELECT type, name FROM sqlite_master WHERE type = 'trigger' OR sql LIKE 'CREATE VIRTUAL%' OR sql LIKE '%WITHOUT ROWID%'"
        ).fetchone()
        if odd is not None:
            raise DatabaseError(f"{odd[0]} {odd[1]}: triggers, virtual tables and tables WITHOUT ROWID are not supported")
        return Database(schema, connection.serialize())
    except (sqlite3.Error, sqlite3.Warning, MemoryError) as error:
        raise DatabaseError(f"the scripts fail: {error or type(error).__name__}") from None
    finally:
        connection.close()


def thinned(database: Database, seed: str, keep: float = KEEP) -> Database:
    """The same tables with some of the rows, in another order; rows that reference one that is gone go, too.

    Args:
        keep: probability of each row.

    Raises:
        DatabaseError: the rows cannot be written again.
    """
    generator = random.Random(seed)  # noqa: S311 - nothing secret: the prompt shows none of it

    def choose(rows: Rows) -> Rows:
        kept = [row for row in rows if generator.random() < keep]
        return generator.sample(kept, len(kept))

    return _copy(database, database.schema, choose)


def mirrored(database: Database) -> Database:
    """The same rows in the opposite order, also where an integer primary key would sort them: ties come the other way round.

    Raises:
        DatabaseError: the rows cannot be written again.
    """
    # INT is the same type, and yet no name for the row's own number, which only INTEGER PRIMARY KEY is.
    schema = re.sub(r"\bAUTOINCREMENT\b", "", database.schema, flags=re.IGNORECASE)
    return _copy(database, re.sub(r"\bINTEGER\b", "INT", schema, flags=re.IGNORECASE), lambda rows: rows[::-1])


def _copy(database: Database, schema: str, choose: Callable[[Rows], Rows]) -> Database:
    source, target = _connect(), _connect()
    try:
        source.deserialize(database.image)
        target.executescript(schema)
        target.execute("PRAGMA foreign_keys = 0")  # rows come in any order; what dangles in the end is taken out below
        for (table,) in source.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"):
            columns = [_quoted(column[1]) for column in source.execute(f"PRAGMA table_xinfo({_quoted(table)})") if column[6] == 0]
            listed = ", ".join(columns)
            rows = choose(source.execute(f"SELECT {listed} FROM {_quoted(table)}").fetchall())  # noqa: S608
            target.execute(f"DELETE FROM {_quoted(table)}")  # noqa: S608 - the script of the tables may bring rows
            target.executemany(f"INSERT INTO {_quoted(table)} ({listed}) VALUES ({', '.join('?' * len(columns))})", rows)  # noqa: S608
        while dangling := target.execute("PRAGMA foreign_key_check").fetchall():
            for table, rowid, *_ in dangling:
                target.execute(f"DELETE FROM {_quoted(table)} WHERE rowid = {int(rowid)}")  # noqa: S608
        target.commit()
        return Database(schema, target.serialize())
    except (sqlite3.Error, sqlite3.Warning, MemoryError) as error:
        raise DatabaseError(f"the rows cannot be written again: {error or type(error).__name__}") from None
    finally:
        source.close()
        target.close()


def same_rows(expected: Rows, found: Rows, *, ordered: bool) -> bool:
    """Whether two results are equal, as lists or as multisets of rows; a column with a float in it is compared with tolerance."""
    if len(expected) != len(found) or {len(row) for row in expected} != {len(row) for row in found}:
        return False
    width = len(expected[0]) if expected else 0
    real = {place for place in range(width) if any(isinstance(row[place], float) for row in (*expected, *found))}
    columns = [place for place in range(width) if place not in real] + sorted(real)
    # Columns with floats come last, so that rounding does not decide where a row stands among those that differ elsewhere.
    left, right = ([tuple(row[place] for place in columns) for row in rows] for rows in (expected, found))
    if not ordered:
        left.sort(key=_sort_key)
        right.sort(key=_sort_key)
    return all(map(_same_row, left, right))


def _same_row(left: tuple[Cell, ...], right: tuple[Cell, ...]) -> bool:
    return all(map(_same_cell, left, right))


def _same_cell(left: Cell, right: Cell) -> bool:
    if isinstance(left, int | float) and isinstance(right, int | float):
        if isinstance(left, float) or isinstance(right, float):
            return math.isclose(left, right, rel_tol=TOLERANCE, abs_tol=1e-12)
        return left == right
    return type(left) is type(right) and left == right


def _sort_key(row: tuple[Cell, ...]) -> list[tuple[str, Any]]:
    return [("", 0) if cell is None else ("number" if isinstance(cell, int | float) else type(cell).__name__, cell) for cell in row]


def _connect() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    for limit, value in _LIMITS.items():
        connection.setlimit(limit, value)
    connection.execute(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")
    ticks = iter(range(MAX_INSTRUCTIONS // _TICK))
    connection.set_progress_handler(lambda: next(ticks, None) is None, _TICK)
    return connection


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_READ and not str(first).lower().startswith("sqlite_"):
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and str(second).lower() in FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _fetch(connection: sqlite3.Connection, text: str) -> Rows:
    rows: Rows = []
    size = 0
    try:
        for row in connection.execute(text):
            rows.append(row)
            size += sum(len(cell) for cell in row if isinstance(cell, str | bytes))
            if len(rows) > MAX_ROWS or size > MAX_RESULT_CHARACTERS:
                raise QueryError(f"the result has more than {MAX_ROWS} rows or {MAX_RESULT_CHARACTERS} characters")
    except MemoryError:
        raise QueryError("the query takes too much memory") from None
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        if isinstance(error, QueryError):
            raise
        words = str(error)
        if words == "interrupted":
            raise QueryTooLongError(f"the query takes more than {MAX_INSTRUCTIONS} steps") from None
        if isinstance(error, sqlite3.ProgrammingError | sqlite3.Warning) or "authorized" in words or "prohibited" in words:
            raise QueryForbiddenError("only one query may be asked, and it may only read tables and call known functions") from None
        raise QueryError(f"the query fails: {type(error).__name__}") from None
    return rows


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
