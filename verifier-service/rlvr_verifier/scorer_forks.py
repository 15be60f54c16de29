"""Forks of a worker, each of which judges one item and ends: nothing that a library's scorer was made to do by an answer outlives it.

    fork -> limits, what Python reads and nothing to write, no network, no further process -> answer -> its end
    meanwhile read the answer to its end; a fork out of processor time is the item's doing, one that was killed takes its worker along

The fork holds the item's gold answer, as the worker does. What keeps an answer from being run is how its environment reads it; this is for
the day when that is not enough. Where the kernel lacks what locks a fork in, it is a fork all the same, and a warning says so.
"""

import ctypes
import gc
import json
import logging
import math
import os
import platform
import resource
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from rlvr_verifier.sandbox import landlock, seccomp
from rlvr_verifier.sandbox.commands import set_limits, write_all

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 65_536
OUT_OF_TIME = "null"
"""The answer, in JSON, for an item whose fork used up its processor time."""
MEMORY_BYTES = 2 << 30
"""Address space that a fork may take beside its worker's own."""
_ANSWER = 3
"""The descriptor that a fork answers through; what is open behind it is closed."""
_TRIAL = "0"
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_prctl = ctypes.CDLL(None, use_errno=True).prctl
Judge = Callable[[], str]
"""Gives the answer on one item, in JSON."""


class ScorerForks:
    """Makes the forks of one worker, one at a time.

    Args:
        seconds: processor time of one.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = max(1, math.ceil(seconds))
        self._memory_bytes = _address_space_bytes() + MEMORY_BYTES
        self._ruleset, self._filter = -1, seccomp.Filter()
        gc.freeze()
        if platform.machine() == "x86_64" and landlock.abi() >= landlock.SCOPES_SINCE_ABI:
            packages = [path for path in sys.path if os.path.isabs(path)]
            self._ruleset = landlock.prepare([*landlock.SYSTEM, sys.prefix, sys.base_prefix, *packages], ())
            if self.run(lambda: _TRIAL) != _TRIAL:
                os.close(self._ruleset)
                self._ruleset = -1
        if self._ruleset < 0:
            logger.warning("scorers are forked, and not locked in: that needs x86-64, seccomp, and Landlock as of Linux 6.12")

    @property
    def locked_in(self) -> bool:
        """Whether more than limits keeps a fork from the rest of the machine."""
        return self._ruleset >= 0

    def run(self, judge: Judge) -> str:
        """The answer of a fork, in JSON: what `judge` gives, `OUT_OF_TIME`, or a text that says what else became of it.

        Raises:
            SystemExit: it was killed by nobody here; what was tried is tried again by whoever finds this process gone.
        """
        reading, writing = os.pipe()
        worker = os.getpid()
        child = os.fork()
        if child == 0:
            self._be_fork(worker, writing, judge)
        os.close(writing)
        with open(reading, "rb") as pipe:
            said = pipe.read(MAX_ANSWER_BYTES + 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == -signal.SIGXCPU:
            return OUT_OF_TIME
        if code == -signal.SIGKILL:
            raise SystemExit("a scorer's fork was killed; was the machine short of memory?")
        if code != 0 or len(said) > MAX_ANSWER_BYTES:
            return json.dumps(f"the scorer's fork ended with code {code} and {min(len(said), MAX_ANSWER_BYTES)} bytes")
        return said.decode()

    def _be_fork(self, worker: int, writing: int, judge: Judge) -> NoReturn:
        code = 70
        try:
            _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() == worker:
                self._lock_in(writing)
                write_all(os.write, _ANSWER, judge().encode())
                code = 0
        finally:
            os._exit(code)

    def _lock_in(self, writing: int) -> None:
        """Limits first: the filter lets nothing change them."""
        set_limits(self._memory_bytes, self._seconds)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if self._ruleset >= 0:
            if _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "prctl")
            landlock.enter(self._ruleset)
        os.dup2(writing, _ANSWER)
        os.closerange(_ANSWER + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        if self._ruleset >= 0:
            self._filter.install()


def _address_space_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
