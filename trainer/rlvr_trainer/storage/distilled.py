"""What a teacher said, in the store: one document for each task that it was asked about, and in the end the dataset of what was kept.

answers/<index>.json, each written once -> dataset/<attempt>/traces.jsonl -> dataset/MANIFEST.json, which makes the dataset final
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pydantic import AwareDatetime, ValidationError

from rlvr_api.wire import Message
from rlvr_trainer.storage.attempts import AttemptClaim
from rlvr_trainer.storage.client import ObjectStore
from rlvr_trainer.storage.documents import Count, StoredBlob, StoredDocument, first_fault
from rlvr_trainer.storage.errors import AlreadyExistsError, CorruptObjectError, ObjectMissingError
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.lineage import Code, Verifier

DocumentT = TypeVar("DocumentT", bound=StoredDocument)


class KeptAnswer(StoredDocument):
    """An answer that the verifiers passed."""

    text: str
    score: float
    verifier: str
    verifier_version: str


class TaskAnswers(StoredDocument):
    """All that was asked about one task."""

    index: Count
    """Of the stage's sequence of tasks."""
    environment: str
    level: Count
    problem_id: str
    messages: tuple[Message, ...]
    """The task."""
    requests: Count
    """Answers that were asked for."""
    tokens: Count
    """Of them, as the teacher counts."""
    statuses: dict[str, Count]
    """Answers by verdict; `truncated`, `unusable` and `unrenderable` are those that were not judged."""
    kept: tuple[KeptAnswer, ...]


class DatasetManifest(StoredDocument):
    """The dataset of a stage."""

    stage: str
    attempt: Count
    time: AwareDatetime
    traces: StoredBlob
    """JSONL of `messages`, and beside them where each came from."""
    examples: Count
    teacher: str
    """Model and endpoint."""
    prompts: Count
    """Tasks that it was asked about."""
    requests: Count
    tokens: Count
    statuses: dict[str, Count]
    verifiers: tuple[Verifier, ...]
    code: Code


def read_answers(store: ObjectStore, stage: StageKeys) -> Mapping[int, TaskAnswers]:
    """Everything that was asked, by index.

    Raises:
        CorruptObjectError: a document cannot be read.
    """
    keys = [key for key in store.list(stage.answers) if key.endswith(".json")]
    with ThreadPoolExecutor(8, thread_name_prefix="s3-answers") as pool:
        found = list(pool.map(lambda key: _parse(TaskAnswers, store.get(key), store.uri(key)), keys))
    return {answers.index: answers for answers in found}


def write_answers(store: ObjectStore, stage: StageKeys, claim: AttemptClaim, answers: TaskAnswers) -> TaskAnswers:
    """Write what was said about a task, once over all attempts; gives what is in the store then.

    Raises:
        SupersededError: a newer attempt has claimed.
    """
    claim.check()
    key = stage.answer(answers.index)
    try:
        store.put_if_absent(key, answers.to_bytes())
    except AlreadyExistsError as error:  # of an older attempt, just before it was fenced off
        return _parse(TaskAnswers, error.content, store.uri(key))
    return answers


def commit_dataset(store: ObjectStore, stage: StageKeys, manifest: DatasetManifest) -> DatasetManifest:
    """Make a dataset the stage's, unless another attempt's is already; gives the one that is."""
    try:
        store.put_if_absent(stage.dataset_manifest, manifest.to_bytes())
    except AlreadyExistsError as error:
        return _parse(DatasetManifest, error.content, store.uri(stage.dataset_manifest))
    return manifest


def read_dataset(store: ObjectStore, stage: StageKeys) -> DatasetManifest | None:
    """The dataset, once it is final."""
    try:
        return _parse(DatasetManifest, store.get(stage.dataset_manifest), store.uri(stage.dataset_manifest))
    except ObjectMissingError:
        return None


def trace_lines(answers: Sequence[TaskAnswers], teacher: str) -> Iterator[bytes]:
    """The dataset's lines, in the order of the tasks."""
    for task in sorted(answers, key=lambda one: one.index):
        for kept in task.kept:
            said = [*task.messages, Message(role="assistant", content=kept.text)]
            line = {
                "messages": [{"role": message.role, "content": message.content} for message in said],
                "index": task.index,
                "environment": task.environment,
                "level": task.level,
                "problemId": task.problem_id,
                "score": kept.score,
                "verifier": f"{kept.verifier} {kept.verifier_version}",
                "teacher": teacher,
            }
            yield json.dumps(line, ensure_ascii=False).encode() + b"\n"


def total_statuses(answers: Sequence[TaskAnswers]) -> dict[str, int]:
    """Answers of all tasks by status."""
    total: Counter[str] = Counter()
    for task in answers:
        total.update(task.statuses)
    return dict(sorted(total.items()))


def _parse(document: type[DocumentT], content: bytes, place: str) -> DocumentT:
    try:
        return document.model_validate_json(content)
    except ValidationError as error:
        raise CorruptObjectError(f"{place} is no {document.__name__}: {first_fault(error)}; restore or delete it") from error
