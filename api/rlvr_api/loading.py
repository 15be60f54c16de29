"""Reads an RLVRJob from YAML or JSON text, and says everything that is wrong with it at once.

    text -> size cap -> YAML 1.2 (what `kubectl` sees: 1e-6 is a number, `on` is a string) -> plain data -> strict validation -> RLVRJob

Each problem has the path as a person would write it (`spec.stages[0].rlvr.groupSize`), the value found, and what to write instead, taken
from the same schema that the API server uses. Types are strict, as there: "5" is not a number. Rules between fields are looked at once the
fields themselves are right.
"""

import datetime
import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from rlvr_api.schema import Schema, schema_at, structural_schema
from rlvr_api.spec import RLVRJob

MAX_BYTES = 1_048_576
"""Largest file: what etcd takes is not much more."""
MAX_NODES = 50_000
"""Values in a file after aliases are followed: a few lines of nested aliases can stand for billions."""
MAX_DEPTH = 32
MAX_SHOWN_CHARACTERS = 80

SERVER_METADATA = frozenset({
    "annotations", "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generateName", "generation",
    "labels", "managedFields", "ownerReferences", "resourceVersion", "selfLink", "uid",
})  # fmt: skip
"""Fields of `metadata` that mean nothing to a run."""

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a job."""

    path: str
    """For example `spec.stages[0].rlvr.groupSize`; empty: the file as a whole."""
    text: str
    """The value and what to write instead, on one line."""

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


class InvalidJobError(ValueError):
    """The job cannot be used; `problems` has at least one entry."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def load_job(text: bytes) -> RLVRJob:
    """The job that `text` (YAML or JSON, UTF-8) describes.

    Raises:
        InvalidJobError: with every problem that was found.
    """
    data = _plain_data(_parse(text))
    if not isinstance(data, dict):
        raise _refusal("", f"holds {_shown(data)}; an RLVRJob is a mapping that begins with 'apiVersion: rlvr.dev/v1alpha1'")
    return job_from(data)


def job_from(data: dict[str, Any]) -> RLVRJob:
    """The job that plain data describes, as a file or the API server holds it.

    Raises:
        InvalidJobError: with every problem that was found.
    """
    try:
        return RLVRJob.model_validate_json(json.dumps(_without_server_fields(data)), strict=True)
    except ValidationError as error:
        raise InvalidJobError(tuple(dict.fromkeys(map(_problem, _first_causes(error))))) from None


def path_text(path: Path) -> str:
    """A path as a person writes it."""
    written = ""
    for step in path:
        written += f"[{step}]" if isinstance(step, int) else f".{step}" if written else step
    return _printable(written)


def _refusal(path: str, text: str) -> InvalidJobError:
    return InvalidJobError((Problem(path, text),))


