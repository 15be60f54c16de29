"""Coverage-guided fuzzing of what reads untrusted text, by libFuzzer: `python -m tests.fuzz [TARGET ...] [FLAGS OF LIBFUZZER]`.

    seeds -> FOLDER/TARGET/corpus -> libFuzzer, guided by the branches and comparisons of the service's own modules -> an input that breaks
    an invariant, printed and in FOLDER/TARGET

Targets come one after the other, all where none is named, each in a process of its own, which goes on until something breaks, or as long
as -runs=N or -max_total_time=SECONDS says. The corpus stays, and the next run begins with it. Not guiding: what is no Python, so
pydantic's own checks, and the patterns of `re`.
"""

import argparse
import os
import sys
from pathlib import Path
from types import FunctionType

import atheris

with atheris.instrument_imports(include=["rlvr_api", "rlvr_verifier", "tests"]):
    from tests.fuzz.targets import TARGETS, Target


def main() -> int:
    """Fuzz some targets; 1 where one of them broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"), help="where corpora and crashes are kept")
    arguments, flags = parser.parse_known_args()
    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    broken = [name for name in arguments.targets or TARGETS if not holds(name, arguments.folder, flags)]
    if broken:
        print(f"broken: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


def holds(name: str, folder: Path, flags: list[str]) -> bool:
    """Fuzz a target in a fork, as libFuzzer ends its process; whether nothing broke."""
    print(f"== {name} ==", file=sys.stderr, flush=True)
    child = os.fork()
    if child == 0:
        fuzz(name, TARGETS[name], folder, flags)
    return os.waitpid(child, 0)[1] == 0


def fuzz(name: str, target: Target, folder: Path, flags: list[str]) -> None:
    """Fuzz a target, and end the process.

    Args:
        flags: of libFuzzer.
    """
    place = folder / name
    corpus, words = place / "corpus", place / "words"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.first_inputs):
        (corpus / f"seed-{number}").write_bytes(seed)
    settings = [f"-max_len={target.max_bytes}", f"-artifact_prefix={place}/", "-timeout=60", "-rss_limit_mb=4096"]
    if target.words:
        words.write_text("".join(f'"{spell(word)}"\n' for word in target.words))
        settings.append(f"-dict={words}")

    def check(data: bytes) -> None:
        try:
            target.check(data)
        except BaseException:
            print(f"{name} fails for {data!r}", file=sys.stderr, flush=True)
            raise

    for function in (value for module in target.others for value in vars(module).values() if isinstance(value, FunctionType)):
        atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], *settings, *flags, str(corpus)], check)
    atheris.Fuzz()


def spell(word: str) -> str:
    """A word as a dictionary of libFuzzer has it."""
    return "".join(rf"\x{byte:02x}" for byte in word.encode())


if __name__ == "__main__":
    sys.exit(main())
