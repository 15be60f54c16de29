"""The lead's end of a learner of several processes: starts the others, watches them, and ends them.

    open_ranks(spec, model) -> Rendezvous -> followers as children -> connect -> Ranks ... Close -> they end by themselves

Those of other nodes start by themselves (`node`). A follower of this node that is lost ends this process at once: what it waits for in a
collective would never come, and the next attempt goes on from the last commit. One of another node ends its pod, and so the attempt. A node
that is asked to stop, as by a drain, passes that on, for the last checkpoint needs all.
Followers inherit the environment, less the credentials, which they have no use for.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlvr_api.process import TEACHER_API_KEY
from rlvr_api.spec import RLVRJobSpec
from rlvr_trainer.distributed.commands import Close, Command
from rlvr_trainer.distributed.ranks import ALONE, Ranks
from rlvr_trainer.distributed.rendezvous import JOIN_SECONDS, LOOPBACK, Rendezvous, dist, leave

logger = logging.getLogger(__name__)

FOLLOWER = ("-m", "rlvr_trainer.distributed.follower")
"""What Python runs in the other processes."""
WATCH_SECONDS = 0.25
POLL_SECONDS = 0.02
LAG_SECONDS = 1.0
"""A process's connections break a moment before it has ended."""
CLOSE_SECONDS = 20.0
"""Followers that have not ended by then after they were told to are killed."""
CREDENTIALS = ("AWS_", TEACHER_API_KEY)
"""Beginnings of the names of variables that hold some."""


class LostRankError(RuntimeError):
    """A process of the learner has ended before the others."""


@contextmanager
def open_ranks(
    spec: RLVRJobSpec, model: Path, advertised_host: str = LOOPBACK, port: int = 0, stop: threading.Event | None = None
) -> Iterator[Ranks]:
    """The processes of the learner, this one as their lead; they end with the block.

    Args:
        model: folder of the model, which every process loads.
        advertised_host: of this node, for those of other nodes, which start by themselves.
        port: where they look for the lead; 0 where there are none.
        stop: set when another node has to go.

    Raises:
        LostRankError: in place of what the block raised, when a follower had ended before; it is the reason.
        RuntimeError: the followers did not join in time.
    """
    if spec.learner.processes == 1:
        yield ALONE
        return
    rendezvous = Rendezvous(spec, advertised_host, port)
    meeting = Meeting(rendezvous.host, rendezvous.port)
    followers = Followers(meeting, model, range(1, spec.learner.processes_per_node), rendezvous, stop or threading.Event())
    try:
        ranks = rendezvous.connect()
        logger.info("the learner has %d processes", ranks.size)
        yield ranks
    except RuntimeError as error:
        if type(error) is RuntimeError or isinstance(error, dist.DistError):  # what torch raises when another process is gone
            followers.check(LAG_SECONDS)
        raise
    else:
        followers.close()
    finally:
        followers.kill()


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where a follower finds the lead."""

    host: str
    port: int
    join_seconds: float = JOIN_SECONDS
    """Longest wait for it."""


def start_followers(meeting: Meeting, model: Path, ranks: Iterable[int]) -> dict[int, "subprocess.Popen[bytes]"]:
    """Processes of this node by rank, as children of this one; they end with it, and have no credentials."""
    place = ("--host", meeting.host, "--port", str(meeting.port), "--join-seconds", str(meeting.join_seconds))
    command = [sys.executable, *FOLLOWER, *place, "--lead", str(os.getpid()), "--model", str(model)]
    env = without_credentials(os.environ)
    return {rank: subprocess.Popen([*command, "--rank", str(rank)], env=env) for rank in ranks}


class Followers:
    """The other processes of the lead's node, as children of this one."""

    def __init__(self, meeting: Meeting, model: Path, ranks: range, rendezvous: Rendezvous, stop: threading.Event) -> None:
        self._rendezvous, self._stop = rendezvous, stop
        self._children = start_followers(meeting, model, ranks)
        self._closing = threading.Event()
        threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()

    def check(self, wait_seconds: float) -> None:
        """Raises LostRankError when one of them has ended, or does within a while."""
        deadline = time.monotonic() + wait_seconds
        while not (message := self._describe_lost()):
            if time.monotonic() > deadline:
                return
            time.sleep(POLL_SECONDS)
        self._closing.set()
        raise LostRankError(message)

    def close(self) -> None:
        """Tell them that there is nothing more to do, and wait until they have ended."""
        self._closing.set()
        self._rendezvous.tell(lambda: Command(Close()))
        leave()
        deadline = time.monotonic() + CLOSE_SECONDS
        if not self._rendezvous.is_heard_until(deadline):  # those of other nodes are no children, and ask this process
            logger.warning("not all processes heard within %.0f s that there is nothing more to do; nothing is lost by it", CLOSE_SECONDS)
        for rank, child in self._children.items():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("rank %d did not end within %.0f s and is killed; nothing is lost by it", rank, CLOSE_SECONDS)

    def kill(self) -> None:
        """End what is left of them."""
        self._closing.set()
        for child in self._children.values():
            child.kill()
            child.wait()

    def _watch(self) -> None:
        while not self._closing.wait(WATCH_SECONDS):
            message = self._describe_lost()
            if message and not self._closing.is_set():
                print(f"error: {LostRankError.__name__}: {message}", file=sys.stderr, flush=True)
                os._exit(1)
            if not self._stop.is_set() and self._rendezvous.is_asked_to_stop():
                logger.info("another node of the learner has to go")
                self._stop.set()

    def _describe_lost(self) -> str:
        ended = ((rank, child.poll()) for rank, child in self._children.items())
        return next((describe_lost(rank, self._rendezvous.size, code) for rank, code in ended if code is not None), "")


def describe_lost(rank: int, size: int, code: int) -> str:
    """What to say of a process that ended too early."""
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return (
        f"rank {rank} of the learner's {size} processes {how} before the others; what it said is above, "
        "and when it said nothing, look at the memory that the learner may use"
    )


def without_credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for a process that talks to nobody."""
    return {name: value for name, value in environ.items() if not name.startswith(CREDENTIALS)}
