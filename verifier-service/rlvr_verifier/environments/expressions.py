"""Values of sums and derivatives of closed forms that a model wrote, worked out here: no text is ever evaluated.

    "4*(4 + 3 - 1)"      -> arithmetic_value -> Fraction(24), [4, 4, 3, 1]
    "x**2/2 + C", "x"    -> is_antiderivative -> True

A text is parsed only if it consists of known names, numbers, operators and brackets, and is not long; its tree is walked by hand.
An antiderivative is differentiated and compared with the integrand in numbers, to 20 digits at points that depend on both texts: no
simplification that could take any time, or fail. Points are beside the real axis, away from the cuts of roots and logarithms.
"""

import ast
import hashlib
import random
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

MAX_ARITHMETIC = 200
MAX_CLOSED_FORM = 4_000
MAX_DEPTH = 60
MAX_EXPONENT = 200
LARGEST = 10**1_000
"""A value beyond it is refused: towers of powers never get far."""
DIGITS = 50
AGREEMENT = 10**-20
POINTS = 4
_ARITHMETIC = re.compile(r"[0-9+\-*/() ]+")
_CLOSED_FORM = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?|[A-Za-z]+|[-+*/() ])+", re.ASCII)


class NoValueError(ValueError):
    """The text is no expression of this kind, or has no value."""


def arithmetic_value(answer: str) -> tuple[Fraction, list[int]]:
    """The exact value of a sum of whole numbers, and the numbers in it.

    Raises:
        NoValueError: it is something else, longer than 200 characters, or divides by zero.
    """
    if not _ARITHMETIC.fullmatch(answer) or "**" in answer or "//" in answer or len(answer) > MAX_ARITHMETIC:
        raise NoValueError
    used: list[int] = []
    try:
        return _exact(_parsed(answer), used), used
    except ZeroDivisionError:
        raise NoValueError from None


def is_antiderivative(answer: str, integrand: str, variable: str) -> bool:
    """Whether the derivative of a closed form is the integrand; a constant `C` may be part of it."""
    seed = hashlib.sha256(f"{integrand}\n{answer}".encode()).digest()
    draw = random.Random(seed)  # noqa: S311 - points, not secrets
    import mpmath

    try:
        ours, theirs = _closed_form(answer), _closed_form(integrand)
    except NoValueError:
        return False
    with mpmath.workdps(DIGITS):
        for _ in range(POINTS):
            point = mpmath.mpc(draw.uniform(0.1, 0.9), draw.uniform(0.01, 0.09))
            names = {variable: (point, mpmath.mpc(1)), "C": (mpmath.mpc(draw.uniform(1, 9)), mpmath.mpc(0))}
            try:
                _, slope = _dual(ours, names, MAX_DEPTH)
                value, _ = _dual(theirs, names, MAX_DEPTH)
            except (NoValueError, ZeroDivisionError, ValueError, OverflowError):
                return False
            if abs(slope - value) > AGREEMENT * (1 + abs(value)):
                return False
    return True


def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, MemoryError, RecursionError, ValueError):
        raise NoValueError from None


def _exact(node: ast.expr, used: list[int], depth: int = MAX_DEPTH) -> Fraction:
    match node:
        case ast.Constant(value=int(value)) if depth:
            used.append(value)
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand) if depth:
            return -_exact(operand, used, depth - 1)
        case ast.BinOp(left=left, op=operator, right=right) if depth and type(operator) in _EXACT:
            return _EXACT[type(operator)](_exact(left, used, depth - 1), _exact(right, used, depth - 1))
    raise NoValueError


_EXACT: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
}

Dual = tuple[Any, Any]
"""A value and its derivative, complex numbers of mpmath, which has no types."""


def _closed_form(text: str) -> ast.expr:
    if len(text) > MAX_CLOSED_FORM or not _CLOSED_FORM.fullmatch(text):
        raise NoValueError
    return _parsed(text)


def _dual(node: ast.expr, names: Mapping[str, Dual], depth: int) -> Dual:
    import mpmath

    if not depth:
        raise NoValueError
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            found: Dual = (mpmath.mpc(str(node.value)), mpmath.mpc(0))
        case ast.Name(id=name) if name in names:
            found = names[name]
        case ast.Name(id="E" | "pi" as name):
            found = (mpmath.mpc(mpmath.e if name == "E" else mpmath.pi), mpmath.mpc(0))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as operator, operand=operand):
            value, slope = _dual(operand, names, depth - 1)
            found = (-value, -slope) if isinstance(operator, ast.USub) else (value, slope)
        case ast.BinOp(left=left, op=operator, right=right):
            found = _combined(operator, _dual(left, names, depth - 1), _dual(right, names, depth - 1))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
            found = _called(name, argument, names, depth - 1)
        case _:
            raise NoValueError
    if not (abs(found[0]) < LARGEST and abs(found[1]) < LARGEST):
        raise NoValueError
    return found


def _combined(operator: ast.operator, left: Dual, right: Dual) -> Dual:
    (a, da), (b, db) = left, right
    match operator:
        case ast.Add():
            return a + b, da + db
        case ast.Sub():
            return a - b, da - db
        case ast.Mult():
            return a * b, da * b + a * db
        case ast.Div():
            return a / b, (da * b - a * db) / (b * b)
        case ast.Pow():
            return _power(left, right)
    raise NoValueError


def _power(left: Dual, right: Dual) -> Dual:
    import mpmath

    (a, da), (b, db) = left, right
    if abs(b) > MAX_EXPONENT:
        raise NoValueError
    if db == 0:
        exponent = int(b.real) if b.imag == 0 and b.real == int(b.real) else b
        return a**exponent, b * a ** (exponent - 1) * da
    value = a**b
    return value, value * (db * mpmath.log(a) + b * da / a)


def _called(name: str, argument: ast.expr, names: Mapping[str, Dual], depth: int) -> Dual:
    import mpmath

    match argument:
        case ast.Call(func=ast.Name(id="Abs" | "abs"), args=[inner], keywords=[]) if name in ("log", "ln"):
            argument = inner  # the derivatives of log|u| and log u are the same
    value, slope = _dual(argument, names, depth)
    if abs(value) > 2_000:
        raise NoValueError
    match name:
        case "exp" | "log" | "sqrt" | "sin" | "cos" | "tan" | "asin" | "acos" | "atan" | "sinh" | "cosh" | "tanh":
            return getattr(mpmath, name)(value), _OUTER[name](value) * slope
        case "ln":
            return mpmath.log(value), slope / value
    raise NoValueError


def _mp(name: str, value: Any) -> Any:
    import mpmath

    return getattr(mpmath, name)(value)


_OUTER: Mapping[str, Callable[[Any], Any]] = {
    "exp": lambda u: _mp("exp", u),
    "log": lambda u: 1 / u,
    "sqrt": lambda u: 1 / (2 * _mp("sqrt", u)),
    "sin": lambda u: _mp("cos", u),
    "cos": lambda u: -_mp("sin", u),
    "tan": lambda u: 1 / _mp("cos", u) ** 2,
    "asin": lambda u: 1 / _mp("sqrt", 1 - u * u),
    "acos": lambda u: -1 / _mp("sqrt", 1 - u * u),
    "atan": lambda u: 1 / (1 + u * u),
    "sinh": lambda u: _mp("cosh", u),
    "cosh": lambda u: _mp("sinh", u),
    "tanh": lambda u: 1 / _mp("cosh", u) ** 2,
}
