"""The members of a weight group talk through the learner's `TCPStore`, whatever moves the bytes: who joined, which update begins, who has
it.

The learner keeps one store; each epoch is a `PrefixStore` in it:

    learner (rank 0)                          worker (rank 1..)
      invitation over HTTP  ----------------->  thread starts, writes joined/RANK
      waits for joined/*                        waits for update/N
      writes update/N, sends the bytes ------>  receives all into staging, hands each on, writes staged/N/RANK
      waits for staged/N/*, orders the swap     (the engine swaps, not this file), writes settled/N/RANK

Each wait ends with a time-out. The learner writes `aborted` where a member's death breaks the group for all; workers that wait in vain find
the store gone when it is the learner that died. Not covered: how the bytes travel, which is the transports' own.
"""

import logging
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from pydantic import ValidationError

from rlvr_trainer.weights.collectives import BroadcastBrokenError, dist, family_of, first_line, own_address
from rlvr_trainer.weights.protocol import Acknowledgement, Invitation, UpdateHeader
from rlvr_trainer.weights.transport import FindDead, Stage

log = logging.getLogger("rlvr.weights")

CLOSED = b"closed"
ABORTED_KEY = "aborted"
LIVENESS_SECONDS = 0.5
"""A silent rank is looked after this often; at once when the group is broken."""
QUIET_SECONDS = 3600.0
"""A worker waits for the next update as long as the store lives; it looks up once in this time."""


