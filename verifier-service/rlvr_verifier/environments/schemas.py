"""JSON schemas (draft 2020-12) of which every word counts: what a validator would ignore, or fetch, is a fault of the schema.

    schema -> faults: unknown keywords, unknown formats, references that lead nowhere or outside
           -> open_validator -> a validator that resolves nothing over the network

Not covered: `$id`, anchors and dynamic references, which are faults.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError
from pydantic import JsonValue
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ANNOTATIONS = frozenset({"$schema", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"})
ASSERTIONS = frozenset({
    "type", "enum", "const", "multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum", "maxLength", "minLength",
    "pattern", "maxItems", "minItems", "uniqueItems", "maxContains", "minContains", "maxProperties", "minProperties", "required",
    "dependentRequired", "format", "$ref",
})  # fmt: skip
OF_ONE = frozenset({
    "not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames", "unevaluatedItems", "unevaluatedProperties",
})  # fmt: skip
OF_LIST = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
OF_MAPPING = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs"})
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

FORMATS = FormatChecker(formats=("date", "ipv4", "ipv6", "uuid"))
"""Those that are decided by the standard library. The library's own e-mail takes any text with an @, so it is none."""


def _is_date_time(value: object) -> bool:
    """RFC 3339, section 5.6; without leap seconds."""
    if not isinstance(value, str):
        return True
    return _TIME.fullmatch(value) is not None and datetime.fromisoformat(value.upper()).tzinfo is not None


FORMATS.checks("date-time", raises=ValueError)(_is_date_time)
KNOWN_FORMATS = frozenset({"date", "date-time", "ipv4", "ipv6", "uuid"})


def open_validator(schema: Mapping[str, JsonValue]) -> Any:
    """A validator of a schema without faults; nothing is ever retrieved."""
    return Draft202012Validator(schema, registry=Registry(), format_checker=FORMATS)


def schema_faults(schema: Mapping[str, JsonValue]) -> Iterator[str]:
    """What is wrong with a schema; nothing for one that can be used."""
    if schema.get("$schema", DIALECT) != DIALECT:
        yield f"$schema is {schema['$schema']!r}, and only {DIALECT} is known: rewrite it, or leave $schema out"
        return
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        yield f"it is no JSON schema: {error.message[:200]} at {error.json_path}"
        return
    resolver = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
    for place, one in _subschemas(schema, "#"):
        for keyword in sorted(one.keys() - ANNOTATIONS - ASSERTIONS - OF_ONE - OF_LIST - OF_MAPPING):
            yield f"keyword {keyword!r} at {place} would be ignored: correct it, or remove it"
        if (name := one.get("format")) is not None and name not in KNOWN_FORMATS:
            yield f"format {name!r} at {place} would be ignored: write {', '.join(sorted(KNOWN_FORMATS))} or a pattern"
        if isinstance(reference := one.get("$ref"), str):
            try:
                if not reference.startswith("#"):
                    raise LookupError
                resolver.lookup(reference)
            except (Unresolvable, LookupError):
                yield f"$ref {reference!r} at {place} is not in the schema: only its own parts, as #/$defs/name, can be named"


def _subschemas(schema: object, place: str) -> Iterator[tuple[str, Mapping[str, JsonValue]]]:
    if not isinstance(schema, dict):
        return
    yield place, schema
    for keyword, value in schema.items():
        if keyword in OF_ONE:
            yield from _subschemas(value, f"{place}/{keyword}")
        elif keyword in OF_LIST and isinstance(value, list):
            for number, one in enumerate(value):
                yield from _subschemas(one, f"{place}/{keyword}/{number}")
        elif keyword in OF_MAPPING and isinstance(value, dict):
            for name, one in value.items():
                yield from _subschemas(one, f"{place}/{keyword}/{name}")
