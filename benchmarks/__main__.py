"""`python -m benchmarks [NAME ...]`: run the named benchmarks, or all of them into docs/benchmarks.md.

Each runs in a process of its own, which prints a table and, as its last line, one JSON object. A section of docs/benchmarks.md changes only
when its benchmark has run to its end; `--write` does that for named ones.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
FILES = {path.stem.rstrip("_"): path for path in sorted(FOLDER.glob("*.py")) if not path.stem.startswith("_")}
"""A file that would hide a module of the standard library, such as `operator`, has an underscore behind its name."""
NAMES = sorted(FILES)
INTRODUCTION = """# Benchmarks

Written by `make bench`, which runs all of them one after the other; `make bench NAME=...` prints one. Each table has its limit beside it,
each docstring in `benchmarks/` says what is measured and what is not, and the last line is for programs.
"""
TIMEOUT_SECONDS = 3600.0
NOTHING = "{}"
"""Last line of a benchmark that needs what this machine lacks; it has said what."""


def main(arguments: list[str]) -> int:
    """Run what is named; 1 when one of them failed, 2 for an unknown name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; none: all of them, with --write")
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    failed = []
    for name in options.names or NAMES:
        output = run(name)
        if output is None:
            failed.append(name)
        elif (options.write or not options.names) and not output.rstrip().endswith(f"\n{NOTHING}"):
            write_section(PAGE, name, output)
    if failed:
        print(f"error: failed: {', '.join(failed)}; their sections stay as they are", file=sys.stderr)
    return 1 if failed else 0


def run(name: str) -> str | None:
    """What a benchmark printed, shown as well; None when it failed, or did not end with a JSON object."""
    print(f"running {name} ...", file=sys.stderr, flush=True)
    try:
        command = [sys.executable, "-m", f"benchmarks.{FILES[name].stem}"]  # as a module, so that it can import its neighbours
        done = subprocess.run(command, cwd=FOLDER.parent, check=False, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"error: {name} took longer than {TIMEOUT_SECONDS:.0f} s", file=sys.stderr)
        return None
    print(done.stdout, end="", flush=True)
    try:
        json.loads(done.stdout.rstrip().rpartition("\n")[2])
    except ValueError:
        return None
    return done.stdout if done.returncode == 0 else None


def write_section(page: Path, name: str, output: str) -> None:
    """Put what a benchmark printed into its section of the page; sections are in the order of their names."""
    text = page.read_text() if page.exists() else ""
    names = "|".join(NAMES)
    sections = dict(re.findall(rf"^## ({names})\n(.*?)(?=^## (?:{names})\n|\Z)", text, re.MULTILINE | re.DOTALL))
    where = f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    sections[name] = f"\n{where}\n\n```\n{output.strip()}\n```\n\n"
    page.write_text(INTRODUCTION + "\n" + "".join(f"## {title}\n{sections[title]}" for title in sorted(sections)).rstrip() + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
