"""Flat buckets: many tensors in one broadcast, because a broadcast has a price of its own.

plan_layout: named tensors -> buckets of at most the wanted size, each storage once -> pack_bucket on the learner -> broadcast ->
unpack_bucket on a worker, as views without a copy. A tensor is never cut: one larger than a bucket has a bucket to itself.
"""

from collections.abc import Iterator, Mapping

import torch

from rlvr_trainer.streamed import StreamedTensors
from rlvr_trainer.weights.protocol import DTYPE_BYTES, Bucket, Layout, TensorSlot, WireDtype

ALIGNMENT_BYTES = 64
"""Every tensor starts on a cache line, which is also more than any kernel's alignment."""

TORCH_DTYPES: dict[WireDtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def plan_layout(tensors: Mapping[str, torch.Tensor], dtype: WireDtype, bucket_bytes: int, adapter_scale: float | None = None) -> Layout:
    """Buckets for `tensors` cast to `dtype`, in the mapping's order; adapters (`Layout.adapter_scale`) stay float32.

    A tensor that is the same memory as an earlier one (tied weights) is left out: the engine ties it as well.

    Raises:
        ValueError: nothing to send, or a tensor of whole numbers, which no cast to `dtype` keeps.
    """
    dtype = dtype if adapter_scale is None else "float32"
    buckets: list[Bucket] = []
    slots: list[TensorSlot] = []
    end = 0
    for name, tensor in _distinct(tensors):
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"tensor '{name}' is {tensor.dtype}, and weights travel as {dtype}: leave it out of the mapping")
        size = tensor.numel() * DTYPE_BYTES[dtype]
        if end and _aligned(end) + size > bucket_bytes:
            buckets.append(Bucket(size_bytes=end, slots=tuple(slots)))
            slots, end = [], 0
        slot = TensorSlot(name=name, shape=tuple(tensor.shape), dtype=dtype, offset_bytes=_aligned(end))
        slots.append(slot)
        end = slot.offset_bytes + size
    if not slots:
        raise ValueError("there are no tensors to publish: pass dict(model.named_parameters())")
    buckets.append(Bucket(size_bytes=end, slots=tuple(slots)))
    return Layout(buckets=tuple(buckets), adapter_scale=adapter_scale)


def pack_bucket(bucket: Bucket, tensors: Mapping[str, torch.Tensor], buffer: torch.Tensor) -> None:
    """Copy and cast a bucket's tensors into `buffer`, uint8 of at least `bucket.size_bytes`, on the tensors' device."""
    for slot, place in zip(bucket.slots, unpack_bucket(bucket, buffer), strict=True):
        place[1].copy_(tensors[slot.name].detach())


def bytes_as_they_are(bucket: Bucket, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The uint8 view that is the bucket already: it holds one tensor, contiguous and of the right dtype. None otherwise.

    None also for streamed tensors, which are to be asked for once, and nobody keeps.
    """
    if len(bucket.slots) != 1 or isinstance(tensors, StreamedTensors):
        return None
    tensor = tensors[bucket.slots[0].name].detach()
    if tensor.dtype != TORCH_DTYPES[bucket.slots[0].dtype] or not tensor.is_contiguous():
        return None
    return tensor.view(-1).view(torch.uint8)


def unpack_bucket(bucket: Bucket, buffer: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a bucket as views of `buffer`, uint8 of at least `bucket.size_bytes`."""
    for slot in bucket.slots:
        flat = buffer[slot.offset_bytes : slot.offset_bytes + slot.size_bytes]
        yield slot.name, flat.view(TORCH_DTYPES[slot.dtype]).view(slot.shape)


def fit_buffers(buffers: list[torch.Tensor], sizes: list[int], device: torch.device) -> list[torch.Tensor]:
    """`buffers` if they are uint8 of these sizes on `device`, and new ones otherwise."""
    if [buffer.numel() for buffer in buffers] == sizes and all(buffer.device == device for buffer in buffers):
        return buffers
    return [torch.empty(size, dtype=torch.uint8, device=device) for size in sizes]


def _distinct(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for name, tensor in tensors.items():
        identity = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and tensor.device.type != "meta" and identity in seen:  # what has no memory shares none
            continue
        seen.add(identity)
        yield name, tensor


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
