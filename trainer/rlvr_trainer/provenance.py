"""Keeps the lineage of the weights while they are trained, and looks whether their data hold what they are measured on.

base folder or checkpoint -> Provenance -> begin(stage), add(dataset), ... -> at(step) -> each MANIFEST.json
traces + held-out prompts -> scan -> Contamination
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlvr_api.provenance import Contamination as ContaminationSpec
from rlvr_api.spec import RLVRJob
from rlvr_api.stages import Stage
from rlvr_api.wire import EnvironmentInfo, Message
from rlvr_trainer.contamination import ContaminationIndex, Reference
from rlvr_trainer.context import BadInputError
from rlvr_trainer.fork import Fork
from rlvr_trainer.storage.errors import CorruptObjectError
from rlvr_trainer.storage.lineage import (
    LINEAGE_FILE,
    Contamination,
    Dataset,
    Lineage,
    SourceModel,
    StageLineage,
    Verifier,
    digest_folder,
    parse_lineage,
    running_code,
)

logger = logging.getLogger(__name__)

SHOWN_MATCHES = 10


class Provenance:
    """The lineage of the policy's weights.

    Args:
        lineage: of the weights that the process begins with.
        environments: what the verifier service says of itself.
    """

    def __init__(self, lineage: Lineage, environments: Sequence[EnvironmentInfo]) -> None:
        self._lineage = lineage
        self._verifiers = tuple(Verifier(environment=info.name, kind=info.kind, version=info.version) for info in environments)

    def begin(self, stage: Stage) -> None:
        """The stage trains the weights from now on; one that was begun by an earlier attempt goes on."""
        last = self._lineage.stages[-1] if self._lineage.stages else None
        if last is not None and last.name == stage.name:
            self._set_last(
                last.model_copy(
                    update={
                        "verifiers": tuple(dict.fromkeys((*last.verifiers, *self._verifiers))),
                        "code": tuple(dict.fromkeys((*last.code, running_code()))),
                    }
                )
            )
            return
        begun = StageLineage(
            name=stage.name, kind=stage.kind, steps=0, external_traces=stage.uses_external_traces, verifiers=self._verifiers,
            code=(running_code(),),
        )  # fmt: skip
        self._lineage = self._lineage.model_copy(update={"stages": (*self._lineage.stages, begun)})

    def add(self, dataset: Dataset) -> None:
        """The stage learns from a file."""
        last = self._lineage.stages[-1]
        if dataset not in last.datasets:
            self._set_last(last.model_copy(update={"datasets": (*last.datasets, dataset)}))

    def at(self, step: int) -> Lineage:
        """The lineage of the weights after an optimizer step of the stage."""
        *before, last = self._lineage.stages
        return self._lineage.model_copy(update={"stages": (*before, last.model_copy(update={"steps": step}))})

    def end(self, steps: int) -> None:
        """The stage is over."""
        self._lineage = self.at(steps)

    @property
    def lineage(self) -> Lineage:
        """Of the weights as the last stage left them."""
        return self._lineage

    def _set_last(self, stage: StageLineage) -> None:
        self._lineage = self._lineage.model_copy(update={"stages": (*self._lineage.stages[:-1], stage)})


def begin_lineage(job: RLVRJob, folder: Path, fork: Fork | None = None) -> Lineage:
    """The lineage of weights that the job has not trained yet.

    Args:
        folder: of the base model; a model of an earlier job has its lineage in it.
        fork: what the weights are from instead.

    Raises:
        BadInputError: their lineage cannot be read, or names traces that the job forbids.
    """
    job_name = f"{job.metadata.namespace}/{job.metadata.name}"
    if fork is not None:
        source, parent = fork.source()
        return allowed(Lineage(job=job_name, base=source, parent=parent), job)
    file = folder / LINEAGE_FILE
    try:
        parent = parse_lineage(file.read_bytes(), str(file)) if file.is_file() else None
    except CorruptObjectError as error:
        raise BadInputError(f"spec.model.uri: {error}") from None
    base = SourceModel(uri=job.spec.model.uri, sha256=digest_folder(folder))
    return allowed(Lineage(job=job_name, base=base, parent=parent), job)


def allowed(lineage: Lineage, job: RLVRJob) -> Lineage:
    """The lineage, if the job may begin with it.

    Raises:
        BadInputError: it has traces, and the job forbids them.
    """
    if job.spec.provenance.external_traces == "Forbidden" and lineage.external_stages:
        raise BadInputError(
            f"spec.provenance.externalTraces is Forbidden, and {lineage.base.uri} has learned from words that are not its own in "
            f"{', '.join(lineage.external_stages)}: begin with another model, or allow them"
        )
    return lineage


def scan(
    conversations: Iterable[tuple[str, Sequence[Message]]], references: Sequence[Reference], spec: ContaminationSpec, place: str
) -> Contamination:
    """Look for held-out prompts in traces.

    Args:
        conversations: names and messages; the last message is what is learned.
        place: of the traces, for messages.

    Raises:
        BadInputError: some were found, and the job is to fail then.
    """
    index = ContaminationIndex(references, spec.ngram_words, spec.similarity)
    kinds: Counter[str] = Counter()
    shown: list[str] = []
    for name, messages in conversations:
        texts = [message.content for message in messages]
        asked = next((message.content for message in reversed(messages[:-1]) if message.role == "user"), "")
        match = index.find(asked, "\n".join(texts))
        if match is None:
            continue
        kinds[match.kind.value] += 1
        if len(shown) < SHOWN_MATCHES:
            shown.append(f"{name} holds {match.reference.name} ({match.kind.value})")
    result = Contamination(references=len(index), found=dict(kinds), shown=tuple(shown))
    if result.examples:
        text = f"{place}: {result.examples} examples hold what the model is measured on: {'; '.join(shown[:3])}"
        if spec.on_found == "Fail":
            raise BadInputError(f"{text}: take them out, or set provenance.contamination.onFound to Warn")
        logger.warning("%s; `rlvr lineage` lists them", text)
    return result
