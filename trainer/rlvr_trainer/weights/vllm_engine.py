"""vLLM's interface for weight transports, in each worker of an engine: its weight routes, handed to a `WeightFollower`.

    /init_weight_transfer_engine  an invitation
    /start_weight_update          nothing but vLLM's own bookkeeping: the weights in use are touched by the swap alone
    /update_weights               a swap order
    /finish_weight_update         the swap

Not covered: draft models of speculative decoding.
"""

from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from vllm.distributed.weight_transfer.base import WeightTransferEngine

from rlvr_trainer.weights import TRANSPORTS, backend_name, load_transport
from rlvr_trainer.weights.adapters import BaseWeights
from rlvr_trainer.weights.follower import WeightFollower
from rlvr_trainer.weights.installation import build_installation
from rlvr_trainer.weights.protocol import Invitation, Message, SwapOrder

Kind = TypeVar("Kind", bound=Message)


class StagedWeightTransferEngine(WeightTransferEngine):  # type: ignore[misc]  # vLLM is not typed
    """What vLLM makes once in each worker, after it has loaded the model."""

    supports_draft_weight_update = False
    init_info_cls = Invitation
    update_info_cls = SwapOrder

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module) -> None:
        super().__init__(config, vllm_config, device, model)
        member = next((member for member in TRANSPORTS if backend_name(member) == config.backend), config.backend)
        base = BaseWeights(Path(vllm_config.model_config.model), vllm_config.model_config.dtype)
        self._follower = WeightFollower(load_transport(member), build_installation(model, vllm_config, device), device, base)

    def parse_init_info(self, init_dict: dict[str, Any]) -> Invitation:
        """Raises ValueError when the message is not an `Invitation`."""
        return _parse(Invitation, init_dict)

    def parse_update_info(self, update_dict: dict[str, Any]) -> SwapOrder:
        """Raises ValueError when the message is not a `SwapOrder`."""
        return _parse(SwapOrder, update_dict)

    def init_transfer_engine(self, init_info: Invitation) -> None:
        """Join a group. Raises ValueError when the invitation is refused."""
        parallel = self.parallel_config
        self._follower.accept(init_info, parallel.data_parallel_index * parallel.world_size + parallel.rank)

    def start_weight_update(self) -> None:
        """Nothing."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take a swap order; nothing is queued on the device, so there is nothing to synchronize."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SwapOrder) -> None:
        """Take a swap order. Raises ValueError when it is refused."""
        self._follower.order(update_info)

    def finish_weight_update(self) -> None:
        """Swap. Raises ValueError when no order was taken."""
        self._follower.swap()

    def shutdown(self) -> None:
        """Leave the group."""
        self._follower.close()


def _parse(kind: type[Kind], message: dict[str, Any]) -> Kind:
    try:
        return kind.model_validate(message)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'message'}: {item['msg']}" for item in error.errors()[:5])
        raise ValueError(f"not a valid {kind.__name__}: {problems}") from error
