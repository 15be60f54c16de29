"""Which tensors of the checkpoint make up which parameter of the engine's model, one behind the other, found by watching it load once.

    watch_load   load as vLLM does, and note each copy of a whole tensor into a parameter
                 -> a parameter that is nothing but such tensors, end to end, bit for bit, is placed: {"qkv.weight": ("q", "k", "v")}
    join         the parameter as a view of the memory in which its tensors arrived, or of a copy when they are not neighbours there

So the weights that come next need no copy. What is padded, sharded, cast or computed is not placed. Not covered: parameters that are
not row-major.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Places = Mapping[str, tuple[str, ...]]
"""Names of parameters to names of the tensors that they consist of, in order."""
Pairs = Iterable[tuple[str, torch.Tensor]]


def watch_load(model: torch.nn.Module, load: Callable[[Pairs], Any], pairs: Pairs) -> tuple[Any, Places]:
    """Call `load` with the named tensors; returns its result and what it placed. The tensors must stay as they are meanwhile."""
    arrived: dict[str, torch.Tensor] = {}

    def noting() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in pairs:
            arrived[name] = tensor
            yield name, tensor

    with _CopyRecorder() as recorder:
        result = load(noting())
    names = {tensor.data_ptr(): name for name, tensor in arrived.items() if tensor.numel()}
    places = {}
    for parameter_name, parameter in model.named_parameters():
        parts = _parts_of(parameter, recorder.copies, names)
        if parts and _is_same(parameter, [arrived[part] for part in parts]):
            places[parameter_name] = parts
    return result, places


def join(parts: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """The row-major tensors one behind the other, as `shape`: a view where they are neighbours in one storage, a copy otherwise."""
    first = parts[0]
    adjacent = all(
        one.data_ptr() + one.nbytes == other.data_ptr() and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        for one, other in pairwise(parts)
    )
    if not adjacent:
        return torch.cat([part.reshape(-1) for part in parts]).view(*shape)
    size = sum(part.numel() for part in parts)
    return first.as_strided((size,), (1,), first.storage_offset()).view(*shape)


class _CopyRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type its modes
    """Notes (address, bytes, address of the source) of each plain copy that this thread makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            target, source = args[0], args[1]
            plain = target.is_contiguous() and source.is_contiguous() and target.dtype == source.dtype
            if plain and target.numel() == source.numel():
                self.copies.append((target.data_ptr(), target.nbytes, source.data_ptr()))
        return func(*args, **(kwargs or {}))


def _parts_of(parameter: torch.Tensor, copies: Sequence[tuple[int, int, int]], names: Mapping[int, str]) -> tuple[str, ...]:
    """Tensors that were copied to the parameter's memory from its start to its end; empty when there is a gap or an overlap."""
    start, end = parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes
    parts = []
    if parameter.is_contiguous():
        for target, size, source in sorted(copy for copy in copies if start <= copy[0] < end):
            if target != start or source not in names:
                return ()
            parts.append(names[source])
            start += size
    return tuple(parts) if start == end else ()


def _is_same(parameter: torch.Tensor, parts: Sequence[torch.Tensor]) -> bool:
    """Whether nothing was done to the parameter but the copies."""
    if sum(part.numel() for part in parts) != parameter.numel():
        return False
    pieces = torch.split(parameter.detach().view(-1), [part.numel() for part in parts])
    return all(torch.equal(piece.view(torch.uint8), part.reshape(-1).view(torch.uint8)) for piece, part in zip(pieces, parts, strict=True))
