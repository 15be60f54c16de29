"""`python -m benchmarks [NAME]`: run one benchmark, or all of them into docs/benchmarks.md."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def main(arguments: list[str]) -> int:
    """Run what is named; 2 for an unknown name."""
    if arguments:
        if arguments[0] not in NAMES:
            print(f"error: there is no benchmark {arguments[0]!r}; there are {', '.join(NAMES)}", file=sys.stderr)
            return 2
        return subprocess.run([sys.executable, str(FOLDER / f"{arguments[0]}.py")], check=False).returncode
    sections = ["# Benchmarks\n\nWritten by `make bench`. Each table has its limit beside it.\n"]
    for name in NAMES:
        print(f"running {name} ...", flush=True)
        done = subprocess.run([sys.executable, str(FOLDER / f"{name}.py")], check=False, capture_output=True, text=True)
        sections.append(f"## {name}\n\n```\n{done.stdout if done.returncode == 0 else done.stderr[-2000:]}```\n")
    (FOLDER.parent / "docs" / "benchmarks.md").write_text("\n".join(sections))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
