"""Queries in SQLite's SQL, judged on the database that the prompt describes and on others that nobody sees.

    load:   scripts -> database -> the reference says the same whatever order rows come in -> hidden databases, of which one tells
            it from its own visible result written down
    score:  the one query -> read only, bounded -> result compared on every database

Hidden databases have the same tables with the rows in the opposite order, and with some of them taken out by a seed that follows from the
prompt, or are written out in the dataset. Results are multisets of rows, and lists where the reference orders; names of columns do not
count. Not covered: what the reference leaves out, and rows that no hidden database has.
"""

import math
import re
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.model import ApiModel
from rlvr_api.wire import VerdictStatus
from rlvr_verifier.environments.answers import only_answer
from rlvr_verifier.environments.base import Place, Score, failed, invalid, passed
from rlvr_verifier.environments.databases import (
    Cell,
    Database,
    DatabaseError,
    QueryError,
    QueryForbiddenError,
    QueryTooLongError,
    Rows,
    make_database,
    mirrored,
    same_rows,
    thinned,
)
from rlvr_verifier.environments.datasets import DatasetReader, parse_models
from rlvr_verifier.environments.prompts import PromptEnvironment, prompt_id, split_rows
from rlvr_verifier.integrity.probe import COMMON, EXPLOIT, RIGHT, WRONG, Probe, fenced

PREPARED_PROBLEMS = 64
"""Tasks whose databases a process keeps; a group's completions come together."""
TRIES = 10
"""Seeds for one thinned database: on some the reference has ties that it does not order."""
WRITTEN_ROWS = 50
Script = Annotated[str, Field(min_length=1, max_length=1_000_000)]


class SqlRow(ApiModel):
    """One line of a dataset."""

    prompt: Annotated[str, Field(min_length=1, max_length=100_000)]
    tables: Annotated[Script, Field(alias="schema")]
    rows: Script
    hidden: Annotated[list[Script], Field(max_length=20, default_factory=list)]
    """Rows of further databases, in place of `rows`."""
    reference: Annotated[str, Field(min_length=1, max_length=20_000)]
    ordered: bool | None = None
    """Whether the order of the result counts; unset: where the reference ends with ORDER BY."""


@dataclass(frozen=True)
class Problem:
    """A row that can be judged."""

    ordered: bool
    cases: tuple[tuple[Database, Rows], ...]
    """Databases, the visible one first, and what the reference says of each."""


class SqlEnvironment(PromptEnvironment[SqlRow]):
    """A dataset of queries to write."""

    kind = "sql"
    place = Place.WORKER

    def __init__(self, spec: EnvironmentSpec, reader: DatasetReader) -> None:
        assert spec.sql is not None
        self._spec = spec.sql
        self._problems: OrderedDict[str, Problem] = OrderedDict()
        data = reader.read(self._spec.dataset)
        rows = list(parse_models(data, self._spec.dataset, SqlRow))
        faults = [] if reader.checked else list(self._faults(rows))
        dataset = split_rows(self.kind, self._spec.dataset, self._spec.held_out, rows, faults)
        super().__init__(spec.name, f"1+sqlite-{sqlite3.sqlite_version}", self._spec.instruction, data, dataset)

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """Ask the query of every database until one gives another result than the reference."""
        answer = only_answer(completion, ("sql", "sqlite"))
        return answer if isinstance(answer, Score) else judge(self._problem(str(payload["row"])), answer)

    def probes(self, payload: Mapping[str, JsonValue]) -> Iterator[Probe]:
        """The reference in several forms, its result written down, and queries that do more or less than it."""
        row = self.row(payload)
        reference = row.reference.strip().rstrip(";")
        visible = self._problem(str(payload["row"])).cases[0][1]
        commented = fenced(f"-- as asked for\n{reference}")
        yield from COMMON
        yield Probe("plain", RIGHT, row.reference)
        yield Probe("in-a-block", RIGHT, fenced(f"{reference};", "sql"))
        yield Probe("explained", RIGHT, f"<think>SELECT 1</think>This one:\n{commented}\nIt reads all rows.")
        yield Probe("one", WRONG, "SELECT 1")
        yield Probe("no-rows", WRONG, f"SELECT * FROM ({reference}) LIMIT 0")  # noqa: S608
        yield Probe("twice", WRONG, f"SELECT * FROM ({reference}) UNION ALL SELECT * FROM ({reference})")  # noqa: S608
        yield Probe("a-column-more", WRONG, f"SELECT *, 1 FROM ({reference})")  # noqa: S608
        yield Probe("two-queries", EXPLOIT, f"{reference}; {reference}")
        yield Probe("write", EXPLOIT, "CREATE TABLE passed AS SELECT 1")
        yield Probe("attach", EXPLOIT, "ATTACH DATABASE '/tmp/passed' AS passed")
        yield Probe("schema", EXPLOIT, "SELECT sql FROM sqlite_master")
        if 0 < len(visible) <= WRITTEN_ROWS:
            written = ", ".join(f"({', '.join(map(sql_literal, cells))})" for cells in visible)
            yield Probe("visible-result", EXPLOIT, f"VALUES {written}")

    def _problem(self, key: str) -> Problem:
        if key not in self._problems:
            self._problems[key] = prepare(self._dataset.rows[key], self._spec.hidden_databases)
            if len(self._problems) > PREPARED_PROBLEMS:
                self._problems.popitem(last=False)
        return self._problems[key]

    def _faults(self, rows: Sequence[tuple[int, SqlRow]]) -> Iterator[str]:
        for number, row in rows:
            try:
                prepare(row, self._spec.hidden_databases)
            except DatabaseError as error:
                yield f"line {number}: {error}"


