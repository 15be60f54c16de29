"""The files of the Helm chart that are generated: values with comments, their schema, and the template of the CustomResourceDefinition.

    ChartValues -> values.yaml         every default, below its docstring
                -> values.schema.json  what Helm checks at install, upgrade, lint and template
    crd_yaml()  -> templates/crd.yaml  with the switches `crds.enabled` and `crds.keep`

Not covered: the other templates, which are written by hand.
"""

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from rlvr_api.chart_values import ChartValues
from rlvr_api.crd import LINE_WIDTH, crd_yaml

VALUES_HEAD = """\
# Values of the chart, generated from rlvr_api/chart_values.py by `make generate`.
# A value that the chart does not know is refused, by the schema beside this file.
"""
CRD_META = "metadata:\n  name: rlvrjobs.rlvr.dev\n"
CRD_META_TEMPLATE = (
    CRD_META
    + """\
  labels:
    {{- include "rlvr-operator.labels" . | nindent 4 }}
  {{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
"""
)


def values_yaml() -> str:
    """The default values, each below what it means."""
    return VALUES_HEAD + "\n".join(_lines(ChartValues())) + "\n"


def values_schema() -> str:
    """JSON schema of the values. Helm itself adds `global` when the chart is a part of another one."""
    schema = ChartValues.model_json_schema(by_alias=True)
    _tidy(schema)
    schema["properties"]["global"] = {"type": "object", "description": "Set by Helm where this chart is part of another; not read."}
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def crd_template() -> str:
    """The CustomResourceDefinition, as Helm renders it.

    Raises:
        ValueError: its text is not what the switches are put into.
    """
    text = crd_yaml()
    if text.count(CRD_META) != 1 or "{{" in text:
        raise ValueError("the CRD's metadata has changed, or its text holds template braces: adapt rlvr_api.chart")
    return "{{- if .Values.crds.enabled }}\n" + text.replace(CRD_META, CRD_META_TEMPLATE) + "{{- end }}\n"


def _lines(model: BaseModel, depth: int = 0) -> Iterator[str]:
    indent = "  " * depth
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if depth == 0:
            yield ""
        comment = " ".join((field.description or "").split())
        yield from (f"{indent}# {line}" for line in textwrap.wrap(comment, LINE_WIDTH - 2 * depth - 2))
        if isinstance(value, BaseModel):
            yield f"{indent}{field.alias}:"
            yield from _lines(value, depth + 1)
        else:
            yield f"{indent}{field.alias}: {json.dumps(value)}"


def _tidy(node: Any) -> None:
    """Drop pydantic's titles, and close mappings whose keys have a form."""
    if isinstance(node, list):
        for below in node:
            _tidy(below)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("title"), str):
        del node["title"]
    if "patternProperties" in node:
        node["additionalProperties"] = False
    if isinstance(node.get("description"), str):
        node["description"] = " ".join(node["description"].split())
    for below in node.values():
        _tidy(below)
