"""What a zygote is put behind before it locks itself in, where an environment asks for more than it can do by itself.

    L1u: a user of its own for each slot, by `setpriv`, which needs root with the capabilities SETUID and SETGID
    L2:  namespaces of its own for each slot, by bubblewrap, which needs leave to make a user namespace: what the slot reads is there, and
         nothing else

What does not work here is left out and said. That it was put behind something says nothing of what that keeps out: the level is measured.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

FIRST_USER, USERS = 20_000, 20_000
"""User ids of slots, one after the other; a user namespace of a pod has those below 65536."""
TRIAL_SECONDS = 20.0
UNPRIVILEGED = ("setpriv", "--clear-groups", "--inh-caps=-all")
BUBBLEWRAP = (
    # An item that is short of memory goes first; inside there may be nothing to say so in.
    "choom", "--adjust", "1000", "--",
    "bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--unshare-cgroup-try",
    "--cap-drop", "ALL", "--die-with-parent", "--new-session",
    "--dev-bind", "/dev/null", "/dev/null", "--dev-bind", "/dev/urandom", "/dev/urandom",
)  # fmt: skip
READ = (
    "/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives", "/etc/ssl/openssl.cnf",
    sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[2]),
)  # fmt: skip
"""What Python and the tools of other languages need; a slot's Landlock domain has less of it."""
_slots = itertools.count()


@dataclass(frozen=True, slots=True)
class Isolation:
    """What slots of one source are put behind."""

    users: bool = False
    namespaces: bool = False
    proc: bool = False
    """Whether a slot in namespaces has a /proc, of its own processes; in pods it has not, and compilers of C need it."""

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command that starts a command behind it, as the next slot."""
        words: list[str] = []
        if self.users:
            user = FIRST_USER + next(_slots) % USERS
            words += [*UNPRIVILEGED, f"--reuid={user}", f"--regid={user}"]
        if self.namespaces:
            words += [*BUBBLEWRAP, *_binds(), *(("--proc", "/proc") if self.proc else ()), "--"]
        return [*words, *command]


NONE = Isolation()


def find_isolation(levels: Collection[str]) -> tuple[Isolation, tuple[str, ...]]:
    """As much as works here of what some levels need, and why the rest does not."""
    found = NONE
    faults: list[str] = []
    if "L1u" in levels:
        if fault := _try(replace(found, users=True)):
            faults.append(f"no slot can be a user of its own: {fault}")
        else:
            found = replace(found, users=True)
    if "L2" in levels:
        if not _try(replace(found, namespaces=True, proc=True)):
            found = replace(found, namespaces=True, proc=True)
        elif fault := _try(replace(found, namespaces=True)):
            faults.append(f"no slot can be in namespaces of its own: {fault}")
        else:
            found = replace(found, namespaces=True)
    return found, tuple(faults)


def _try(isolation: Isolation) -> str:
    """Why nothing can be run behind it; empty when it can."""
    command = isolation.wrap([sys.executable, "-S", "-c", "pass"])
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False)
    except FileNotFoundError:
        return f"there is no {command[0]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    words = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (words[-1] if words else f"exit code {done.returncode}")[:200]


def _binds() -> Iterator[str]:
    for path in dict.fromkeys(READ):
        if os.path.islink(path):
            yield from ("--symlink", os.readlink(path), path)
        elif os.path.exists(path):
            yield from ("--ro-bind", path, path)
