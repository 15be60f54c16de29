"""The command `rlvr`: a dispatcher over commands that the other packages bring.

A package adds a command as an entry point of group `rlvr.commands` that names a `Command`; so no package imports another, and the command
line works with whatever extras are installed. `rlvr NAME ...` imports the module of that command alone; `rlvr --help` asks each for its one
line, so modules of commands import heavy libraries inside `run`.

Exit codes: 0 done, 1 failed, 2 bad input (one line on stderr says what to change), 130 stopped by the user.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, version

GROUP = "rlvr.commands"
DISTRIBUTION = "rlvr-operator"
BAD_INPUT = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """One subcommand."""

    name: str
    """What is typed after `rlvr`."""
    help: str
    """One line, shown by `rlvr --help`."""
    configure: Callable[[argparse.ArgumentParser], None]
    """Adds the command's arguments."""
    run: Callable[[argparse.Namespace], int]
    """Does the work and returns the exit code; raises `UserError` for input that the person must change."""


class UserError(Exception):
    """Input that the person must change: the value, the place and the next step, on one line. Exit code 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code. Messages for people go to stderr, results to stdout."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview(commands))
        return 0 if arguments else BAD_INPUT
    if arguments[0] == "--version":
        print(f"rlvr {version(DISTRIBUTION)}")
        return 0
    name, rest = arguments[0], arguments[1:]
    try:
        return _dispatch(name, rest, commands)
    except UserError as error:
        return _refuse(f"rlvr {name}: {error}")
    except ModuleNotFoundError as error:
        if _is_ours(error.name):
            raise
        return _refuse(f"rlvr {name}: {_missing(commands[name], error)}")
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `rlvr crd | head`: the reader has gone, and flushing at exit would complain once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def overview(commands: Mapping[str, EntryPoint]) -> str:
    """The text of `rlvr --help`; a command whose extra is missing is listed with how to install it."""
    lines = ["usage: rlvr COMMAND [ARGUMENT ...]", "", "Reinforcement learning from verifiable rewards, as one RLVRJob.", ""]
    width = max(map(len, commands), default=0)
    for name, entry in sorted(commands.items()):
        try:
            text = _load(entry).help
        except ModuleNotFoundError as error:
            text = f"({_missing(entry, error)})"
        lines.append(f"  {name:<{width}}  {text}")
    return "\n".join([*lines, "", "rlvr COMMAND --help shows a command's arguments; rlvr --version the version."])


def _dispatch(name: str, arguments: Sequence[str], commands: Mapping[str, EntryPoint]) -> int:
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        advice = f"did you mean {near[0]}?" if near else f"commands are {', '.join(sorted(commands))}"
        return _refuse(f"rlvr: there is no command '{name}'; {advice}")
    command = _load(commands[name])
    parser = argparse.ArgumentParser(prog=f"rlvr {name}", description=command.help)
    command.configure(parser)
    return command.run(parser.parse_args(arguments))


def _load(entry: EntryPoint) -> Command:
    command = entry.load()
    if not isinstance(command, Command):
        raise TypeError(f"entry point {entry.name} = {entry.value} must name an rlvr_api.cli.Command, not {type(command).__name__}")
    return command


def _missing(entry: EntryPoint, error: ModuleNotFoundError) -> str:
    extra = entry.module.partition(".")[0].removeprefix("rlvr_")
    return f"needs the Python package {error.name}: pip install '{DISTRIBUTION}[{extra}]'"


def _is_ours(module: str | None) -> bool:
    return module is None or module.startswith("rlvr_")


def _refuse(message: str) -> int:
    print(message, file=sys.stderr)
    return BAD_INPUT
