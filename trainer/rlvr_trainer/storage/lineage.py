"""What a model is made of: the documents that its `MANIFEST.json` carries.

    base model -> stage -> stage -> ...   each with its data, the verifiers that judged for it, and the code that ran

A base that was itself trained here brings its own lineage as `parent`, so the chain goes back to a model that nobody here has trained;
that one is known by its digest alone.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from pydantic import ValidationError

from rlvr_trainer.storage.documents import Count, Sha256, StoredDocument, first_fault
from rlvr_trainer.storage.errors import CorruptObjectError

DISTRIBUTION = "rlvr-operator"
PACKAGES = ("rlvr_api", "rlvr_trainer")
"""Whose source a code version has a digest of: what the learner runs."""
LINEAGE_FILE = "rlvr_lineage.json"
"""In the folder of a model, so that its lineage goes where the folder goes."""


class Contamination(StoredDocument):
    """What the search for held-out prompts in a dataset found."""

    references: Count
    """Different prompts that were looked for."""
    found: dict[str, Count]
    """Examples that hold one, by kind of match."""
    shown: tuple[str, ...] = ()
    """The first of them, in words."""

    @property
    def examples(self) -> int:
        """Examples that hold a reference."""
        return sum(self.found.values())


class Dataset(StoredDocument):
    """A file that a stage learned from."""

    uri: str
    sha256: Sha256
    """Of the file."""
    examples: Count
    """That it has."""
    made_by: str
    """`given`, or the teacher that was asked."""
    contamination: Contamination | None = None


class Verifier(StoredDocument):
    """An environment, and the code and data that judged for it."""

    environment: str
    kind: str
    version: str


class Code(StoredDocument):
    """A program that trained."""

    version: str
    """Of the distribution."""
    sha256: Sha256
    """Of the source files of what the learner runs, whatever the version says."""


class StageLineage(StoredDocument):
    """What one stage did to the weights."""

    name: str
    kind: str
    steps: Count
    """Optimizer steps."""
    external_traces: bool
    """It learned from words that were not the model's own."""
    datasets: tuple[Dataset, ...] = ()
    verifiers: tuple[Verifier, ...] = ()
    """All that judged, over all attempts."""
    code: tuple[Code, ...] = ()
    """All that ran, over all attempts."""


class SourceModel(StoredDocument):
    """Weights that a job began with."""

    uri: str
    sha256: Sha256
    """Of the listing that `sha256sum` prints for the folder's files, in the order of their names; for a checkpoint, of its manifest."""


class Lineage(StoredDocument):
    """All that weights come from."""

    job: str
    """Namespace and name of the job that trained them."""
    base: SourceModel
    parent: "Lineage | None" = None
    """Lineage of the base, where it was trained here."""
    stages: tuple[StageLineage, ...] = ()
    """In order; those that train nothing are left out."""

    @property
    def generations(self) -> Iterator["Lineage"]:
        """This lineage, that of its base, and so on."""
        found: Lineage | None = self
        while found is not None:
            yield found
            found = found.parent

    @property
    def external_stages(self) -> tuple[str, ...]:
        """Stages that learned from words that were not the model's own, over all generations, the newest first."""
        return tuple(f"{one.job}/{stage.name}" for one in self.generations for stage in one.stages if stage.external_traces)


def parse_lineage(content: bytes, place: str) -> Lineage:
    """A lineage from its bytes.

    Raises:
        CorruptObjectError: it is not one.
    """
    try:
        return Lineage.model_validate_json(content)
    except ValidationError as error:
        raise CorruptObjectError(f"{place} is not a model's lineage: {first_fault(error)}; restore it, or take it out") from error


def digest_folder(folder: Path) -> str:
    """SHA-256 of the listing of a folder's files, hidden ones left out: what `sha256sum FILES | sha256sum` prints there."""
    digests: dict[str, str] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            with path.open("rb") as file:
                digests[name.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digest_listing(digests)


def digest_listing(digests: Mapping[str, str]) -> str:
    """SHA-256 of the lines of `sha256sum`, from the files' digests by name."""
    return hashlib.sha256("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()).hexdigest()


@cache
def running_code() -> Code:
    """The code of this process."""
    digests = {
        f"{package}/{name}": hashlib.sha256(content).hexdigest() for package in PACKAGES for name, content in _sources(files(package), "")
    }
    return Code(version=version(DISTRIBUTION), sha256=digest_listing(digests))


def _sources(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _sources(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py"):
            yield f"{prefix}{entry.name}", entry.read_bytes()
