"""Updates of a model with adapters: they alone travel, and each engine adds them to the weights that it was started with.

    learner: A and B of each layer -> any transport
    engine:  all of them -> W0 + s·B·A for layers that have one, W0 for all else, one tensor after the other -> the installation

W0 is read again for each update from the safetensors files of the model's folder, through the page cache, so it takes no memory of the
engine's own. Sum and cast are those of the learner (`rlvr_trainer.lora`): float32, then the engine's dtype; the probe compares what comes
of it. Not covered: folders whose files name or shape layers otherwise than the model does; `fits` finds them, and whole weights travel.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from rlvr_trainer.lora import A, B

WEIGHT = ".weight"
Pairs = Sequence[tuple[str, torch.Tensor]]


class BaseWeights:
    """The weights that an engine was started with.

    Args:
        folder: of the model, with its safetensors.
        dtype: of the engine.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._folder, self._dtype = folder, dtype

    def add(self, buckets: Iterable[Pairs], scale: float) -> Iterator[Pairs]:
        """All weights of the model, one at a time, in memory of their own, on the adapters' device.

        Args:
            buckets: A [rank, in] and B [out, rank] of each adapted layer, float32.
            scale: s.

        Raises:
            ValueError: the folder cannot be read, or lacks a layer that has an adapter.
        """
        adapters = {name: tensor for bucket in buckets for name, tensor in bucket}
        layers = {name.removesuffix(f".{A}") for name in adapters if name.endswith(f".{A}")}
        device = next(iter(adapters.values())).device
        try:
            for file in safetensors_files(self._folder):
                with safe_open(file, "pt") as stored:
                    for name in stored.keys():  # noqa: SIM118 - it is no mapping
                        weight, layer = stored.get_tensor(name).to(device), name.removesuffix(WEIGHT)
                        if layer in layers:
                            layers.remove(layer)
                            a, b = adapters[f"{layer}.{A}"], adapters[f"{layer}.{B}"]
                            yield [(name, torch.addmm(weight.float(), b, a, alpha=scale).to(self._dtype))]
                        else:
                            yield [(name, weight.to(self._dtype, copy=True))]  # else it could be the file itself
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(f"the weights that adapters are added to cannot be read from {self._folder}: {error}") from error
        if layers:
            raise ValueError(f"{self._folder} has no {min(layers)}{WEIGHT}, which an adapter is to be added to")


def fits(folder: Path, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether the folder's files hold floating-point weights of these names and shapes, so that `BaseWeights.add` finds each."""
    found: dict[str, list[int]] = {}
    try:
        for file in safetensors_files(folder):
            with safe_open(file, "pt") as stored:
                parts = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118
                found |= {name: part.get_shape() for name, part in parts.items() if part.get_dtype() in ("F32", "F16", "BF16")}
    except (OSError, ValueError, SafetensorError):
        return False
    return all(found.get(name) == list(shape) for name, shape in shapes.items())


def safetensors_files(folder: Path) -> list[Path]:
    """The files that make up a model's weights: those that its index names, or all. Raises OSError or ValueError: it has none."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        names = json.loads(index.read_bytes())["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"there is no {folder / 'model.safetensors'}")
    return files
