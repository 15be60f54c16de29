"""Becomes the command that it is given, tied to the life of the runtime. Run as a script, with the standard library alone.

    launch.py PARENT_PID COMMAND [ARGUMENT ...]

The parent-death signal is set here, since code between fork and exec of a process with threads can deadlock. It covers
the moment in which a killed runtime's reaper has not come round yet; grandchildren are the reaper's alone.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
COMMAND_NOT_FOUND = 127


def main(arguments: Sequence[str]) -> int:
    """Does not return when the command can be started."""
    parent, command = int(arguments[0]), list(arguments[1:])
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        print("this kernel has no parent-death signal", file=sys.stderr)
    if os.getppid() != parent:  # it died before the line above
        return 1
    try:
        os.execvp(command[0], command)  # noqa: S606 - the command is the plan's, never a shell string
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return COMMAND_NOT_FOUND


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
