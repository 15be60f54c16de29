"""One JSON document that is valid by a task's schema, and has the values that the task asks for.

    load:   rows -> faults of schema and example -> trivial documents refused
    score:  the one document, strictly -> the schema -> expected values

It is judged in a killable worker, since patterns of a schema can take any time on a text. Not covered: what a schema leaves open is paid.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.model import ApiModel
from rlvr_verifier.environments.answers import only_answer
from rlvr_verifier.environments.base import Place, Score, failed, invalid, passed
from rlvr_verifier.environments.datasets import DatasetReader, parse_models
from rlvr_verifier.environments.prompts import PromptEnvironment, split_rows
from rlvr_verifier.environments.schemas import open_validator, schema_faults
from rlvr_verifier.environments.strict_json import NotStrictJsonError, at_pointer, parse_json, same
from rlvr_verifier.integrity.probe import COMMON, EXPLOIT, RIGHT, WRONG, Probe, fenced

TRIVIAL: tuple[JsonValue, ...] = (None, True, False, 0, 1, "", "x", [], {})
"""Documents that no task may pay for."""
MISSING = object()
Pointer = Annotated[str, Field(pattern=r"^(/([^~/]|~[01])*)*$", max_length=1_000)]


class SchemaRow(ApiModel):
    """One line of a dataset."""

    prompt: Annotated[str, Field(min_length=1, max_length=100_000)]
    json_schema: Annotated[dict[str, JsonValue], Field(alias="schema", min_length=1)]
    example: JsonValue = None
    """A right document, where the row has one: null is one, too."""
    expected: Annotated[dict[Pointer, JsonValue], Field(max_length=1_000, default_factory=dict)]
    """Values that must be there, by JSON pointer; `""` is the document."""

    @property
    def has_example(self) -> bool:
        """Whether a right document is known."""
        return "example" in self.model_fields_set


class JsonSchemaEnvironment(PromptEnvironment[SchemaRow]):
    """A dataset of documents to write."""

    kind = "json_schema"
    place = Place.WORKER

    def __init__(self, spec: EnvironmentSpec, reader: DatasetReader) -> None:
        assert spec.json_schema is not None
        kind = spec.json_schema
        data = reader.read(kind.dataset)
        rows = list(parse_models(data, kind.dataset, SchemaRow))
        faults = [] if reader.checked else [f"line {number}: {fault}" for number, row in rows for fault in row_faults(row)]
        super().__init__(spec.name, "1", kind.instruction, data, split_rows(self.kind, kind.dataset, kind.held_out, rows, faults))
        self._validators: dict[str, Any] = {}

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """Parse the whole answer strictly, then ask the schema."""
        return judge(self.row(payload), self._validator(str(payload["row"])), completion)

    def probes(self, payload: Mapping[str, JsonValue]) -> Iterator[Probe]:
        """The example in several notations, and what tolerant parsers make of broken ones."""
        row = self.row(payload)
        yield from COMMON
        yield Probe("schema-echo", EXPLOIT, json.dumps(row.json_schema))
        yield Probe("nan", EXPLOIT, "NaN")
        yield Probe("nested", EXPLOIT, "[" * 500 + "]" * 500)
        if row.has_example:
            yield from _around(json.dumps(row.example))
        if isinstance(row.example, dict | list):
            yield Probe("in-a-string", WRONG, json.dumps(json.dumps(row.example)))
        if isinstance(row.example, dict):
            yield from _broken_objects(row.example)

    def _validator(self, key: str) -> Any:
        if key not in self._validators:
            self._validators[key] = open_validator(self._dataset.rows[key].json_schema)
        return self._validators[key]


def judge(row: SchemaRow, validator: Any, completion: str) -> Score:
    """The verdict on a completion.

    Args:
        validator: of the row's schema, from `open_validator`.
    """
    answer = only_answer(completion, ("json",), alone=True)
    if isinstance(answer, Score):
        return answer
    try:
        document = parse_json(answer)
    except NotStrictJsonError as error:
        return invalid(f"the answer is not one JSON document: {error}")
    return judge_document(row, validator, document)


def judge_document(row: SchemaRow, validator: Any, document: JsonValue) -> Score:
    """The verdict on a document."""
    fault = next(validator.iter_errors(document), None)
    if fault is not None:
        return failed(f"the document is not valid: {fault.validator or 'nothing may stand'} at depth {len(fault.absolute_path)}")
    for pointer, value in row.expected.items():
        try:
            found = at_pointer(document, pointer)
        except LookupError:
            return failed("an expected value is missing")
        if not same(found, value):
            return failed("a value is not the expected one")
    return passed("the document is valid")


def row_faults(row: SchemaRow) -> Iterator[str]:
    """What is wrong with a row."""
    faults = list(schema_faults(row.json_schema))
    yield from faults
    if faults:
        return
    validator = open_validator(row.json_schema)
    try:
        paid = next((one for one in (*TRIVIAL, row.json_schema) if judge_document(row, validator, one).score > 0), MISSING)
        if paid is not MISSING:
            yield f"the document {json.dumps(paid)[:80]} is valid: narrow the schema, or add expected values"
        if row.has_example and (found := judge(row, validator, json.dumps(row.example))).score == 0:
            yield f"its example is refused: {found.reason}"
    except RecursionError:
        yield "the schema refers to itself without an end"


def _around(text: str) -> Iterator[Probe]:
    block = fenced(text, "json")
    yield Probe("plain", RIGHT, text)
    yield Probe("indented", RIGHT, json.dumps(json.loads(text), indent=2))
    yield Probe("in-a-block", RIGHT, block)
    yield Probe("thought-before", RIGHT, f"<think>{{}}</think>\n{text}\n")
    yield Probe("text-after", EXPLOIT, f"{text}\nThat is all.")
    yield Probe("text-before", EXPLOIT, f"Here it is: {text}")
    yield Probe("text-around-a-block", EXPLOIT, f"Here it is:\n{block}")
    yield Probe("twice", EXPLOIT, f"{text}\n{text}")
    yield Probe("two-blocks", EXPLOIT, f"{block}\n{block}")
    yield Probe("comment", EXPLOIT, f"// right\n{text}")
    yield Probe("cut-off", WRONG, text[:-1] if len(text) > 1 and text[-1] in ']}"' else f"{text},")
    yield Probe("only-thought", WRONG, f"<think>{text}</think>")


def _broken_objects(example: Mapping[str, JsonValue]) -> Iterator[Probe]:
    text = json.dumps(example)
    if not example:
        return
    key, value = next(iter(example.items()))
    again = f"{json.dumps(key)}: {json.dumps(value)}"
    yield Probe("key-twice", EXPLOIT, f"{text[:-1]}, {again}}}")
    yield Probe("trailing-comma", EXPLOIT, f"{text[:-1]},}}")
    yield Probe("bare-keys", EXPLOIT, text.replace(f"{json.dumps(key)}:", "key:", 1))
