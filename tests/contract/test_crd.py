"""The CustomResourceDefinition keeps to what the API server takes, and its rules have twins in the models."""

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.alias_generators import to_camel

from rlvr_api import algorithms, environments, off_policy, pods, spec, stages
from rlvr_api.changes import CHANGEABLE
from rlvr_api.crd import custom_resource_definition, job_schema
from rlvr_api.rules import FIXED, FIXED_OPTIONAL, LIST_KEYS, RULES, SET_LISTS
from rlvr_api.schema import schema_at, structural_schema
from rlvr_api.spec import RLVRJobSpec
from rlvr_api.status import RLVRJobStatus

ALLOWED = {
    "type", "format", "description", "default", "enum", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "required", "properties", "additionalProperties",
    "items", "x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip


def every_node(schema, path="root"):
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from every_node(below, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from every_node(schema[key], f"{path}[{key}]")


NODES = dict(every_node(job_schema()))


def test_every_node_is_structural():
    for path, node in NODES.items():
        assert set(node) <= ALLOWED, path
        assert ("type" in node) is not node.get("x-kubernetes-preserve-unknown-fields", False), path
        assert not ("properties" in node and "additionalProperties" in node), path


def test_everything_is_bounded():
    """The API server's cost budget for rules assumes the worst of an unbounded list or string."""
    for path, node in NODES.items():
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if node.get("type") == "string" and not {"enum", "format"} & set(node) and path not in ("root.apiVersion", "root.kind"):
            assert "maxLength" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


def test_no_default_holds_null():
    def holds_null(value):
        below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return value is None or any(map(holds_null, below))

    assert [path for path, node in NODES.items() if "default" in node and holds_null(node["default"])] == []


def test_rules_only_name_fields_that_exist():
    for path, node in NODES.items():
        if path == "root":  # its rule looks at metadata, which the API server owns
            continue
        for rule in node.get("x-kubernetes-validations", ()):
            for reference in re.findall(r"\bself((?:\.\w+)+)(?!\w*\()", rule["rule"]):
                names = [name for name in reference.split(".")[1:] if name not in ("exists", "contains", "size")]
                assert schema_at(node, tuple(names)) is not None, f"{path}: {reference}"


def test_rules_guard_what_may_be_absent():
    """A path without a default must be behind has(), or the rule errs instead of judging."""
    for path, node in NODES.items():
        if path == "root":  # its rule looks at metadata, which is never absent
            continue
        for rule in node.get("x-kubernetes-validations", ()):
            for name in re.findall(r"\bself\.(\w+)\b(?!\()", rule["rule"]):
                below = node.get("properties", {}).get(name)
                if below is not None and "default" not in below and name not in node.get("required", ()):
                    assert f"has(self.{name})" in rule["rule"], f"{path}: {name} in {rule['rule']}"


def test_rules_list_keys_and_sets_name_models_that_exist():
    models = {
        name
        for module in (algorithms, environments, off_policy, pods, spec, stages)
        for name, item in vars(module).items()
        if is_model(item)
    }
    assert set(RULES) <= models
    for place in {*LIST_KEYS, *SET_LISTS} - {"RLVRJobStatus.conditions", "RLVRJobStatus.roles"}:
        assert place.partition(".")[0] in models


def test_what_is_fixed_for_the_api_server_is_what_is_not_changeable():
    fields = {(to_camel(name),) for name in RLVRJobSpec.model_fields}
    paths = fields - {("storage",), ("integrity",)}
    for name, model in (("storage", spec.Storage), ("integrity", spec.Integrity)):
        paths |= {(name, to_camel(field)) for field in model.model_fields}
    assert {tuple(path.split(".")) for path in (*FIXED, *FIXED_OPTIONAL)} == paths - set(CHANGEABLE)


def is_model(item):
    return isinstance(item, type) and issubclass(item, BaseModel)


@pytest.mark.parametrize(
    ("schema", "path", "key"),
    [
        (RLVRJobSpec, "environments", "name"),
        (RLVRJobSpec, "stages", "name"),
        (RLVRJobStatus, "conditions", "type"),
        (RLVRJobStatus, "roles", "name"),
    ],
)
def test_keyed_lists(schema, path, key):
    node = structural_schema(schema)["properties"][path]
    assert node["x-kubernetes-list-type"] == "map"
    assert node["x-kubernetes-list-map-keys"] == [key]
    assert key in node["items"]["required"]


def test_every_field_is_described():
    undescribed = [
        path
        for path, node in NODES.items()
        if path.startswith(("root.spec", "root.status")) and is_field(path) and not node.get("description")
    ]
    assert undescribed == []


def is_field(path):
    return not path.endswith("]") and path != "root.status"


def test_printer_columns_and_scale_point_at_fields():
    version = custom_resource_definition()["spec"]["versions"][0]
    scale = version["subresources"]["scale"]
    paths = [column["jsonPath"] for column in version["additionalPrinterColumns"] if not column["jsonPath"].startswith(".metadata")]
    for path in (*paths, *scale.values()):
        assert schema_at(job_schema(), tuple(path.strip(".").split("."))) is not None, path


def test_it_can_be_applied_by_the_client():
    """`kubectl apply` keeps the object as JSON in an annotation, and all annotations together have at most 256 KiB."""
    assert len(json.dumps(custom_resource_definition())) < 200 * 1024


def test_generated_files_are_up_to_date(monkeypatch):
    from rlvr_api.reference import main

    monkeypatch.chdir(Path(__file__).parents[2])
    assert main(["--check"]) == 0
