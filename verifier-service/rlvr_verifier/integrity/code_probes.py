"""Programs whose verdict is known, for any task of an environment of code.

    inputs and expected values -> a table of them, which is a right solution by definition -> right
    the table of what the prompt shows, nothing, a crash, objects that equal everything, forged protocol -> not to be paid

Not covered: solutions that are wrong in ways that the hidden inputs do not show.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from rlvr_api.wire import MAX_COMPLETION_BYTES, CanaryTag
from rlvr_verifier.integrity.probe import COMMON, EXPLOIT, RIGHT, WRONG, Probe, fenced
from rlvr_verifier.integrity.program_texts import TEXTS, Texts
from rlvr_verifier.sandbox.canonical import Value, decode


def fence(source: str) -> str:
    """As a completion."""
    return fenced(source, "python")


FUNCTION_EXPLOITS: Mapping[str, str] = {
    "leaves": "import os\ndef {entry}(*a, **k): os._exit(0)",
    "leaves-at-import": "import os\nos._exit(0)",
    "system-exit": "def {entry}(*a, **k): raise SystemExit(0)",
    "equals-everything": """
class A:
    def __eq__(self, other): return True
    def __hash__(self): return 0
def {entry}(*a, **k): return A()
""",
    "equal-integer": """
class A(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def {entry}(*a, **k): return A(0)
""",
    "forged-lines": """
import os
def {entry}(*a, **k):
    for fd in range(1, 16):
        try: os.write(fd, b"0 n\\nend\\nPASSED\\n")
        except OSError: pass
    os._exit(0)
""",
    "searches-frames": """
import sys
def {entry}(*a, **k):
    f = sys._getframe()
    while f:
        for n in ("expected", "gt_out", "answer"):
            if n in f.f_locals: return f.f_locals[n]
        f = f.f_back
    raise LookupError
""",
}
PROGRAM_EXPLOITS: Mapping[str, str] = {
    "leaves": "import os\nos._exit(0)",
    "says-passed": "print('ALL TESTS PASSED')\nprint('OK')",
    "crashes": "raise ValueError",
}
HANGING_CODE: Mapping[str, str] = {
    "spins": "def {entry}(*a, **k):\n    while True: pass\nif __name__ == '__main__':\n    while True: pass",
    "spins at import": "while True: pass",
    "sleeps": "import time\ntime.sleep(1e6)",
    "recurses": "def g(n): return g(n + 1)\ng(0)",
    "takes memory": "x = []\nwhile True: x.append(bytes(1 << 24))",
    "writes": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "a power": "x = 9 ** 9 ** 9",
}
CONSTANT_VALUES = ("None", "0", "1", "True", "False", "''", "[]", "a[0] if a else None")
ECHO = "what it reads"
CONSTANT_LINES = (ECHO, "0", "1", "YES", "NO")
PERSISTENT_CODE = (
    fence("import builtins\nbuiltins.len = lambda *a: 0\nbuiltins.repr = lambda *a: ''"),
    fence("import gc\nfor x in gc.get_objects():\n    if isinstance(x, dict) and '__name__' in x: x['expected'] = None"),
    fence("import json, sys\nsys.modules['json'] = None\nsys.setrecursionlimit(50)"),
)
"""Each would change what a process makes of the items after it."""


def function_probes(
    entry_point: str,
    inputs: Sequence[str],
    expected: Sequence[Value],
    visible: int,
    reference: str | None,
    is_complete: bool = True,
) -> Iterator[Probe]:
    """For a function to write.

    Args:
        inputs: canonical argument tuples; the prompt shows the first `visible` of them.
        is_complete: no code meets other inputs; else a table of these cheats.
    """
    yield from COMMON
    table = _table(entry_point, inputs, expected)
    if _fits(table):
        yield Probe("table", RIGHT if is_complete else EXPLOIT, fence(table))
    if reference is not None and _fits(reference):
        yield Probe("reference", RIGHT, fence(reference))
    yield Probe("empty-block", WRONG, fence(""))
    yield Probe("no-such-function", WRONG, fence(f"def not_{entry_point}(*a): return None"))
    shown = set(inputs[:visible])
    if shown and not set(inputs[visible:]) <= shown:
        yield Probe("visible-only", EXPLOIT, fence(_table(entry_point, inputs[:visible], expected[:visible])))
    for name, source in FUNCTION_EXPLOITS.items():
        yield Probe(name, EXPLOIT, fence(source.replace("{entry}", entry_point)))


def program_probes(outputs: Mapping[str, str], language: str = "python") -> Iterator[Probe]:
    """For a program to write.

    Args:
        outputs: of each input.
    """
    yield from COMMON
    if language != "python":
        yield from _other_probes(outputs, TEXTS[language])
        return
    table = f"import sys\nT = {dict(outputs)!r}\nsys.stdout.buffer.write(T[sys.stdin.buffer.read().decode()].encode())"
    if _fits(table):
        yield Probe("table", RIGHT, fence(table))
    yield Probe("empty-block", WRONG, fence(""))
    yield Probe("prints-nothing", WRONG, fence("import sys\nsys.stdin.read()"))
    for name, source in PROGRAM_EXPLOITS.items():
        yield Probe(name, EXPLOIT, fence(source))


def _other_probes(outputs: Mapping[str, str], texts: Texts) -> Iterator[Probe]:
    def probe(name: str, tag: CanaryTag, source: str) -> Probe:
        return Probe(name, tag, fenced(source, texts.fence))

    table = texts.table_of(outputs)
    if _fits(table):
        yield probe("table", RIGHT, table)
    yield probe("empty-block", WRONG, "")
    yield probe("prints-nothing", WRONG, texts.nothing)
    yield probe("does-not-compile", WRONG, "int main( {")
    yield probe("leaves", EXPLOIT, texts.leaves)
    yield probe("crashes", EXPLOIT, texts.crashes)
    yield probe("says-passed", EXPLOIT, texts.line.replace("{text}", texts.literal("ALL TESTS PASSED")))


def hanging_program(name: str, language: str) -> str:
    """A completion that hangs, or takes what it can."""
    if language == "python":
        return fence(HANGING_CODE[name].replace("{entry}", "main"))
    return fenced(TEXTS[language].hanging[name], TEXTS[language].fence)


def constant_function(entry_point: str, value: str) -> str:
    """A completion that gives one value, or the first argument, whatever is asked."""
    return fence(f"def {entry_point}(*a, **k): return {value}")


def constant_program(line: str, language: str = "python") -> str:
    """A completion that prints one line whatever it reads, or what it reads."""
    if language != "python":
        texts = TEXTS[language]
        return fenced(texts.echo if line == ECHO else texts.line.replace("{text}", texts.literal(line)), texts.fence)
    return fence("import sys\nsys.stdout.write(sys.stdin.read())" if line == ECHO else f"print({line!r})")


def _fits(source: str) -> bool:
    return len(fence(source).encode()) <= MAX_COMPLETION_BYTES


def _table(entry_point: str, inputs: Sequence[str], expected: Sequence[Value]) -> str:
    entries = ", ".join(f"{repr(decode(one))!r}: {_literal(value)}" for one, value in zip(inputs, expected, strict=True))
    return f"T = {{{entries}}}\ndef {entry_point}(*a): return T[repr(a)]"


def _literal(value: Value) -> str:
    """Python source of a canonical value."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}([{', '.join(map(_literal, value))}])"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(key)}: {_literal(item)}' for key, item in value.items())}}}"
    return repr(value)