def _parse(text: bytes) -> Any:
    if len(text) > MAX_BYTES:
        raise _refusal("", f"has {len(text)} bytes, and a job at most {MAX_BYTES}: put data in a file that the job names")
    try:
        documents = list(YAML(typ="safe", pure=True).load_all(text.decode("utf-8")))
    except UnicodeDecodeError as error:
        raise _refusal("", f"is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except DuplicateKeyError as error:
        raise _refusal("", f"{_first_line(error)}{_place(error)}: remove one of the two") from None
    except MarkedYAMLError as error:
        raise _refusal("", f"is not YAML: {error.problem or _first_line(error)}{_place(error)}") from None
    except (YAMLError, ValueError) as error:
        raise _refusal("", f"is not YAML: {_first_line(error)}") from None
    except RecursionError:
        raise _refusal("", f"is nested more than {MAX_DEPTH} deep: a job needs 8") from None
    if len(documents) != 1:
        raise _refusal("", f"holds {len(documents)} YAML documents; write one job in one file")
    return documents[0]


def _first_line(error: Exception) -> str:
    text = error.problem if isinstance(error, MarkedYAMLError) and error.problem else str(error)
    return text.strip().partition("\n")[0]


def _place(error: MarkedYAMLError) -> str:
    mark = error.problem_mark
    return "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"


def _plain_data(document: Any) -> Any:
    """JSON data with the same meaning; refuses what JSON cannot say, and documents that aliases blow up."""
    nodes = 0

    def convert(value: Any, path: Path) -> Any:
        nonlocal nodes
        nodes += 1
        if nodes > MAX_NODES:
            raise _refusal("", f"stands for more than {MAX_NODES} values: write it without aliases")
        if len(path) > MAX_DEPTH:
            raise _refusal(path_text(path), f"is nested more than {MAX_DEPTH} deep: a job needs 8")
        if isinstance(value, dict):
            return {_key(key, path): convert(below, (*path, _key(key, path))) for key, below in value.items()}
        if isinstance(value, list):
            return [convert(below, (*path, index)) for index, below in enumerate(value)]
        if isinstance(value, datetime.date):  # kubectl sees a string where YAML 1.1 saw a date
            return value.isoformat()
        if isinstance(value, str) and not _is_text(value):
            raise _refusal(path_text(path), f"is {_shown(value)}, which is no text: it has half of a surrogate pair")
        if value is None or isinstance(value, str | bool | int | float):
            return value
        raise _refusal(path_text(path), f"has a value of YAML type {type(value).__name__}: write text, a number, a list or a mapping")

    return convert(document, ())


def _key(key: object, path: Path) -> str:
    if not isinstance(key, str) or not _is_text(key):
        raise _refusal(path_text(path), f"has the key {_shown(key)}, which is no text: write it in quotes")
    return key


def _is_text(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _without_server_fields(data: dict[str, Any]) -> dict[str, Any]:
    """The job without what the API server keeps for itself, so that `kubectl get -o yaml` can be read back."""
    kept = {key: value for key, value in data.items() if key != "status"}
    if isinstance(metadata := data.get("metadata"), dict):
        kept["metadata"] = {key: value for key, value in metadata.items() if key not in SERVER_METADATA}
    return kept


def _first_causes(error: ValidationError) -> Iterator[ErrorDetails]:
    """Errors without those that only follow from one further in: a list with a bad item is also reported as too short."""
    every = error.errors(include_url=False)
    for details in every:
        depth = len(details["loc"])
        follows = any(len(other["loc"]) > depth and other["loc"][:depth] == details["loc"] for other in every)
        if not (follows and details["type"] in ("too_short", "too_long")):
            yield details


def _problem(details: ErrorDetails) -> Problem:
    path = details["loc"]
    if details["type"] == "extra_forbidden":
        return Problem(path_text(path), _unknown_field(path))
    if details["type"] == "missing":
        return Problem(path_text(path), f"is missing; write {_expected(_schema_of(path))}")
    if details["type"] == "value_error":
        return Problem(path_text(path), _printable(details["msg"].removeprefix("Value error, ")))
    schema = _schema_of(path)
    wanted = _expected(schema) if schema else details["msg"]
    return Problem(path_text(path), f"is {_shown(details['input'])}; write {wanted}")


def _unknown_field(path: Path) -> str:
    *parent, name = path
    known = sorted((_schema_of(tuple(parent)) or {}).get("properties", ()))
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    advice = f"did you mean '{near[0]}'?" if near else f"fields here are {', '.join(known)}" if known else "remove it"
    return _printable(f"there is no field '{name}'; {advice}")


@cache
def _job_schema() -> Schema:
    return structural_schema(RLVRJob)


def _schema_of(path: Path) -> Schema:
    return schema_at(_job_schema(), path) or {}


NOUNS = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false", "array": "a list"}


def _expected(schema: Schema) -> str:
    """What a value of this schema looks like, in words."""
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    if schema.get("type") == "object":
        return f"a mapping with {', '.join(schema['properties'])}" if schema.get("properties") else "a mapping"
    words = [NOUNS.get(schema.get("type", ""), "a value"), *_limits(schema)]
    example = schema.get("default")
    return " ".join(words) + (f", for example {json.dumps(example)}" if example is not None else "")


def _limits(schema: Mapping[str, Any]) -> Iterator[str]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None:
        yield f"above {low}" if schema.get("exclusiveMinimum") else f"of at least {low}"
    if high is not None:
        yield f"{'and ' if low is not None else ''}{'below' if schema.get('exclusiveMaximum') else 'at most'} {high}"
    for unit, least, most in (("characters", "minLength", "maxLength"), ("entries", "minItems", "maxItems")):
        if least in schema or most in schema:
            yield f"of {schema.get(least, 0)} to {schema[most]} {unit}" if most in schema else f"of at least {schema[least]} {unit}"
    if "pattern" in schema:
        yield f"of the form {schema['pattern']}"


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return _printable(text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 1] + "…")


def _printable(text: str) -> str:
    """One line without control characters: what is shown may come from a hostile file."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
