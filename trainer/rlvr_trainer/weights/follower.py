"""A worker that follows a learner: which messages it obeys, and what it does about them. vLLM's routes end here (`vllm_engine`).

    invitation       refuse what is old, else leave the old group and join the new one, in the background
    (no message)     the transport's thread receives a version and stages it while generation goes on
    swap order       is exactly that update staged, by the group of this epoch?
    swap             make it live; what the swap left undone is done in the background, and reported

All calls return at once: they come from the engine's loop, where waiting would stop generation. A worker whose learner dies keeps its
weights, stays reachable and follows the next attempt.
"""

import logging
import threading
from collections.abc import Generator, Iterable, Sequence

import torch

from rlvr_trainer.weights.adapters import BaseWeights
from rlvr_trainer.weights.installation import Installation
from rlvr_trainer.weights.protocol import Invitation, SwapOrder, UpdateHeader, check_newer
from rlvr_trainer.weights.transport import Receiver, Transport

log = logging.getLogger("rlvr.weights")

SETTLE_SECONDS = 600.0
"""Bound of the work after a swap; it is computation alone."""


class SupersededError(RuntimeError):
    """A newer invitation has arrived; what the older group still delivers is of no use."""


class WeightFollower:
    """Transport on one side, installation on the other. All methods but the threads' own are called by one thread."""

    def __init__(self, transport: Transport, installation: Installation, device: torch.device, base: BaseWeights | None = None) -> None:
        """`base`: what adapters are added to."""
        self._transport = transport
        self._base = base
        self._installation = installation
        self._device = device
        self._receiver: Receiver | None = None
        self._seen = (-1, 0)
        self._ordered: UpdateHeader | None = None
        # Held while tensors are staged, so that a group that was left cannot write among those of its successor.
        self._turn = threading.Lock()
        self._settled = threading.Event()
        self._settled.set()

    def accept(self, invitation: Invitation, worker: int) -> None:
        """Join the group of an invitation; `worker` is this worker's number in its engine, from 0.

        Raises:
            ValueError: the invitation is not newer than the last one, or this worker cannot take part.
        """
        check_newer(invitation, self._seen)
        scale = invitation.layout.adapter_scale
        if scale is not None and self._base is None:
            raise ValueError("the learner sends adapters, and this engine has nothing to add them to")
        receiver = self._transport.make_receiver(
            invitation, invitation.rank_offset + worker, self._device, lambda buckets: self._stage(receiver, buckets, scale), self._receiver
        )
        with self._turn:
            previous, self._receiver = self._receiver, receiver
            self._seen, self._ordered = invitation.order, None
        if previous is not None:
            previous.close()
        receiver.start()

    def order(self, order: SwapOrder) -> None:
        """Take the order to swap.

        Raises:
            ValueError: it comes from an older attempt or epoch, its update is not staged, or it says `discard`.
        """
        self._ordered = None
        here = f"this engine follows attempt {self._seen[0]}, epoch {self._seen[1]}"
        if (order.attempt, order.epoch) < self._seen:
            raise ValueError(f"an order of attempt {order.attempt}, epoch {order.epoch} is refused: {here}")
        if order.discard:
            raise ValueError("the open update is discarded, as asked; the weights in use are as they were")
        staged = self._receiver.staged_header() if self._receiver is not None else None
        wanted = UpdateHeader(sequence=order.sequence, version=order.version)
        if (order.attempt, order.epoch) != self._seen or staged != wanted:
            raise ValueError(
                f"version {wanted.version} (update {wanted.sequence} of attempt {order.attempt}, epoch {order.epoch}) is not staged: "
                f"{here}, and has staged {staged or 'nothing'}; broadcast it first"
            )
        self._ordered = staged

    def swap(self) -> None:
        """Make the ordered weights live. The engine must be paused.

        Raises:
            ValueError: no order was accepted. The weights in use are as they were.
        """
        header, self._ordered = self._ordered, None
        if header is None or self._receiver is None:
            raise ValueError("there is no accepted swap order: send one to /update_weights first")
        with self._turn, torch.no_grad():
            # Since the order, the learner may have given up on this engine and begun the next broadcast.
            if not self._receiver.swap_staged(header, self._installation.swap):
                raise ValueError(f"version {header.version} is not staged any more: a later broadcast has begun")
            self._settled.clear()
        threading.Thread(target=self._settle, args=(self._receiver, header), name=f"weights-settle-{header.version}", daemon=True).start()

    def close(self) -> None:
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

    def _stage(self, receiver: Receiver, buckets: Iterable[Sequence[tuple[str, torch.Tensor]]], scale: float | None) -> bool:
        whole = buckets if scale is None or self._base is None else self._base.add(buckets, scale)
        arriving = self._in_turn(receiver, whole)
        try:
            return self._installation.stage(arriving) and whole is buckets
        finally:
            arriving.close()

    def _in_turn(
        self, receiver: Receiver, buckets: Iterable[Sequence[tuple[str, torch.Tensor]]]
    ) -> Generator[Sequence[tuple[str, torch.Tensor]], None, None]:
        for bucket in buckets:
            with self._turn:
                if receiver is not self._receiver:
                    raise SupersededError("a newer invitation has arrived")
                if not self._settled.wait(SETTLE_SECONDS):
                    raise TimeoutError(f"the work after the last swap is not done after {SETTLE_SECONDS:g} s")
                yield bucket
