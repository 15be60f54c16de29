"""Final weights as a Hugging Face folder in the store, which transformers and vLLM load after a download.

    weights, cast tensor by tensor -> safetensors files -> <stage>/model/<attempt>/ -> <stage>/model/MANIFEST.json

Configuration, tokenizer and chat template are those of the model's folder; only the dtype in `config.json` is made true. Nothing is
written to disk, and one tensor is cast at a time.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from rlvr_trainer.storage.attempts import AttemptClaim
from rlvr_trainer.storage.client import ObjectStore
from rlvr_trainer.storage.documents import StoredBlob
from rlvr_trainer.storage.errors import AlreadyExistsError, ObjectMissingError
from rlvr_trainer.storage.folders import ModelManifest, parse_model_manifest
from rlvr_trainer.storage.layout import StageKeys, model_folder
from rlvr_trainer.storage.lineage import LINEAGE_FILE, Lineage
from rlvr_trainer.storage.tensor_files import ShardPlan, plan_shards, tensor_bytes
from rlvr_trainer.streamed import outline

FILE_BYTES = 5_000_000_000
"""Largest weights file, as in the libraries of Hugging Face."""
COPIED_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken"})
"""Configuration and tokenizer. Weights of other formats would contradict the new ones, and code is not ours to spread."""
CHAT_TEMPLATE = "chat_template.jinja"


def read_model_manifest(store: ObjectStore, stage: StageKeys) -> ModelManifest | None:
    """What a stage has exported; None when it has not."""
    try:
        return parse_model_manifest(store.get(stage.model_manifest), store.uri(stage.model_manifest))
    except ObjectMissingError:
        return None


def export_model(
    store: ObjectStore,
    stage: StageKeys,
    claim: AttemptClaim,
    tensors: Mapping[str, Tensor],
    source: Path,
    dtype: torch.dtype,
    step: int,
    weight_version: int,
    lineage: Lineage | None = None,
    chat_template: str | None = None,
) -> ModelManifest:
    """Write final weights, once for a stage; gives what is there when an earlier attempt has done it.

    Args:
        store: the job's folder.
        stage: the stage.
        claim: the attempt's right to write.
        tensors: weights by the names of the model's state dict, each storage once: a tied `lm_head.weight` is left out.
        source: Hugging Face folder with configuration and tokenizer.
        dtype: of the exported floating-point weights.
        step: optimizer steps of the stage.
        weight_version: version of these weights among the engines.
        lineage: what they come from; also a file of the folder.
        chat_template: takes the place of the one in `source`.

    Raises:
        SupersededError: a newer attempt has claimed.
        StorageError: the store failed.
        ValueError: `source` has no readable `config.json`.
    """
    present = read_model_manifest(store, stage)
    if present is not None:
        return present
    claim.check()
    place, folder = store.below(stage.model), model_folder(claim.attempt)
    small = {name: content for name, content in _small_files(source, dtype).items() if name != LINEAGE_FILE}  # that of the base
    if chat_template is not None:  # this file wins over what a tokenizer's configuration says
        small[CHAT_TEMPLATE] = chat_template.encode()
    if lineage is not None:
        small[LINEAGE_FILE] = lineage.to_bytes()
    files = [place.put(f"{folder}/{name}", content) for name, content in small.items()]
    files += _upload_weights(place, folder, tensors, dtype)
    manifest = ModelManifest(
        stage=stage.name,
        step=step,
        attempt=claim.attempt,
        weight_version=weight_version,
        dtype=_dtype_name(dtype),
        time=datetime.now(UTC),
        lineage=lineage,
        folder=folder,
        files=tuple(files),
    )
    claim.check()
    try:
        store.put_if_absent(stage.model_manifest, manifest.to_bytes())
    except AlreadyExistsError as error:
        place.delete(blob.key for blob in files)
        return parse_model_manifest(error.content, store.uri(stage.model_manifest))
    return manifest


def _small_files(source: Path, dtype: torch.dtype) -> dict[str, bytes]:
    found = {
        path.name: path.read_bytes()
        for path in sorted(source.iterdir())
        if path.is_file() and path.suffix in COPIED_SUFFIXES and not path.name.startswith(".") and not path.name.endswith(".index.json")
    }
    try:
        config = json.loads(found["config.json"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{source} has no readable config.json ({error}), so its weights cannot be exported; give a Hugging Face folder"
        ) from error
    config.pop("torch_dtype", None)  # the old name of the same field
    config["dtype"] = _dtype_name(dtype)
    found["config.json"] = json.dumps(config, indent=2, sort_keys=True).encode()
    return found


def _upload_weights(place: ObjectStore, folder: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[StoredBlob]:
    cast = {name: tensor.to("meta", dtype if tensor.is_floating_point() else tensor.dtype) for name, tensor in outline(tensors).items()}
    plans = plan_shards(cast, FILE_BYTES, {"format": "pt"})
    names = (
        ["model.safetensors"] if len(plans) == 1 else [f"model-{n:05d}-of-{len(plans):05d}.safetensors" for n in range(1, len(plans) + 1)]
    )
    for name, plan in zip(names, plans, strict=True):
        yield place.upload(f"{folder}/{name}", _chunks(plan, tensors))
    if len(plans) > 1:
        index = {
            "metadata": {"total_size": sum(plan.data_bytes for plan in plans)},
            "weight_map": {item.name: name for name, plan in zip(names, plans, strict=True) for item in plan.places},
        }
        yield place.put(f"{folder}/{SAFE_WEIGHTS_INDEX_NAME}", json.dumps(index, indent=2).encode())


def _chunks(plan: ShardPlan, tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    yield memoryview(plan.header)
    for item in plan.places:
        yield tensor_bytes(tensors[item.name].detach().to("cpu", item.dtype))


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
