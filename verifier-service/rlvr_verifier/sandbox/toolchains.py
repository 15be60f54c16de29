"""Compilers and runtimes beside Python: what is there, and the commands by which one program is made and run.

    source -> step -> ... -> step -> executable, each a file in memory: a step is one process that reads its standard input and writes its
    standard output; the driver that would start several of them, and want a folder to write, is asked once, at the start, what it would do

So compiling needs no more than running does: no writable path, no second process. Programs in C and C++ are linked statically and may read
no file; Go's are so by themselves. On the untrusted side, standard library alone. Not covered: modules of npm; C++ threads.

Imports of a few functions are inside them: a zygote without other languages does without, since each of its forks would pay for them.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

PROBE_SECONDS = 60.0
SOURCE, PRODUCT = "/proc/self/fd/0", "/proc/self/fd/1"
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
MIB = 1 << 20
NODE_SOURCE = 3
"""The descriptor from which Node reads the program: its standard input is the test's."""
_NODE_MAIN = (
    "const M=require('module'),m=new M('.',null);m.filename='/solution.js';m.paths=[];process.mainModule=m;"
    f"const s=require('fs').readFileSync({NODE_SOURCE},'utf8');require('fs').closeSync({NODE_SOURCE});m._compile(s,m.filename)"
)
"""As `node solution.js` would, with `require.main === module`."""


class ToolchainMissingError(RuntimeError):
    """A language cannot be offered; says what to install."""


@dataclass(frozen=True)
class Command:
    """One process: what it executes, and what it may read while it does."""

    argv: tuple[str, ...]
    """Empty: the program that was made is executed."""
    env: Mapping[str, str] = field(default_factory=dict)
    readable: tuple[str, ...] = ()
    executable: tuple[str, ...] = ()
    threads: int = 0
    """How many it may start, all in all."""
    own_bytes: int = 0
    """Address space that it takes for itself, on top of what the program is given."""


@dataclass(frozen=True)
class Toolchain:
    """How programs in one language are made and run."""

    version: str
    steps: tuple[Command, ...]
    run: Command


def find(language: str) -> Toolchain:
    """The toolchain of a language on this machine.

    Raises:
        ToolchainMissingError: it is not there, or is none that is known.
    """
    import subprocess

    try:
        return _FINDERS[language]()
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolchainMissingError(f"its tools do not run: {error}") from error


def _native(name: str, kind: str, standard: str) -> Toolchain:
    import shlex

    _require_proc()
    driver = _which(name, "install gcc, g++ and libc6-dev")
    flags = ["-x", kind, "-O2", f"-std={standard}", "-static", "-fno-use-linker-plugin", "-w", "-", "-lm", "-o", "/product"]
    said = _ask([driver, "-###", *flags], errors=True)
    lines = [shlex.split(line) for line in said.splitlines() if line.startswith(" ")]
    if len(lines) != 3:
        raise ToolchainMissingError(f"{driver} would run {len(lines)} programs, not a compiler, an assembler and a linker; install GNU's")
    compiler, assembler, linker = lines
    between = (compiler[compiler.index("-o") + 1], assembler[assembler.index("-o") + 1])
    compiler = _replace(compiler, {between[0]: "-"})
    assembler = _replace(assembler, {between[1]: PRODUCT, between[0]: "--"})
    linker = _replace(linker, {"/product": PRODUCT, between[1]: SOURCE})
    linker[0] = _ask([driver, "-print-prog-name=ld"])
    commands = []
    for argv in (compiler, assembler, linker):
        argv[0] = os.path.realpath(_which(argv[0], "install binutils and libc6-dev"))
        commands.append(Command(tuple(argv), _ENV, (*LIBRARIES, "/usr/include", "/usr/local/include"), (argv[0], *_loaders())))
    version = f"gcc {_ask([driver, '-dumpfullversion'])}"
    return Toolchain(version, tuple(commands), Command(()))


def _go() -> Toolchain:
    _require_proc()
    driver = _which("go", "install golang-1.19-go, as of Debian 12")
    root = os.path.realpath(_ask([driver, "env", "GOROOT"]))
    version, tools, packages = _ask([driver, "env", "GOVERSION"]), f"{root}/pkg/tool/linux_amd64", f"{root}/pkg/linux_amd64"
    if not os.path.isfile(f"{packages}/fmt.a"):
        advice = "GODEBUG=installgoroot=all go install std"
        raise ToolchainMissingError(f"{version} in {root} has no compiled standard library; make it with `{advice}`, as root")
    env = {**_ENV, "GOROOT": root, "GOMAXPROCS": "1"}
    compiler = (f"{tools}/compile", "-o", PRODUCT, "-p", "main", "-complete", "-c", "1", SOURCE)
    linker = (f"{tools}/link", "-o", PRODUCT, "-s", "-w", SOURCE)
    steps = tuple(Command(argv, env, (root,), (argv[0],), threads=24, own_bytes=1024 * MIB) for argv in (compiler, linker))
    return Toolchain(version, steps, Command((), {**_ENV, "GOMAXPROCS": "1"}, threads=24, own_bytes=1024 * MIB))


def _javascript() -> Toolchain:
    node = os.path.realpath(_which("node", "install nodejs 18 or newer"))
    version = f"node {_ask([node, '--version'])}"
    argv = (node, "--v8-pool-size=1", "-e", _NODE_MAIN)
    readable = (*LIBRARIES, node, "/usr/share/nodejs", "/etc/ssl/openssl.cnf", "/usr/share/zoneinfo", "/dev/urandom")
    env = {**_ENV, "UV_THREADPOOL_SIZE": "1", "NODE_OPTIONS": ""}
    return Toolchain(version, (), Command(argv, env, readable, (node, *_loaders()), threads=24, own_bytes=1536 * MIB))


def _require_proc() -> None:
    if not os.path.exists(SOURCE):
        raise ToolchainMissingError("its compiler needs /proc, which slots in namespaces of their own have not got in a pod (level L2)")


def _which(name: str, advice: str) -> str:
    import shutil

    found = shutil.which(name, path=_ENV["PATH"])
    if found is None:
        raise ToolchainMissingError(f"there is no {name}; {advice}, or use a verifier image with toolchains")
    return found


def _ask(command: list[str], *, errors: bool = False) -> str:
    import subprocess

    # The driver of gcc makes files of the names that it would use, if only to say them; in a pod nothing else can be written.
    env = {**_ENV, "HOME": "/tmp", "TMPDIR": "/dev/shm", "GOTOOLCHAIN": "local", "GOENV": "off", "GOFLAGS": ""}  # noqa: S108
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True)
    return done.stderr if errors else done.stdout.strip()


def _replace(words: list[str], changes: Mapping[str, str]) -> list[str]:
    return [changes.get(word, word) for word in words]


def _loaders() -> tuple[str, ...]:
    return tuple(path for path in ("/lib64/ld-linux-x86-64.so.2",) if os.path.exists(path))


_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
_FINDERS: Mapping[str, Callable[[], Toolchain]] = {
    "c": lambda: _native("gcc", "c", "gnu17"),
    "cpp": lambda: _native("g++", "c++", "gnu++17"),
    "go": _go,
    "javascript": _javascript,
}
