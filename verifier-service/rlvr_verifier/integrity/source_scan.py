"""Finds calls in a scorer's source that run, evaluate or unpickle text: the way in which a completion becomes code.

    scorer function -> its module -> every function of that module that it reaches by name -> forbidden calls

Looks at an environment's `score`, and at the library's functions that it names in `scorers`. Not covered: other modules that these call.
"""

import ast
import inspect
from collections.abc import Callable, Collection, Iterator
from typing import Any

from rlvr_verifier.environments.base import Environment

FORBIDDEN = frozenset({
    "eval", "exec", "compile", "__import__", "parse_expr", "sympify", "lambdify", "system", "popen", "Popen", "check_output", "run_module",
})  # fmt: skip
FORBIDDEN_OF = {"pickle": {"load", "loads"}, "yaml": {"load", "unsafe_load"}, "marshal": {"load", "loads"}, "subprocess": {"run", "call"}}
HARMLESS_OF = {"re": {"compile"}}


def scan_sources(environment: Environment) -> tuple[str, ...]:
    """Each call that is found, as `module:line name`; an environment's `reviewed_calls`, as `module name`, are known to be harmless."""
    reviewed: Collection[str] = getattr(environment, "reviewed_calls", ())
    scorers: tuple[Callable[..., Any], ...] = (type(environment).score, *getattr(environment, "scorers", ()))
    return tuple(dict.fromkeys(found for scorer in scorers for found in _scan(scorer, reviewed)))


def _scan(scorer: Callable[..., Any], reviewed: Collection[str]) -> Iterator[str]:
    module = inspect.getmodule(scorer)
    if module is None:
        return
    functions: dict[str, list[ast.AST]] = {}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.setdefault(node.name, []).append(node)
    reached, waiting = set[str](), [scorer.__name__]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        for call in (node for function in functions.get(name, ()) for node in ast.walk(function) if isinstance(node, ast.Call)):
            if (forbidden := _forbidden(call.func)) and f"{module.__name__} {forbidden}" not in reviewed:
                yield f"{module.__name__}:{call.lineno} {forbidden}"
            waiting.append(_name(call.func))


def _name(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""


def _forbidden(function: ast.expr) -> str:
    name = _name(function)
    owner = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
    if name in HARMLESS_OF.get(owner, ()):
        return ""
    return f"{owner}.{name}".lstrip(".") if name in FORBIDDEN or name in FORBIDDEN_OF.get(owner, ()) else ""
