"""Tensors that are whole only while somebody looks at them, for those who handle one after the other: uploads and broadcasts."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor


class StreamedTensors(Mapping[str, Tensor]):
    """A mapping whose values are made when they are asked for, each time anew, and not kept."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where they are made."""

    @abstractmethod
    def outline(self) -> dict[str, Tensor]:
        """Names, shapes and dtypes, as tensors without memory."""


def outline(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors to plan by: `tensors` itself, or its outline when it is streamed."""
    return tensors.outline() if isinstance(tensors, StreamedTensors) else tensors


def any_on_gpu(tensors: Mapping[str, Tensor]) -> bool:
    """Whether some of them are, or are made, on a GPU."""
    if isinstance(tensors, StreamedTensors):
        return tensors.device.type == "cuda"
    return any(tensor.is_cuda for tensor in tensors.values())


def device_of(tensors: Mapping[str, Tensor]) -> torch.device:
    """Where the first of them is. Raises StopIteration when there is none."""
    return tensors.device if isinstance(tensors, StreamedTensors) else next(iter(tensors.values())).device
