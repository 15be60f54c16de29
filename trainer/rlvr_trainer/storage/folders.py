"""Models in the object store as local folders: a folder is complete or absent, never half there.

    listing or MANIFEST.json -> files into a folder beside the place, verified -> rename

A folder with a `MANIFEST.json` of ours is read through it, digests and all. Any other folder is taken as it is listed.
"""

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import AwareDatetime, ValidationError

from rlvr_trainer.storage.client import ObjectStore, S3Settings
from rlvr_trainer.storage.documents import Count, StoredBlob, StoredDocument, first_fault
from rlvr_trainer.storage.errors import CorruptObjectError, ObjectMissingError, StorageError
from rlvr_trainer.storage.layout import MANIFEST
from rlvr_trainer.storage.lineage import Lineage

SOURCE = ".source.json"
"""File of a downloaded folder that says what it was made from."""


class ModelManifest(StoredDocument):
    """Names the files of final weights."""

    stage: str
    """Stage that trained them."""
    step: Count
    """Optimizer steps of the stage."""
    attempt: Count
    """Attempt that wrote them."""
    weight_version: Count
    """Version they have among the engines' weights."""
    dtype: str
    """Of the weights, for example `bfloat16`."""
    time: AwareDatetime
    """When they were written."""
    lineage: Lineage | None = None
    """What the weights come from."""
    folder: str
    """Folder of the files beside this manifest."""
    files: tuple[StoredBlob, ...]
    """All files; keys count from the folder of this manifest, so that it can be copied elsewhere."""


def parse_model_manifest(content: bytes, place: str) -> ModelManifest:
    """A manifest of final weights from its bytes.

    Raises:
        CorruptObjectError: it is not one.
    """
    try:
        return ModelManifest.model_validate_json(content)
    except ValidationError as error:
        raise CorruptObjectError(f"{place} is not a manifest of a model: {first_fault(error)}; restore or delete it") from error


def fetch_model(uri: str, folder: Path, settings: S3Settings) -> None:
    """Make `folder` a copy of the model at `uri`; does nothing when it is one already.

    Args:
        uri: `s3://bucket/prefix`: a Hugging Face folder, or the `model` folder of a stage.
        folder: replaced as a whole when it is a copy of something else.
        settings: where the store is.

    Raises:
        ObjectMissingError: there is no model at `uri`.
        StorageError: the store failed, or the disk is full; `folder` is as it was.
    """
    download_folder(ObjectStore.open(uri, settings), "", folder)
    if not (folder / "config.json").is_file():
        raise ObjectMissingError(f"{uri} holds no model: it has no config.json; give the folder that holds config.json and the weights")


def download_folder(store: ObjectStore, prefix: str, folder: Path) -> None:
    """Make `folder` a copy of the objects below `prefix`, or of what its `MANIFEST.json` names.

    Raises:
        ObjectMissingError: nothing is there.
        StorageError: the store failed, a file is corrupt, or the disk is full; `folder` is as it was.
    """
    store = store.below(prefix)
    files, blobs = _find_files(store)
    source = json.dumps({"uri": store.uri(), "files": files}, indent=1, sort_keys=True)
    if (folder / SOURCE).is_file() and (folder / SOURCE).read_text() == source:
        return
    needed = sum(blob.bytes for blob in blobs.values())
    try:
        with _building(folder, needed) as building:
            for name, blob in blobs.items():
                _download(store, blob, building / name)
            (building / SOURCE).write_text(source)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}:
            raise
        raise StorageError(
            f"cannot download {store.uri()} to {folder}: {error.strerror}; free space there or choose another folder"
        ) from error


def _find_files(store: ObjectStore) -> tuple[dict[str, str], dict[str, "StoredBlob | _Unverified"]]:
    """By the relative path of each file: a fingerprint, and where to get it."""
    try:
        manifest = parse_model_manifest(store.get(MANIFEST), store.uri(MANIFEST))
    except ObjectMissingError:
        return _list_files(store)
    blobs = {_relative(blob.key, f"{manifest.folder}/", store): blob for blob in manifest.files}
    return {name: blob.sha256 for name, blob in blobs.items()}, dict(blobs)


def _list_files(store: ObjectStore) -> tuple[dict[str, str], dict[str, "StoredBlob | _Unverified"]]:
    entries = {_relative(key, "", store): (key, entry) for key, entry in store.entries().items() if not key.endswith("/")}
    if not entries:
        raise ObjectMissingError(f"{store.uri()} is empty: there is nothing to download; check the address")
    return (
        {name: f"{entry.bytes} {entry.etag}" for name, (_, entry) in entries.items()},
        {name: _Unverified(key, entry.bytes) for name, (key, entry) in entries.items()},
    )


@dataclass(frozen=True, slots=True)
class _Unverified:
    """An object whose digest nobody recorded."""

    key: str
    bytes: int


def _relative(key: str, folder: str, store: ObjectStore) -> str:
    name = PurePosixPath(key.removeprefix(folder))
    if not key.startswith(folder) or name.is_absolute() or ".." in name.parts:
        raise CorruptObjectError(f"{store.uri(key)} does not lie in {store.uri(folder)}, so nothing was downloaded; rename or delete it")
    return str(name)


def _download(store: ObjectStore, blob: "StoredBlob | _Unverified", target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        if isinstance(blob, StoredBlob):
            store.download(blob, file)
        else:
            store.download_unverified(blob.key, blob.bytes, file)


@contextmanager
def _building(folder: Path, needed_bytes: int) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < needed_bytes:
        raise StorageError(
            f"cannot write {folder}: it needs {needed_bytes / 1e6:.0f} MB, and {free / 1e6:.0f} MB are left on its disk; free space there"
        )
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    building.chmod(0o755)
    try:
        yield building
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
