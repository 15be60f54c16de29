"""Tests written as asserts, read as calls: the code under test is called, and what the assert says of the value is tried outside.

    source -> AST -> `assert f(LITERALS) OP LITERAL` -> arguments, and a check of what comes back

Nothing of a test is run: it is parsed, and its literals are read. Values that come back are exact built-in ones, so that Python's own `==`
is safe on them and means what the test's author meant: 9 == 9.0. Not covered: statements before an assert, keyword arguments, values that
are worked out; such a test is refused, with the line and what can be written instead.
"""

import ast
import math
import warnings
from dataclasses import dataclass
from enum import StrEnum

from rlvr_verifier.sandbox.canonical import Value

MAX_TEST_CHARACTERS = 100_000
ABSOLUTE_DEFAULT, RELATIVE_DEFAULT = 1e-12, 1e-6
"""Of pytest.approx; it takes the larger of both."""
FORMS = "assert f(1, 'x') == [2], assert f(1) is None, assert not f(1), assert abs(f(1) - 2.5) < 1e-6, math.isclose or pytest.approx"


class NotRewritableError(ValueError):
    """An assert that is no call with literals; says which, and what can be."""


class Relation(StrEnum):
    """What an assert says of the value."""

    EQUAL = "equal"
    IS = "is"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Assertion:
    """One call, and what must hold of its value."""

    arguments: tuple[Value, ...]
    relation: Relation
    expected: Value
    relative: float = 0.0
    """Of the expected value."""
    absolute: float = 0.0
    strict: bool = False
    """Whether the difference must be less than `absolute`, not at most."""

    def holds(self, found: Value) -> bool:
        """Whether a decoded value passes."""
        if self.relation is Relation.EQUAL:
            return bool(self.expected == found)
        if self.relation is Relation.IS:
            return type(found) is type(self.expected) and found == self.expected
        if not isinstance(found, (int, float)) or not isinstance(self.expected, (int, float)):
            return False
        if found == self.expected:
            return True
        try:
            difference = float(abs(found - self.expected))
            limit = max(self.absolute, self.relative * abs(self.expected))
        except OverflowError:  # an integer that no double holds
            return False
        return math.isfinite(difference) and (difference < limit if self.strict else difference <= limit)


def read_asserts(source: str, entry_point: str) -> list[Assertion]:
    """The assertions of a test, in their order; `check(candidate)` of HumanEval's form is entered.

    Raises:
        NotRewritableError: something in it is none.
    """
    if len(source) > MAX_TEST_CHARACTERS:
        raise NotRewritableError(f"a test of {len(source)} characters, more than {MAX_TEST_CHARACTERS}")
    try:
        with warnings.catch_warnings(action="ignore"):
            statements = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotRewritableError(f"a test that is no Python: {type(error).__name__}") from None
    names, found = {entry_point}, []
    for statement in statements:
        body: list[ast.stmt] = [statement]
        if isinstance(statement, ast.FunctionDef) and len(statement.args.args) == 1 and statement.name == "check":
            names.add(statement.args.args[0].arg)
            body = statement.body
        found += [_read(one, names) for one in body if not _says_nothing(one)]
    if not found:
        raise NotRewritableError("a test without an assert")
    return found


def _says_nothing(statement: ast.stmt) -> bool:
    """Imports, METADATA = {...}, a docstring, `pass`, and the call of `check`."""
    if isinstance(statement, ast.Expr):
        said = statement.value
        is_check = isinstance(said, ast.Call) and isinstance(said.func, ast.Name) and said.func.id == "check"
        return is_check or isinstance(said, ast.Constant)
    is_metadata = isinstance(statement, ast.Assign) and list(map(_dotted, statement.targets)) == ["METADATA"]
    return is_metadata or isinstance(statement, (ast.Import, ast.ImportFrom, ast.Pass))


