"""The files that a job reads, one list for all who look after them: a local run, that they are there; a cluster, that pods reach them."""

from dataclasses import dataclass

from rlvr_api.spec import RLVRJobSpec

TRACES = "JSONL of messages, or of prompt and completion"


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
        InputFile(f"spec.environments[{index}].math.dataset", environment.math.dataset, "JSONL of problem and answer")
        for index, environment in enumerate(spec.environments)
        if environment.math is not None
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
