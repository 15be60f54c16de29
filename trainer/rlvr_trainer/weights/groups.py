"""Epochs: groups of the learner and the engines that are there, formed anew whenever that set changes.

form: ask each engine for its workers -> invite all -> wait until all have joined -> connect. Whoever fails on the way is left out and the
rest try again under the next epoch, so every round has fewer engines than the one before and the end is near. A group is used for many
updates; one broken broadcast ends it.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from rlvr_trainer.weights.engine_client import EngineClient, EngineError, EngineSlowError
from rlvr_trainer.weights.protocol import Acknowledgement, Invitation, Layout, UpdateHeader
from rlvr_trainer.weights.transport import FindDead, Rendezvous, Sender

log = logging.getLogger("rlvr.weights")

NEVER_UPDATED = "default"
"""What a new vLLM process says its version is."""
LIVENESS_SECONDS = 0.5
"""Members of a group that is busy are looked after this often."""
LIVENESS_TIMEOUT_SECONDS = 0.5
"""An engine that is dead fails at once; one that only takes its time is not worth waiting for here."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Member:
    """One engine in a group."""

    name: str
    ranks: range
    """Ranks of its workers."""


class WeightGroup:
    """A connected group of one epoch."""

    def __init__(self, attempt: int, epoch: int, members: Sequence[Member], sender: Sender, layout: Layout, find_dead: FindDead) -> None:
        self.attempt = attempt
        self.epoch = epoch
        self.members = {member.name: member for member in members}
        self.layout = layout
        self.broken = False
        self.sent_bytes = 0
        """Of the last update."""
        self._sender = sender
        self._find_dead = find_dead
        self._sequence = -1

    def broadcast(
        self, tensors: Mapping[str, torch.Tensor], version: int, on_last_bucket: Callable[[UpdateHeader], None]
    ) -> dict[str, Acknowledgement]:
        """Send a version to all members; the answer of each is the worst of its workers'.

        `on_last_bucket` is called once in any case. An answer other than `done` ends the group.
        """
        self._sequence += 1
        header = UpdateHeader(sequence=self._sequence, version=version)
        called: list[bool] = []

        def announce() -> None:
            called.append(True)
            on_last_bucket(header)

        try:
            with _lookout(self._sender, self._ranks(), self._find_dead):
                self.sent_bytes = self._sender.send(tensors, header, announce)
        except RuntimeError as error:
            # Connections close only when nobody holds the group any more: a kept exception would, by its frames.
            log.warning("broadcast of version %d in epoch %d broke: %s", version, self.epoch, str(error))
            self.broken = True
        if self.broken:
            self._sender.abort()
            self._sender.close()
        if not called:
            announce()
        answers = self._merge(self._sender.await_staged(self._sequence, self._ranks(), self._find_dead))
        self.broken = self.broken or any(answer.outcome != "done" for answer in answers.values())
        return answers

    def await_settled(self, names: Iterable[str]) -> dict[str, Acknowledgement]:
        """Wait until these members have nothing left to do after their swap."""
        ranks = [rank for name in names for rank in self.members[name].ranks]
        return self._merge(self._sender.await_settled(self._sequence, ranks, self._find_dead))

    def close(self) -> None:
        """Leave the group."""
        self.broken = True
        self._sender.close()

    def _ranks(self) -> list[int]:
        return [rank for member in self.members.values() for rank in member.ranks]

    def _merge(self, answers: Mapping[int, Acknowledgement]) -> dict[str, Acknowledgement]:
        severity = {"done": 0, "cut": 1, "refused": 2}
        merged: dict[str, Acknowledgement] = {}
        for name, member in self.members.items():
            theirs = [answers[rank] for rank in member.ranks if rank in answers]
            if theirs:
                merged[name] = max(theirs, key=lambda answer: severity[answer.outcome])
        return merged


