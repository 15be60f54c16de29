"""Which elements of a bucket changed, as bytes: what an optimizer step leaves of bf16 weights is mostly what was there.

encode_delta(before, after) -> gaps and values -> apply_delta(bucket, blob) -> `after`, bit by bit

Elements are compared as integers, so that NaN payloads and signed zeros travel too. A blob is the number of elements (8 bytes, little
endian), the gap of each from the one before it (uint16), and its new value. Every 65,535th element counts as changed: no gap is larger.
A changed element so costs 4 bytes beside the 2 of bfloat16, and 6 beside the 4 of float32: a delta of half, or two thirds, of the elements
is as large as the bucket. Not covered: entropy coding; what changes is close to noise.
"""

import torch
from torch import Tensor

COUNT_BYTES = 8
GAP_BYTES = 2
LARGEST_GAP = 2**16 - 1
_INTEGERS = {2: torch.int16, 4: torch.int32}


class DamagedDeltaError(ValueError):
    """A blob that is no delta of this bucket."""


def encode_delta(before: Tensor, after: Tensor, element_bytes: int) -> bytes | None:
    """What changed from `before` to `after`, both uint8 [n] on the CPU; None when the whole bucket is not larger.

    An empty blob says that nothing did.
    """
    old, new = _elements(before, element_bytes), _elements(after, element_bytes)
    changed = old != new
    if not changed.any():
        return b""
    changed[::LARGEST_GAP] = True
    places = changed.nonzero()[:, 0]
    if COUNT_BYTES + len(places) * (GAP_BYTES + element_bytes) >= after.numel():
        return None
    # torch computes little with uint16: its bytes are those of the same number in int16.
    gaps = torch.diff(places, prepend=places.new_zeros(1)).to(torch.int32).to(torch.int16)
    count = torch.tensor([len(places)], dtype=torch.int64)
    return b"".join(_bytes_of(part) for part in (count, gaps, new[places]))


def apply_delta(bucket: Tensor, blob: bytes | bytearray, element_bytes: int) -> None:
    """Write what changed into `bucket`, uint8 [n] on the CPU.

    Raises:
        DamagedDeltaError: `blob` is not of the form, or of a larger bucket. The bucket is as it was.
    """
    if not blob:
        return
    if len(blob) < COUNT_BYTES:
        raise DamagedDeltaError(f"a delta has {len(blob)} bytes, less than its header")
    raw = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
    count = int(raw[:COUNT_BYTES].view(torch.int64))
    values_at = COUNT_BYTES + count * GAP_BYTES
    if count < 1 or len(blob) != values_at + count * element_bytes:
        raise DamagedDeltaError(f"a delta of {len(blob)} bytes says that it has {count} elements")
    gaps = raw[COUNT_BYTES:values_at].clone().view(torch.int16).to(torch.int64) & LARGEST_GAP
    places = torch.cumsum(gaps, 0)
    elements = _elements(bucket, element_bytes)
    if int(places[-1]) >= len(elements) or not bool((gaps[1:] > 0).all()):
        raise DamagedDeltaError(f"a delta has elements up to {int(places[-1])}, in a bucket of {len(elements)}")
    elements[places] = raw[values_at:].clone().view(_INTEGERS[element_bytes])


def _elements(buffer: Tensor, element_bytes: int) -> Tensor:
    return buffer.view(_INTEGERS[element_bytes])


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
