"""The files that a job reads, one list for all who look after them: a local run, that they are there; a cluster, that pods reach them."""

from collections.abc import Callable
from dataclasses import dataclass

from pydantic.alias_generators import to_camel

from rlvr_api.environments import DATASET_KINDS, FOREIGN_KINDS, EnvironmentSpec
from rlvr_api.spec import RLVRJobSpec
from rlvr_api.stages import Stage

DATASET_FORMS = {
    "math": "JSONL of problem and answer",
    "python_functions": "JSONL of prompt, entryPoint, hidden inputs and reference or expected values",
    "stdio": "JSONL of prompt and tests",
    "json_schema": "JSONL of prompt and schema",
    "regex": "JSONL of prompt, mustMatch, mustNotMatch and reference",
    "instructions": "JSONL of prompt and constraints",
    "judge": "JSONL of prompt and rubric",
    "sql": "JSONL of prompt, schema, rows and reference",
}
TRACES = "JSONL or Parquet of messages, or of prompt and completion"


@dataclass(frozen=True)
class InputFile:
    """One file that a job names."""

    path: str
    """Of the field, as a person writes it."""
    uri: str
    form: str
    """What it should hold, for a message."""


def input_files(spec: RLVRJobSpec) -> tuple[InputFile, ...]:
    """Datasets of environments, traces of stages, and traces that these are compared with, in the order of the spec."""
    datasets = [
        InputFile(f"spec.environments[{index}].{to_camel(kind)}.dataset", getattr(environment, kind).dataset, DATASET_FORMS[kind])
        for index, environment in enumerate(spec.environments)
        for kind in DATASET_KINDS
        if getattr(environment, kind) is not None
    ]
    traces = [
        InputFile(f"spec.stages[{index}].sft.traces", stage.sft.traces, TRACES)
        for index, stage in enumerate(spec.stages)
        if stage.sft is not None
    ]
    known = [
        InputFile(f"spec.provenance.contamination.against[{index}]", uri, TRACES)
        for index, uri in enumerate(spec.provenance.contamination.against)
    ]
    return (*datasets, *traces, *known)


def map_inputs(spec: RLVRJobSpec, change: Callable[[str], str]) -> RLVRJobSpec:
    """The spec with the URI of every file that `input_files` lists, and of certificates, changed."""

    def environment(one: EnvironmentSpec) -> EnvironmentSpec:
        changed = {
            kind: data.model_copy(update={"dataset": change(data.dataset)})
            for kind in DATASET_KINDS
            if (data := getattr(one, kind)) is not None
        } | {
            kind: foreign.model_copy(update={"certificate": change(foreign.certificate)})
            for kind in FOREIGN_KINDS
            if (foreign := getattr(one, kind)) is not None and foreign.certificate is not None
        }
        return one.model_copy(update=changed)

    def stage(one: Stage) -> Stage:
        return one if one.sft is None else one.model_copy(update={"sft": one.sft.model_copy(update={"traces": change(one.sft.traces)})})

    contamination = spec.provenance.contamination
    against = contamination.model_copy(update={"against": tuple(map(change, contamination.against))})
    changed = {
        "environments": tuple(map(environment, spec.environments)),
        "stages": tuple(map(stage, spec.stages)),
        "provenance": spec.provenance.model_copy(update={"contamination": against}),
    }
    return spec.model_copy(update=changed)
