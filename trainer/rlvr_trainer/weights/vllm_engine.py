"""A worker of vLLM as a receiver of weights: what vLLM's weight routes do in it.

    /init_weight_transfer_engine  an invitation: refuse what is old, else join the new group, in the background
    (no route)                    the transport's thread receives a version and stages it while generation goes on
    /start_weight_update          nothing but vLLM's own bookkeeping
    /update_weights               a swap order: is exactly that update staged?
    /finish_weight_update         make it live; what the swap left undone is done in the background

All routes return at once: they run in the engine's loop, where waiting would stop generation. The learner pauses the engine round the
last three. A worker whose learner dies keeps its weights, stays reachable and follows the next attempt. Not covered: draft models.
"""

import logging
import threading
from collections.abc import Generator, Iterable, Sequence
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from vllm.distributed.weight_transfer.base import WeightTransferEngine

from rlvr_trainer.weights import TRANSPORTS, backend_name, load_transport
from rlvr_trainer.weights.installation import build_installation
from rlvr_trainer.weights.protocol import Invitation, Message, SwapOrder, UpdateHeader, check_newer
from rlvr_trainer.weights.transport import Receiver

log = logging.getLogger("rlvr.weights")

SETTLE_SECONDS = 600.0
"""Bound of the work after a swap; it is computation alone."""

Kind = TypeVar("Kind", bound=Message)


class SupersededError(RuntimeError):
    """A newer invitation has arrived; what the older group still delivers is of no use."""


class StagedWeightTransferEngine(WeightTransferEngine):  # type: ignore[misc]  # vLLM is not typed
    """vLLM's interface on one side, a transport and an installation on the other."""

    supports_draft_weight_update = False
    init_info_cls = Invitation
    update_info_cls = SwapOrder

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module) -> None:
        super().__init__(config, vllm_config, device, model)
        member = next((member for member in TRANSPORTS if backend_name(member) == config.backend), config.backend)
        self._transport = load_transport(member)
        self._installation = build_installation(model, vllm_config, device)
        self._receiver: Receiver | None = None
        self._seen = (-1, 0)
        self._ordered: UpdateHeader | None = None
        self._turn = threading.Lock()
        """Held while tensors are staged, so that a group that was left cannot write among those of its successor."""
        self._settled = threading.Event()
        self._settled.set()

    def parse_init_info(self, init_dict: dict[str, Any]) -> Invitation:
        """Raises ValueError when the message is not an `Invitation`."""
        return _parse(Invitation, init_dict)

    def parse_update_info(self, update_dict: dict[str, Any]) -> SwapOrder:
        """Raises ValueError when the message is not a `SwapOrder`."""
        return _parse(SwapOrder, update_dict)

    def init_transfer_engine(self, init_info: Invitation) -> None:
        """Leave the old group and join the new one, in the background.

        Raises:
            ValueError: the invitation is not newer than the last one, or this worker cannot take part.
        """
        check_newer(init_info, self._seen)
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        receiver = self._transport.make_receiver(
            init_info, rank, self.device, lambda buckets: self._stage(receiver, buckets), self._receiver
        )
        with self._turn:
            previous, self._receiver = self._receiver, receiver
            self._seen, self._ordered = init_info.order, None
        if previous is not None:
            previous.close()
        receiver.start()

    def start_weight_update(self) -> None:
        """Nothing: the weights in use are touched by the swap alone."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take a swap order; nothing is queued on the device, so there is nothing to synchronize."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SwapOrder) -> None:
        """Check that the update of the order is staged here.

        Raises:
            ValueError: it comes from an older attempt or epoch, is not staged, or says `discard`.
        """
        self._ordered = None
        here = f"this engine follows attempt {self._seen[0]}, epoch {self._seen[1]}"
        if (update_info.attempt, update_info.epoch) < self._seen:
            raise ValueError(f"an order of attempt {update_info.attempt}, epoch {update_info.epoch} is refused: {here}")
        if update_info.discard:
            raise ValueError("the open update is discarded, as asked; the weights in use are as they were")
        staged = self._receiver.staged_header() if self._receiver is not None else None
        wanted = UpdateHeader(sequence=update_info.sequence, version=update_info.version)
        if (update_info.attempt, update_info.epoch) != self._seen or staged != wanted:
            raise ValueError(
                f"version {wanted.version} (update {wanted.sequence} of attempt {update_info.attempt}, epoch {update_info.epoch}) is not "
                f"staged: {here}, and has staged {staged or 'nothing'}; broadcast it first"
            )
        self._ordered = staged

    def finish_weight_update(self) -> None:
        """Make the ordered weights live; the engine must be paused.

        Raises:
            ValueError: no order was accepted. The weights in use are as they were.
        """
        header, self._ordered = self._ordered, None
        if header is None:
            raise ValueError("there is no accepted swap order: send one to /update_weights first")
        self._settled.clear()
        try:
            with torch.no_grad():
                self._installation.swap()
        except BaseException:
            self._settled.set()
            raise
        threading.Thread(target=self._settle, args=(self._receiver, header), name=f"weights-settle-{header.version}", daemon=True).start()

    def shutdown(self) -> None:
        """Leave the group."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.close()

    def _settle(self, receiver: Receiver, header: UpdateHeader) -> None:
        error = ""
        try:
            with torch.no_grad():
                self._installation.settle()
        except Exception as cause:  # the border of the thread: the learner is told, and quarantines this engine
            log.exception("cannot settle weights of version %d", header.version)
            error = f"{type(cause).__name__}: {cause}"
        finally:
            self._settled.set()
        receiver.report_settled(header, error)

    def _stage(self, receiver: Receiver, buckets: Iterable[Sequence[tuple[str, torch.Tensor]]]) -> None:
        if not self._settled.wait(SETTLE_SECONDS):
            raise TimeoutError(f"the work after the last swap is not done after {SETTLE_SECONDS:g} s")
        arriving = self._in_turn(receiver, buckets)
        try:
            self._installation.stage(arriving)
        finally:
            arriving.close()

    def _in_turn(
        self, receiver: Receiver, buckets: Iterable[Sequence[tuple[str, torch.Tensor]]]
    ) -> Generator[Sequence[tuple[str, torch.Tensor]], None, None]:
        for bucket in buckets:
            with self._turn:
                if receiver is not self._receiver:
                    raise SupersededError("a newer invitation has arrived")
                yield bucket


def _parse(kind: type[Kind], message: dict[str, Any]) -> Kind:
    try:
        return kind.model_validate(message)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'message'}: {item['msg']}" for item in error.errors()[:5])
        raise ValueError(f"not a valid {kind.__name__}: {problems}") from error
