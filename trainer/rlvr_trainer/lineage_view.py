"""`rlvr lineage`: finds the manifest of a model or checkpoint, and prints what its weights come from.

URI | RUN | folder -> the newest MANIFEST.json below it, or the lineage file of a model's folder -> lines for people, or JSON
"""

import json
from collections.abc import Iterator
from pathlib import Path

from rlvr_api.cli import UserError
from rlvr_trainer.report.source import open_run
from rlvr_trainer.storage.client import ObjectStore, S3Settings
from rlvr_trainer.storage.errors import ObjectMissingError, StorageError
from rlvr_trainer.storage.folders import parse_model_manifest
from rlvr_trainer.storage.layout import MANIFEST
from rlvr_trainer.storage.lineage import LINEAGE_FILE, Contamination, Lineage, StageLineage, parse_lineage
from rlvr_trainer.storage.manifest import parse_manifest

FILE_SCHEME, S3_SCHEME = "file://", "s3://"


def read_lineage(place: str, runs_dir: Path, endpoint: str | None, region: str) -> tuple[str, Lineage]:
    """The lineage of what `place` names, and where it was found.

    Args:
        place: `s3://...` of a job, stage, checkpoint or model; a model's folder; or the name of a local run.

    Raises:
        UserError: there is none; the message says what was looked for.
    """
    folder = Path(place.removeprefix(FILE_SCHEME))
    if (folder / LINEAGE_FILE).is_file() or place.startswith(FILE_SCHEME):
        return str(folder), _of_folder(folder)
    try:
        if place.startswith(S3_SCHEME):
            return find_lineage(ObjectStore.open(place, S3Settings(endpoint, region, outage_seconds=0.0)))
        with open_run(place, runs_dir, endpoint) as source:
            return find_lineage(source.store)
    except (StorageError, ValueError) as error:
        raise UserError(str(error)) from error


def find_lineage(store: ObjectStore) -> tuple[str, Lineage]:
    """The lineage of a manifest right there, else of the newest model, else of the newest checkpoint below.

    Raises:
        UserError: there is none.
        StorageError: the store failed, or a manifest is corrupt.
    """
    for key in (MANIFEST, LINEAGE_FILE):
        found = _read(store, key)
        if found is not None:
            return store.uri(key), found
    keys = [key for key in store.list() if key.endswith(f"/{MANIFEST}")]
    for kind in ("model", "checkpoints"):
        # Keys sort by stage, then by step: the last one is the newest.
        for key in reversed([key for key in keys if kind in key.split("/")[:-1] or _is_below(store, kind)]):
            found = _read(store, key)
            if found is not None:
                return store.uri(key), found
    raise UserError(
        f"{store.uri()} holds no {MANIFEST} of a model or checkpoint: name a job's, stage's, checkpoint's or model's folder in the store, "
        f"with --endpoint where it is not AWS; a model's local folder with {LINEAGE_FILE}; or a local run"
    )


def describe(place: str, lineage: Lineage) -> Iterator[str]:
    """Lines for people."""
    yield f"weights          {place}"
    yield from lineage_lines(lineage)


def lineage_lines(lineage: Lineage) -> Iterator[str]:
    """Lines for people, without the place."""
    external = lineage.external_stages
    yield f"external traces  {', '.join(external) if external else 'none'}"
    for number, one in enumerate(lineage.generations):
        yield f"{'trained by' if number == 0 else 'which was trained by'} {one.job}"
        yield f"  base {one.base.uri}"
        yield f"    sha256 {one.base.sha256}"
        for stage in one.stages:
            yield from _describe_stage(stage)


def _describe_stage(stage: StageLineage) -> Iterator[str]:
    yield f"  stage {stage.name}: {stage.kind}, {stage.steps} steps"
    for dataset in stage.datasets:
        yield f"    data {dataset.uri}: {dataset.examples} examples, {dataset.made_by}"
        yield f"      sha256 {dataset.sha256}"
        if dataset.contamination is not None:
            yield from _describe_contamination(dataset.contamination)
    for verifier in stage.verifiers:
        yield f"    verifier of {verifier.environment}: {verifier.kind} {verifier.version}"
    for code in stage.code:
        yield f"    code {code.version}, sha256 {code.sha256}"


def _describe_contamination(found: Contamination) -> Iterator[str]:
    if not found.examples:
        yield f"      contamination: none of {found.references} held-out prompts and known traces was found"
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.found.items()))
    yield f"      contamination: {found.examples} examples ({kinds}) hold one of {found.references} held-out prompts and known traces"
    for line in found.shown:
        yield f"        {line}"


def _is_below(store: ObjectStore, kind: str) -> bool:
    return kind in store.uri().rstrip("/").split("/")


def _read(store: ObjectStore, key: str) -> Lineage | None:
    try:
        content = store.get(key)
    except ObjectMissingError:
        return None
    place = store.uri(key)
    if key.endswith(LINEAGE_FILE):
        return parse_lineage(content, place)
    return (parse_manifest if "tensors" in _fields(content) else parse_model_manifest)(content, place).lineage


def _fields(content: bytes) -> frozenset[str]:
    try:
        value = json.loads(content)
    except ValueError:
        return frozenset()
    return frozenset(value) if isinstance(value, dict) else frozenset()


def _of_folder(folder: Path) -> Lineage:
    file = folder / LINEAGE_FILE
    try:
        return parse_lineage(file.read_bytes(), str(file))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): only folders of models that were trained here have one") from None
    except StorageError as error:
        raise UserError(str(error)) from error
