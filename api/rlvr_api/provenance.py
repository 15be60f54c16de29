"""`spec.provenance`: where a model may come from."""

from typing import Annotated, Literal

from pydantic import Field

from rlvr_api.model import ApiModel, Fraction
from rlvr_api.stages import TraceUri


class Contamination(ApiModel):
    """The search for what a model is measured on among what it learns from: traces against the held-out prompts of all environments."""

    ngram_words: Annotated[int, Field(ge=4, le=100)] = 13
    """Words in a row of a held-out prompt that an example may not say; 13 as in arXiv 2005.14165. Shorter prompts count as a whole."""
    similarity: Annotated[Fraction, Field(gt=0.0)] = 0.8
    """Share of a held-out prompt's own words, three in a row, from which an example's prompt counts as a near duplicate."""
    against: Annotated[tuple[TraceUri, ...], Field(max_length=16)] = ()
    """Files of traces that are looked for as well, for example published ones that the model must not have seen; JSONL as `sft` takes."""
    on_found: Literal["Warn", "Fail"] = "Warn"
    """What happens when an example is found: a warning in log, lineage and report, or the job fails before it begins."""


class Provenance(ApiModel):
    """Where a model may come from, and how that is shown: `rlvr lineage` prints it for every model and checkpoint."""

    external_traces: Literal["Allowed", "Forbidden"] = "Allowed"
    """`Forbidden`: the model learns from its own samples alone. Stages that learn from given or a teacher's words are refused, and so is
    a model whose lineage has one."""
    contamination: Contamination = Contamination()
    """Search for held-out prompts in the data of supervised stages."""
