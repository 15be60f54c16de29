"""Writes the files that are generated from the contract, or checks that they are up to date.

    python -m rlvr_api.reference            docs/reference.md; values, schema and CRD of the chart
    python -m rlvr_api.reference --check    exit code 1 and a diff where a file differs

Run it in the repository's root.
"""

import argparse
import ast
import difflib
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from rlvr_api import conditions, process
from rlvr_api.chart import crd_template, values_schema, values_yaml
from rlvr_api.schema import Schema, structural_schema
from rlvr_api.spec import RLVRJobSpec
from rlvr_api.status import RLVRJobStatus

CHART = Path("charts/rlvr-operator")
REFERENCE_FILE = Path("docs/reference.md")
INTRODUCTION = """\
# Reference

Generated from `rlvr_api` by `make generate`; `rlvr validate FILE` checks a job against it. Every setting is read by something: one that
would be ignored is an error. Variants (kinds of stage, environment, algorithm) are optional members of which exactly one is set.
"""


def generated_files() -> dict[Path, str]:
    """Text of every generated file, by its path in the repository."""
    return {
        CHART / "templates/crd.yaml": crd_template(),
        CHART / "values.yaml": values_yaml(),
        CHART / "values.schema.json": values_schema(),
        REFERENCE_FILE: reference_text(),
    }


def reference_text() -> str:
    """The reference as Markdown."""
    sections = [
        INTRODUCTION,
        _fields("Spec", "spec", structural_schema(RLVRJobSpec)),
        _fields("Status", "status", structural_schema(RLVRJobStatus)),
        _enumeration("Conditions", conditions.ConditionType),
        _enumeration("Reasons", conditions.Reason),
        _enumeration("Phases", conditions.Phase),
        _enumeration("Environment of a process", process.Variable),
        _exit_codes(),
    ]
    return "\n".join(sections)


def main(arguments: list[str]) -> int:
    """Writes or checks; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m rlvr_api.reference", description="write the generated files")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when a file is not up to date")
    check = parser.parse_args(arguments).check
    stale = 0
    for file, text in generated_files().items():
        current = file.read_text() if file.exists() else ""
        if current == text:
            continue
        stale += 1
        if check:
            sys.stderr.writelines(difflib.unified_diff(current.splitlines(True), text.splitlines(True), str(file), "generated", n=1))
            print(f"{file} is not up to date: run `make generate`", file=sys.stderr)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            print(f"wrote {file}")
    return 1 if check and stale else 0


def _fields(title: str, root: str, schema: Schema) -> str:
    rows = [f"## {title}", "", "| field | value | default | meaning |", "|---|---|---|---|"]
    rules = _messages(root, schema)
    for path, below, required in _walk(schema, root):
        rows.append(f"| `{path}` | {_value(below)} | {_default(below, required)} | {_cell(below.get('description', ''))} |")
        rules += [*_messages(path, below), *_messages(f"{path}[]", below.get("items", {}))]
    if rules:
        rows += ["", "Rules between fields:", "", *rules]
    return "\n".join([*rows, ""])


def _messages(path: str, schema: Schema) -> list[str]:
    return [f"- `{path}`: {rule['message']}" for rule in schema.get("x-kubernetes-validations", ())]


def _walk(schema: Schema, path: str) -> Iterator[tuple[str, Schema, bool]]:
    """Every field below `schema`: its path, its schema, whether it is required."""
    for name, below in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        yield here, below, name in schema.get("required", ())
        yield from _walk(below, here)
        if "items" in below:
            yield from _walk(below["items"], f"{here}[]")


def _value(schema: Schema) -> str:
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of at most {schema['maxItems']}" if "maxItems" in schema else "list"
    words = [str(kind)]
    if "minimum" in schema:
        words.append(("above " if schema.get("exclusiveMinimum") else "from ") + _number(schema["minimum"]))
    if "maximum" in schema:
        words.append(("below " if schema.get("exclusiveMaximum") else "to ") + _number(schema["maximum"]))
    if "pattern" in schema:
        words.append(f"like `{schema['pattern']}`".replace("|", "\\|"))
    return " ".join(words)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _default(schema: Schema, required: bool) -> str:
    default = schema.get("default")
    if required:
        return "required"
    # An object's fields have defaults of their own, on the lines below.
    return "" if default is None or schema.get("type") == "object" else f"`{json.dumps(default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _enumeration(title: str, kind: type[StrEnum]) -> str:
    texts = _docstrings(kind)
    rows = [f"## {title}", "", _cell(inspect.cleandoc(kind.__doc__ or "")), "", "| value | meaning |", "|---|---|"]
    return "\n".join([*rows, *(f"| `{member.value}` | {_cell(texts[member.name])} |" for member in kind), ""])


def _exit_codes() -> str:
    texts = _docstrings(process.ExitCode)
    rows = [f"| {getattr(process.ExitCode, name)} | {name} | {_cell(text)} |" for name, text in texts.items()]
    return "\n".join(["## Exit codes of the learner", "", "| code | name | meaning |", "|---|---|---|", *rows, ""])


def _docstrings(kind: type) -> dict[str, str]:
    """The docstring below each assignment of a class, which Python itself does not keep."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    if not isinstance(body, ast.ClassDef):
        raise TypeError(f"{kind.__name__} is not a class statement")
    found = {}
    for assignment, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(assignment, ast.Assign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            target = assignment.targets[0]
            if isinstance(target, ast.Name):
                found[target.id] = " ".join(str(text.value.value).split())
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