def _read(statement: ast.stmt, names: set[str]) -> Assertion:
    if isinstance(statement, ast.Assert):
        try:
            read = _read_condition(statement.test, names)
        except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError):
            read = None
        if read is not None:
            return read
    raise NotRewritableError(f"line {statement.lineno} of a test, {_quote(statement)}, is no call with literals; write {FORMS}")


def _quote(statement: ast.stmt) -> str:
    try:
        return repr(ast.unparse(statement)[:80])
    except (RecursionError, ValueError):
        return "too deep or with too long a number to be shown"


def _dotted(node: ast.expr) -> str:
    """A name, or a name of a module; empty for anything else."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _read_condition(test: ast.expr, names: set[str]) -> Assertion | None:
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and (arguments := _call(test.operand, names)) is not None:
        return Assertion(arguments, Relation.IS, False)
    if (arguments := _call(test, names)) is not None:
        return Assertion(arguments, Relation.IS, True)
    if isinstance(test, ast.Call) and _dotted(test.func) in ("math.isclose", "isclose"):
        return _read_isclose(test, names)
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return None
    left, operator, right = test.left, test.ops[0], test.comparators[0]
    if isinstance(operator, (ast.Lt, ast.LtE)):
        return _read_difference(left, right, names, strict=isinstance(operator, ast.Lt))
    if _call(left, names) is None:
        left, right = right, left
    arguments = _call(left, names)
    if arguments is None:
        return None
    if isinstance(operator, ast.Is):
        value = ast.literal_eval(right)
        return Assertion(arguments, Relation.IS, value) if value is None or isinstance(value, bool) else None
    if not isinstance(operator, ast.Eq):
        return None
    if isinstance(right, ast.Call) and _dotted(right.func) in ("pytest.approx", "approx"):
        if len(right.args) != 1:
            return None  # its second is `rel`
        settings = _settings(right, ("rel", "abs"))
        given = settings.get("abs")
        relative = settings.get("rel", 0.0 if given is not None else RELATIVE_DEFAULT)
        return _close(arguments, right.args[0], relative, ABSOLUTE_DEFAULT if given is None else given)
    return Assertion(arguments, Relation.EQUAL, ast.literal_eval(right))


def _read_isclose(test: ast.Call, names: set[str]) -> Assertion | None:
    one, other = test.args
    if _call(one, names) is None:
        one, other = other, one
    arguments, settings = _call(one, names), _settings(test, ("rel_tol", "abs_tol"))
    return None if arguments is None else _close(arguments, other, settings.get("rel_tol", 1e-9), settings.get("abs_tol", 0.0))


def _read_difference(left: ast.expr, right: ast.expr, names: set[str], *, strict: bool) -> Assertion | None:
    """abs(f(x) - y) < limit"""
    if not isinstance(left, ast.Call) or _dotted(left.func) not in ("abs", "math.fabs") or len(left.args) != 1:
        return None
    difference = left.args[0]
    if not isinstance(difference, ast.BinOp) or not isinstance(difference.op, ast.Sub):
        return None
    one, other = difference.left, difference.right
    if _call(one, names) is None:
        one, other = other, one
    arguments = _call(one, names)
    return None if arguments is None else _close(arguments, other, 0.0, float(ast.literal_eval(right)), strict=strict)


def _close(arguments: tuple[Value, ...], expected: ast.expr, relative: float, absolute: float, *, strict: bool = False) -> Assertion | None:
    value = ast.literal_eval(expected)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return Assertion(arguments, Relation.CLOSE, value, relative, absolute, strict)


def _settings(call: ast.Call, names: tuple[str, ...]) -> dict[str, float]:
    if any(keyword.arg not in names for keyword in call.keywords):
        raise ValueError("another keyword")
    return {str(keyword.arg): float(ast.literal_eval(keyword.value)) for keyword in call.keywords}


def _call(node: ast.expr, names: set[str]) -> tuple[Value, ...] | None:
    """The arguments of a call of the function under test; None for anything else."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in names or node.keywords:
        return None
    return tuple(ast.literal_eval(argument) for argument in node.args)
