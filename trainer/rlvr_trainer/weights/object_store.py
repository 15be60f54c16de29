"""Weights through the object store as sparse deltas, both ends: engines fetch what they lack, each at its own pace.

    learner                                              worker
      writes the version (`chain_writer`)
      writes offer/N and update/N into the group's store -->  fetches, verifies, applies (`chain_reader`), stages, writes staged/N/RANK
      waits for staged/N/*; only then engines pause           (the engine swaps)

Everything else is as `store_group` says. A member that dies breaks nothing for the others. One that finds an object damaged or missing says
`cut` and marks the offer: the learner writes the same version as a base, and the next epoch gets that. Not covered: staging on a GPU; where
vLLM reloads layers while the engine is paused, the copy to the GPU is part of the pause.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from rlvr_api.weight_sync import ObjectStoreDeltas
from rlvr_trainer.weights.chain import Offer
from rlvr_trainer.weights.chain_reader import DamagedChainError, WeightCopy
from rlvr_trainer.weights.chain_writer import ChainWriter
from rlvr_trainer.weights.collectives import first_line
from rlvr_trainer.weights.protocol import Acknowledgement, Carrier, Invitation, Layout, UpdateHeader
from rlvr_trainer.weights.store_group import StoreReceiver, StoreRendezvous, StoreSender, update_key
from rlvr_trainer.weights.transport import FindDead, OpenStore, Stage

log = logging.getLogger("rlvr.weights")

POLL_SECONDS = 0.002
CLOCK_SECONDS = 300
"""Signed addresses are valid this much longer than they are used: clocks differ."""


def open_rendezvous(advertised_host: str, settings: ObjectStoreDeltas, timeout_seconds: float, open_store: OpenStore) -> "Rendezvous":
    """The learner's end. See `rlvr_trainer.weights.Transport`."""
    return Rendezvous(advertised_host, settings, timeout_seconds, open_store)


def make_receiver(invitation: Invitation, rank: int, device: torch.device, stage: Stage, previous: "Receiver | None") -> "Receiver":
    """A worker's end; it goes on with the copy of `previous`. See `rlvr_trainer.weights.Transport`.

    Raises:
        ValueError: the invitation is for another transport.
    """
    if invitation.collective != "object_store":
        raise ValueError(f"the learner sends over {invitation.collective}, and this engine was started for the object store: restart it")
    return Receiver(invitation, rank, stage, previous.copy if previous else WeightCopy())


class Rendezvous(StoreRendezvous):
    """Where groups meet, and the chain that all of them get."""

    def __init__(self, advertised_host: str, settings: ObjectStoreDeltas, timeout_seconds: float, open_store: OpenStore) -> None:
        """Raises OSError when `advertised_host` does not name an address of this machine."""
        super().__init__(advertised_host, timeout_seconds)
        self._settings, self._open_store = settings, open_store
        self._writer: ChainWriter | None = None

    def carrier(self, device: torch.device) -> Carrier:
        """The store, wherever the tensors are."""
        return "object_store"

    def open_group(self, attempt: int, epoch: int, world_size: int, layout: Layout, device: torch.device) -> "Sender":
        """The learner's end of a new group."""
        if self._writer is None:
            self._writer = ChainWriter(self._open_store(), attempt, self._settings.max_deltas)
        return Sender(self._group_store(attempt, epoch), world_size, layout, self._writer, self._timeout_seconds)

    def close(self) -> None:
        """Close the store, and remove what is in the bucket."""
        super().close()
        if self._writer is not None:
            self._writer.close()


class Sender(StoreSender):
    """The learner's end of one epoch's group."""

    def __init__(self, store: object, world_size: int, layout: Layout, writer: ChainWriter, timeout_seconds: float) -> None:
        super().__init__(store, timeout_seconds)
        self._ranks = range(1, world_size)
        self._layout = layout
        self._writer = writer

    def connect(self) -> None:
        """Nothing: who joined is connected."""

    def send(self, tensors: Mapping[str, torch.Tensor], header: UpdateHeader, on_last_bucket: Callable[[], None]) -> int:
        """Write the tensors, cast to the layout's dtype, offer them, and wait for those that get them; then `on_last_bucket`.

        Raises:
            StorageError: the store failed.
        """
        self._sequence = header.sequence
        sent_bytes = self._writer.write(tensors, self._layout, header.version)
        # Whoever is in the group for its second update had the first one.
        valid_seconds = min(math.ceil(self._timeout_seconds) + CLOCK_SECONDS, 7 * 86_400)
        offer = Offer(links=self._writer.offer(last_only=header.sequence > 0, valid_seconds=valid_seconds))
        self._store.set(f"offer/{header.sequence}", offer.model_dump_json())
        self._store.set(update_key(header.sequence), header.model_dump_json())
        deadline = time.monotonic() + self._timeout_seconds
        while not self._aborted.is_set() and time.monotonic() < deadline:
            if all(self._store.check([f"staged/{header.sequence}/{rank}"]) for rank in self._ranks):
                break
            time.sleep(POLL_SECONDS)
        on_last_bucket()
        return sent_bytes

    def await_staged(self, sequence: int, ranks: Sequence[int], find_dead: FindDead) -> Mapping[int, Acknowledgement]:
        """Wait until the ranks have staged an update, are dead, or the time is up; a silent rank counts as `cut`."""
        answers = super().await_staged(sequence, ranks, find_dead)
        self._store.delete_key(f"offer/{sequence}")
        if self._store.check([f"damaged/{sequence}"]):
            self._writer.break_off()
        return answers

    def abort(self) -> None:
        """Wait no longer for those that are dead; the others are not held up by them. Safe from any thread."""
        self._aborted.set()


class Receiver(StoreReceiver):
    """A worker's end of one epoch's group."""

    def __init__(self, invitation: Invitation, rank: int, stage: Stage, copy: WeightCopy) -> None:
        super().__init__(invitation, rank, stage)
        self.copy = copy

    def _join(self, inbox: object) -> None:
        """Nothing."""

    def _use_staged(self) -> None:
        """Nothing: the copy stays what the next delta is applied to."""

    def _leave(self) -> None:
        """Nothing is held but the copy, which the next receiver goes on with."""

    def _receive(self, header: UpdateHeader) -> Acknowledgement:
        with self._lock:
            self._staged = None
        timeout = self._invitation.timeout_seconds
        deadline = time.monotonic() + timeout
        if not self.copy.lock.acquire(timeout=timeout):
            return Acknowledgement(outcome="cut", message="the work of an older group is not done yet")
        try:
            offer = Offer.model_validate_json(self._outbox.get(f"offer/{header.sequence}"))
            self.copy.follow(self._invitation.layout, offer.links, deadline, self._is_given_up)
            self._stage(self.copy.tensors())
        except DamagedChainError as error:
            self._outbox.set(f"damaged/{header.sequence}", b"")
            return Acknowledgement(outcome="cut", message=first_line(error))
        except Exception as error:  # the border to the model's own loading code, which raises what it likes
            if not self._closed:
                log.exception("cannot stage weights of version %d", header.version)
            return Acknowledgement(outcome="refused", message=f"{type(error).__name__}: {first_line(error)}")
        finally:
            self.copy.lock.release()
        return Acknowledgement(outcome="done")