class StoreRendezvous:
    """Where groups meet: a TCP store that lives as long as the learner."""

    def __init__(self, advertised_host: str, timeout_seconds: float) -> None:
        """Raises OSError when `advertised_host` does not name an address of this machine."""
        # Engines are told the address: whatever resolves names where they are need not know this one yet.
        self._host = own_address(advertised_host)
        self._timeout_seconds = timeout_seconds
        listener = socket.create_server((self._host, 0), family=family_of(self._host), backlog=1024)
        self._port: int = listener.getsockname()[1]
        self._store: Any = dist.TCPStore(
            self._host,
            self._port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_seconds),
            master_listen_fd=listener.detach(),
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that go into invitations."""
        return self._host, self._port

    def close(self) -> None:
        """Close the store: workers that wait for an update leave their groups."""
        self._store = None

    def _group_store(self, attempt: int, epoch: int) -> Any:
        return dist.PrefixStore(prefix(attempt, epoch), self._store)


class StoreSender:
    """The learner's end of one epoch's group, but for sending."""

    def __init__(self, store: Any, timeout_seconds: float) -> None:
        self._store = store
        self._timeout_seconds = timeout_seconds
        self._aborted = threading.Event()
        self._sequence = -1

    def await_members(self, ranks: Sequence[int], find_dead: FindDead) -> Mapping[int, Acknowledgement]:
        """Wait until the ranks have answered the invitation, are dead, or the time is up."""
        return self._await(lambda rank: f"joined/{rank}", ranks, self._aborting(find_dead))

    def await_staged(self, sequence: int, ranks: Sequence[int], find_dead: FindDead) -> Mapping[int, Acknowledgement]:
        """Wait until the ranks have staged an update, are dead, or the time is up; a silent rank counts as `cut`."""
        return self._await(lambda rank: f"staged/{sequence}/{rank}", ranks, self._aborting(find_dead))

    def await_settled(self, sequence: int, ranks: Sequence[int], find_dead: FindDead) -> Mapping[int, Acknowledgement]:
        """Wait until the ranks have nothing left to do after the swap of an update."""
        answers = self._await(lambda rank: f"settled/{sequence}/{rank}", ranks, find_dead)
        self._store.delete_key(update_key(sequence))
        return answers

    def abort(self) -> None:
        """End what the group is doing, for all members. Safe from any thread."""
        self._aborted.set()
        with suppress(RuntimeError):
            self._store.set(ABORTED_KEY, b"")

    def close(self) -> None:
        """Leave the group. Workers that wait for an update leave it as well."""
        self._aborted.set()
        with suppress(RuntimeError):
            self._store.set(update_key(self._sequence + 1), CLOSED)

    def _aborting(self, find_dead: FindDead) -> FindDead:
        def look(ranks: Sequence[int]) -> Sequence[int]:
            if dead := find_dead(ranks):
                self.abort()
            return dead

        return look

    def _await(self, key: Callable[[int], str], ranks: Sequence[int], find_dead: FindDead) -> dict[int, Acknowledgement]:
        answers: dict[int, Acknowledgement] = {}
        deadline = time.monotonic() + self._timeout_seconds
        look_up, pause = time.monotonic() + (0.0 if self._aborted.is_set() else LIVENESS_SECONDS), 0.0002
        while missing := [rank for rank in ranks if rank not in answers]:
            for rank in missing:
                if self._store.check([key(rank)]):
                    answers[rank] = Acknowledgement.model_validate_json(self._store.get(key(rank)))
                    self._store.delete_key(key(rank))
            now = time.monotonic()
            if now > deadline:
                late = Acknowledgement(outcome="cut", message=f"no answer within {self._timeout_seconds:g} s")
                return answers | {rank: late for rank in missing if rank not in answers}
            if now > look_up:
                gone = Acknowledgement(outcome="cut", message="the engine does not answer any more")
                answers |= dict.fromkeys(find_dead([rank for rank in missing if rank not in answers]), gone)
                look_up = time.monotonic() + LIVENESS_SECONDS
            time.sleep(pause)
            pause = min(pause * 1.5, 0.002)
        return answers


class StoreReceiver(ABC):
    """A worker's end of one epoch's group. Its thread does all that waits; the engine's loop never does."""

    def __init__(self, invitation: Invitation, rank: int, stage: Stage) -> None:
        self._invitation = invitation
        self._rank = rank
        self._stage = stage
        self._closed = False
        self._lock = threading.Lock()
        self._staged: UpdateHeader | None = None
        self._outbox: Any = None
        self._thread = threading.Thread(target=self._run, name=f"weights-epoch-{invitation.epoch}", daemon=True)

    def start(self) -> None:
        """Join the group and receive updates, on a thread of its own."""
        self._thread.start()

    def staged_header(self) -> UpdateHeader | None:
        """The update whose weights are complete and wait for their swap."""
        return None if self._closed else self._staged

    def swap_staged(self, header: UpdateHeader, swap: Callable[[], None]) -> bool:
        """Call `swap` if that update is staged, and say whether it is. Nothing arrives meanwhile."""
        with self._lock:
            if self._closed or self._staged != header:
                return False
            self._staged = None
            self._use_staged()
            swap()
            return True

    def report_settled(self, header: UpdateHeader, error: str) -> None:
        """Tell the learner that the work after a swap is done; an empty error is success."""
        answer = Acknowledgement(outcome="refused" if error else "done", message=error)
        self._answer(f"settled/{header.sequence}/{self._rank}", answer)

    def close(self) -> None:
        """Leave the group; it does not wait for the thread, which ends when its connections do or at its time-out."""
        self._closed = True

    @abstractmethod
    def _join(self, inbox: Any) -> None:
        """Do what it takes before the first update; the learner knows already that this worker is there."""

    @abstractmethod
    def _receive(self, header: UpdateHeader) -> Acknowledgement:
        """Get an update and stage it."""

    @abstractmethod
    def _use_staged(self) -> None:
        """The staged weights are about to be in use."""

    @abstractmethod
    def _leave(self) -> None:
        """Let go of what `_join` made."""

    def _run(self) -> None:
        try:
            with torch.no_grad():
                self._take_part()
        except (BroadcastBrokenError, RuntimeError, OSError, ValidationError) as error:
            # The border of the thread: the store or the group is gone, or the learner spoke nonsense. The engine goes on with old weights.
            if not self._closed:
                log.warning("left weight group: attempt %d, epoch %d: %s", *self._invitation.order, first_line(error))
        finally:
            self._leave()

    def _take_part(self) -> None:
        invitation, timeout = self._invitation, timedelta(seconds=self._invitation.timeout_seconds)
        address = invitation.store_host, invitation.store_port
        # Two connections: one that waits for the next update blocks all other use of it.
        inbox, outbox = (
            dist.PrefixStore(prefix(*invitation.order), dist.TCPStore(*address, is_master=False, timeout=timeout)) for _ in range(2)
        )
        self._outbox = outbox
        self._answer(f"joined/{self._rank}", Acknowledgement(outcome="done"))
        self._join(inbox)
        sequence = 0
        while (message := self._next(inbox, sequence)) is not None:
            header = UpdateHeader.model_validate_json(message)
            answer = (
                Acknowledgement(outcome="refused", message="this engine has joined a newer group")
                if self._closed
                else self._receive(header)
            )
            if answer.outcome == "done":
                self._staged = header
            self._answer(f"staged/{header.sequence}/{self._rank}", answer)
            if self._closed or answer.outcome == "cut":
                return
            sequence += 1

    def _next(self, inbox: Any, sequence: int) -> bytes | None:
        while not self._closed:
            try:
                inbox.wait([update_key(sequence)], timedelta(seconds=QUIET_SECONDS))
            except dist.DistNetworkError:
                raise
            except dist.DistStoreError:
                continue
            message: bytes = inbox.get(update_key(sequence))
            return None if message == CLOSED else message
        return None

    def _is_given_up(self) -> bool:
        """A newer group took over, the learner aborted this one, or the learner is gone."""
        if self._closed:
            return True
        try:
            return bool(self._outbox.check([ABORTED_KEY]))
        except RuntimeError:
            return True

    def _answer(self, key: str, answer: Acknowledgement) -> None:
        # A learner that is gone needs no answer, and its successor invites anew.
        if self._outbox is not None:
            with suppress(RuntimeError):
                self._outbox.set(key, answer.model_dump_json())


def prefix(attempt: int, epoch: int) -> str:
    """Of a group's keys in the store."""
    return f"weights/{attempt}/{epoch}"


def update_key(sequence: int) -> str:
    """Where workers learn that an update begins."""
    return f"update/{sequence}"
