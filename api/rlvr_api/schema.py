"""Structural OpenAPI schema of a pydantic model, as a CustomResourceDefinition wants it.

    pydantic's JSON schema -> inline every $ref -> drop what Kubernetes refuses (titles, null types, additionalProperties: false beside
    properties) -> spell draft 2020 the way OpenAPI 3.0 does (exclusive bounds, const) -> attach the CEL rules of `rlvr_api.rules`

Optional members have no default and are simply absent. What is not covered: recursive models, and unions other than `X | None`.
"""

from collections.abc import Callable
from typing import Any, cast

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core.core_schema import WithDefaultSchema

from rlvr_api.rules import LIST_KEYS, RULES, SET_LISTS, Rule

Schema = dict[str, Any]

KEPT = (
    "type", "format", "description", "default", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "minProperties", "maxProperties", "required",
)  # fmt: skip


class _Generator(GenerateJsonSchema):
    """Writes a default that is a model as the fields that were set: the schema's own defaults supply the others. A model with rules is
    written whole, since the API server checks a default against its rules before it fills it in."""

    def get_default_value(self, schema: WithDefaultSchema) -> Any:
        factory = schema.get("default_factory")
        return super().get_default_value(schema) if factory is None else cast(Callable[[], Any], factory)()

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, BaseModel):
            whole = type(dft).__name__ in RULES
            return dft.model_dump(mode="json", by_alias=True, exclude_unset=not whole, exclude_none=True)
        return super().encode_default(dft)


def structural_schema(model: type[BaseModel]) -> Schema:
    """The schema of `model` without references; keys in a fixed order, so that equal models give equal text.

    Raises:
        ValueError: the model has a type that a structural schema cannot say.
    """
    root = model.model_json_schema(by_alias=True, schema_generator=_Generator)
    return _structural(root, root.get("$defs", {}), model.__name__)


def schema_at(schema: Schema, path: tuple[str | int, ...]) -> Schema | None:
    """The part of a structural schema at a path of field names and list indices; None where the schema ends before the path does."""
    for step in path:
        named = schema.get("properties", {})
        below = schema.get("items") if isinstance(step, int) else named.get(step, schema.get("additionalProperties"))
        if below is None:
            return None
        schema = cast(Schema, below)
    return schema


def _structural(node: Schema, definitions: dict[str, Schema], name: str) -> Schema:
    node, name = _resolved(node, definitions, name)
    if not (set(node) & {"type", "enum", "const"}):
        if "anyOf" in node:
            raise ValueError(f"{name} is a union, which a structural schema cannot say: make each kind an optional member")
        return {**_kept(node), "x-kubernetes-preserve-unknown-fields": True}
    result = _kept(node)
    if "const" in node:
        result["enum"] = [node["const"]]
    _spell_bounds(node, result)
    if node.get("type") == "integer":
        result["format"] = "int64"
    if node.get("type") == "object":
        _fill_object(node, result, definitions, name)
    if node.get("type") == "array":
        result["items"] = _structural(node["items"], definitions, f"{name}[]")
        _mark_list(result, name)
    return result


def _resolved(node: Schema, definitions: dict[str, Schema], name: str) -> tuple[Schema, str]:
    """Follows references and `X | None`; what stands beside them (description, default) wins."""
    while True:
        beside = {key: value for key, value in node.items() if key not in ("$ref", "anyOf", "allOf")}
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            node = {**definitions[name], **beside}
        elif len(members := [member for member in node.get("anyOf", []) if member.get("type") != "null"]) == 1:
            node = {**members[0], **beside}
        else:
            return node, name


def _kept(node: Schema) -> Schema:
    kept = {key: node[key] for key in KEPT if key in node and not (key == "default" and node[key] is None)}
    if "description" in kept:  # docstrings break lines for editors
        kept["description"] = " ".join(kept["description"].split())
    return kept


def _spell_bounds(node: Schema, result: Schema) -> None:
    for exclusive, inclusive in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in node:
            result[inclusive], result[exclusive] = node[exclusive], True


def _fill_object(node: Schema, result: Schema, definitions: dict[str, Schema], name: str) -> None:
    if "properties" in node:
        result["properties"] = {
            field: _structural(below, definitions, f"{name}.{field}") for field, below in node["properties"].items()
        }  # fmt: skip
    else:  # a mapping; the form of its keys cannot be said
        values = next(iter(node.get("patternProperties", {}).values()), node.get("additionalProperties", {}))
        result["additionalProperties"] = _structural({} if values is True else values, definitions, f"{name}{{}}")
    if rules := RULES.get(name):
        result["x-kubernetes-validations"] = [_validation(rule) for rule in rules]


def _mark_list(result: Schema, name: str) -> None:
    if name in LIST_KEYS:
        result["x-kubernetes-list-type"] = "map"
        result["x-kubernetes-list-map-keys"] = [LIST_KEYS[name]]
    elif name in SET_LISTS:
        result["x-kubernetes-list-type"] = "set"
    else:
        result["x-kubernetes-list-type"] = "atomic"


def _validation(rule: Rule) -> Schema:
    entry: Schema = {"rule": rule.cel, "message": rule.message}
    if rule.create_only:
        entry["optionalOldSelf"] = True
    return entry