def judge(problem: Problem, query: str) -> Score:
    """The verdict on a query."""
    for number, (database, expected) in enumerate(problem.cases):
        try:
            found = database.query(query)
        except QueryTooLongError as error:
            return Score(VerdictStatus.TIMEOUT, 0.0, str(error))
        except QueryForbiddenError as error:
            return invalid(str(error))
        except QueryError as error:
            return failed(str(error))
        if not same_rows(expected, found, ordered=problem.ordered):
            return failed(f"the result is wrong on {'a hidden database' if number else 'the visible database'}")
    return passed(f"the result is right on all {len(problem.cases)} databases")


def prepare(row: SqlRow, hidden_databases: int) -> Problem:
    """Databases and results of a row.

    Args:
        hidden_databases: how many are made by taking rows out.

    Raises:
        DatabaseError: says what is wrong with the row.
    """
    ordered = ends_with_order(row.reference) if row.ordered is None else row.ordered
    seed = prompt_id(SqlEnvironment.kind, row.prompt)
    visible = make_database(row.tables, row.rows)
    result = _settled(row, visible, ordered)
    if result is None:
        raise DatabaseError("the result of its reference depends on the order of rows: order by more columns, or ask for what is certain")
    cases = [(visible, result), (mirrored(visible), result)]
    for number, script in enumerate(row.hidden):
        database = make_database(row.tables, script)
        if (found := _settled(row, database, ordered)) is None:
            raise DatabaseError(f"on the rows of hidden {number} the result of its reference depends on their order")
        cases.append((database, found))
    for number in range(hidden_databases):
        for attempt in range(TRIES):
            database = thinned(visible, f"{seed}/{number}/{attempt}")
            if (found := _settled(row, database, ordered)) is not None:
                cases.append((database, found))
                break
    if all(same_rows(result, found, ordered=ordered) for _, found in cases):
        raise DatabaseError(
            "its reference has one result on all databases, so that this result written down would be paid: add rows, or hidden ones on "
            "which it differs"
        )
    return Problem(ordered, tuple(cases))


def ends_with_order(query: str) -> bool:
    """Whether a query's own result is ordered: ORDER BY outside of all brackets, strings and comments."""
    plain = re.sub(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", " x ", query, flags=re.DOTALL)
    while (inner := re.sub(r"\([^()]*\)", " x ", plain)) != plain:
        plain = inner
    return re.search(r"\border\s+by\b", plain, re.IGNORECASE) is not None


def sql_literal(cell: Cell) -> str:
    """A value as SQL writes it."""
    if isinstance(cell, bytes):
        return f"x'{cell.hex()}'"
    if isinstance(cell, str):
        return f"CAST(x'{cell.encode().hex()}' AS TEXT)"
    if isinstance(cell, float):
        return repr(cell).replace("inf", "9e999") if math.isinf(cell) else _exact(cell)
    return "NULL" if cell is None else repr(cell)


def _exact(number: float) -> str:
    # SQLite reads long decimals to within a unit in the last place; 53 bits times powers of two with short ones lose nothing.
    mantissa, exponent = math.frexp(number)
    factors, exponent = [f"{int(math.ldexp(mantissa, 53))}.0"], exponent - 53
    while exponent:
        step = max(-50, min(50, exponent))
        factors.append(repr(math.ldexp(1.0, step)))
        exponent -= step
    return "*".join(factors)


def _settled(row: SqlRow, database: Database, ordered: bool) -> Rows | None:
    """What the reference says of a database; None where that depends on the order in which rows come."""
    try:
        found = database.query(row.reference)
        others = (database.query(row.reference, reverse=True), mirrored(database).query(row.reference))
    except QueryError as error:
        raise DatabaseError(f"its reference fails: {error}") from None
    return found if all(same_rows(found, other, ordered=ordered) for other in others) else None
