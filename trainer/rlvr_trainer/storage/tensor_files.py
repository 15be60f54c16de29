"""Tensors as safetensors files, laid out before a byte is copied, so that they can be staged in memory and streamed without a disk.

    tensors -> plan_shards() -> [ShardPlan: header, place of each tensor] -> bytes in the order of the file
    file    -> parse_tensors() -> tensors that share the file's memory

The format is that of safetensors 0.x: 8 bytes little-endian length, a JSON header, then the data without holes. The library's own
`serialize` would copy everything once more. Within a shard, tensors are sorted by element size, so that each lies aligned.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in NAMES.items()}
_ALIGNMENT = 8
_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor lies in the data of its shard."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte."""
    end: int
    """Byte after its last."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One safetensors file to be."""

    header: bytes
    """Length and JSON, padded to 8 bytes."""
    places: tuple[TensorPlace, ...]
    """Tensors in the order of their data."""

    @property
    def data_bytes(self) -> int:
        """Bytes after the header."""
        return self.places[-1].end if self.places else 0


def plan_shards(tensors: Mapping[str, Tensor], shard_bytes: int, metadata: Mapping[str, str] | None = None) -> tuple[ShardPlan, ...]:
    """Files of at most `shard_bytes` of data each; a larger tensor gets a file of its own. Equal names, shapes and dtypes give equal plans.

    Args:
        tensors: any device; strides do not matter.
        shard_bytes: bytes.
        metadata: texts for each file's header.

    Raises:
        ValueError: a dtype that safetensors has no name for.
    """
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise ValueError(f"tensor '{name}' is {tensor.dtype}, which safetensors cannot hold; convert it, for example to float32")
        if filled and filled + tensor.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    return tuple(_plan(shard, metadata or {}) for shard in shards if shard)


def stage(plan: ShardPlan, tensors: Mapping[str, Tensor], buffer: Tensor) -> None:
    """Copy the tensors of a shard to their places.

    Args:
        plan: the shard.
        tensors: at least those of the plan; from CUDA the copies are asynchronous, and the caller synchronizes.
        buffer: uint8 on the CPU, `[plan.data_bytes]`.
    """
    for place in plan.places:
        target = buffer[place.start : place.end].view(place.dtype).view(place.shape)
        target.copy_(tensors[place.name].detach(), non_blocking=True)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, without a copy; the view keeps it alive."""
    if not tensor.numel():
        return memoryview(b"")
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def parse_tensors(file: bytearray, place: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; they share the memory of `file`.

    Raises:
        ValueError: not a safetensors file; the message names `place`.
    """
    header_bytes = int.from_bytes(file[:8], "little")
    if len(file) < 8 or header_bytes > min(_MAX_HEADER_BYTES, len(file) - 8):
        raise ValueError(f"{place} is not a safetensors file: its header does not fit into its {len(file)} bytes")
    try:
        header = json.loads(file[8 : 8 + header_bytes])
        header.pop("__metadata__", None)
        places = [
            TensorPlace(name, _DTYPES[entry["dtype"]], tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"]))
            for name, entry in header.items()
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{place} is not a safetensors file: its header cannot be read ({type(error).__name__}: {error})") from error
    start = 8 + header_bytes
    return {item.name: _view(file, start, item, place) for item in places}


def _view(file: bytearray, start: int, item: TensorPlace, place: str) -> Tensor:
    elements = math.prod(item.shape)
    if item.end - item.start != elements * item.dtype.itemsize or item.start < 0 or start + item.end > len(file):
        raise ValueError(f"{place}: tensor '{item.name}' {item.shape} does not fit into bytes {item.start} to {item.end} of the file")
    if not elements:
        return torch.empty(item.shape, dtype=item.dtype)
    return torch.frombuffer(file, dtype=item.dtype, count=elements, offset=start + item.start).view(item.shape)


def _plan(shard: Mapping[str, Tensor], metadata: Mapping[str, str]) -> ShardPlan:
    places: list[TensorPlace] = []
    end = 0
    for name, tensor in sorted(shard.items(), key=lambda item: -item[1].dtype.itemsize):
        start, end = end, end + tensor.nbytes
        places.append(TensorPlace(name, tensor.dtype, tuple(tensor.shape), start, end))
    return ShardPlan(_header(places, metadata), tuple(places))


def _header(places: Sequence[TensorPlace], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for place in places:
        entries[place.name] = {"dtype": NAMES[place.dtype], "shape": place.shape, "data_offsets": (place.start, place.end)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