@contextmanager
def _lookout(sender: Sender, ranks: Sequence[int], find_dead: FindDead) -> Iterator[None]:
    """Aborts what the group does in the block once a member is dead: the library would not notice before its time-out."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(LIVENESS_SECONDS):
            try:
                dead = find_dead(ranks)
            except Exception:  # the border of the thread: the publisher may have been closed meanwhile
                if not over.is_set():
                    log.exception("looking after the members of a broadcast failed; its time-out is what ends it now")
                return
            if dead and not over.is_set():
                sender.abort()
                return

    thread = threading.Thread(target=look, name="weights-lookout", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


class GroupFactory:
    """Forms groups; epochs count up for as long as it lives."""

    def __init__(
        self,
        rendezvous: Rendezvous,
        attempt: int,
        clients: Mapping[str, EngineClient],
        pool: Executor,
        timeout_seconds: float,
        was_updated: Callable[[str], bool],
    ) -> None:
        self._rendezvous = rendezvous
        self._attempt = attempt
        self._clients = clients
        self._pool = pool
        self._timeout_seconds = timeout_seconds
        self._was_updated = was_updated
        self._epoch = 0

    def form(self, names: Sequence[str], layout: Layout, device: torch.device) -> tuple[WeightGroup | None, dict[str, EngineError]]:
        """A connected group of those engines that can take part, and why the others cannot. No group when nobody can."""
        started = time.monotonic()
        sizes, failures = self.call(names, lambda client: client.world_size())
        while sizes:
            group, failed = self._try(sizes, layout, device)
            failures |= failed
            if group is not None:
                log.info("formed weight group: epoch %d, %s, in %.2f s", group.epoch, ", ".join(sizes), time.monotonic() - started)
                return group, failures
            sizes = {name: size for name, size in sizes.items() if name not in failed}
        return None, failures

    def call(self, names: Iterable[str], function: Callable[[EngineClient], T]) -> tuple[dict[str, T], dict[str, EngineError]]:
        """Call a function for several engines at the same time: results, and errors, by name."""
        clients = self._clients
        futures = {name: self._pool.submit(function, clients[name]) for name in names if name in clients}
        results, errors = {}, {}
        for name, future in futures.items():
            try:
                results[name] = future.result()
            except EngineError as error:
                errors[name] = error
        return results, errors

    def find_dead(self, names: Iterable[str]) -> list[str]:
        """Engines whose process, or the core behind it, is gone or another one; one that only takes its time is not among them."""
        versions, errors = self.call(names, lambda client: client.weight_version(LIVENESS_TIMEOUT_SECONDS))
        replaced = [name for name, version in versions.items() if version == NEVER_UPDATED and self._was_updated(name)]
        return replaced + [name for name, error in errors.items() if not isinstance(error, EngineSlowError)]

    def _try(self, sizes: Mapping[str, int], layout: Layout, device: torch.device) -> tuple[WeightGroup | None, dict[str, EngineError]]:
        self._epoch += 1
        members, world_size = _assign_ranks(sizes)
        by_name = {member.name: member for member in members}
        invitations = {member.name: self._invitation(member, world_size, layout, device) for member in members}
        _, failures = self.call(sizes, lambda client: client.invite(invitations[client.handle.name]))
        if failures:
            return None, failures

        def find_dead(ranks: Sequence[int]) -> Sequence[int]:
            silent = [member.name for member in members if any(rank in ranks for rank in member.ranks)]
            return [rank for name in self.find_dead(silent) for rank in by_name[name].ranks if rank in ranks]

        sender = self._rendezvous.open_group(self._attempt, self._epoch, world_size, layout, device)
        answers = sender.await_members(list(range(1, world_size)), find_dead)
        for member in members:
            problems = [answers[rank].message for rank in member.ranks if answers[rank].outcome != "done"]
            if problems:
                failures[member.name] = EngineError(f"engine {member.name} did not join weight group {self._epoch}: {problems[0]}")
        if not failures:
            with _lookout(sender, list(range(1, world_size)), find_dead):
                failures = self._connect(sender, sizes)
        if failures:
            sender.close()
            return None, failures
        return WeightGroup(self._attempt, self._epoch, members, sender, layout, find_dead), {}

    def _connect(self, sender: Sender, names: Iterable[str]) -> dict[str, EngineError]:
        try:
            sender.connect()
        except RuntimeError as error:
            # Which member is at fault cannot be seen from here, unless its process is gone.
            names = list(names)
            return {name: EngineError(f"engine {name}: {error}") for name in self.find_dead(names) or names}
        return {}

    def _invitation(self, member: Member, world_size: int, layout: Layout, device: torch.device) -> Invitation:
        host, port = self._rendezvous.address
        return Invitation(
            attempt=self._attempt,
            epoch=self._epoch,
            world_size=world_size,
            rank_offset=member.ranks.start,
            store_host=host,
            store_port=port,
            collective=self._rendezvous.carrier(device),
            timeout_seconds=self._timeout_seconds,
            layout=layout,
        )


def _assign_ranks(sizes: Mapping[str, int]) -> tuple[list[Member], int]:
    members, next_rank = [], 1
    for name, size in sizes.items():
        members.append(Member(name, range(next_rank, next_rank + size)))
        next_rank += size
    return members, next_rank
