"""A distribution with environments, as somebody else would write and install it."""

from pathlib import Path

SOURCE = """
import hashlib

from rlvr_api.wire import CanaryTag, Message
from rlvr_verifier.environments.base import NoSuchTaskError, SampledTask, Score, failed, passed
from rlvr_verifier.integrity.probe import COMMON, Probe


class Reversal:
    version, levels = "3", (0, 4)

    def __init__(self, name, options, read):
        unknown = set(options) - {"salt", "dataset"}
        if unknown:
            raise ValueError(f"unknown {sorted(unknown)}; there are salt and dataset")
        self.salt = options.get("salt", "x")
        self.words = read(options["dataset"]).decode().split() if "dataset" in options else ["reference"]

    def held_out_tasks(self, level):
        return 3

    def sample(self, split, seed, level):
        if split == "heldOut" and seed >= 3:
            raise NoSuchTaskError("there are three")
        word = self.words[seed % len(self.words)] + f"{self.salt}{split}{seed}" + "abc" * level
        key = hashlib.sha256(word.encode()).hexdigest()[:16]
        return SampledTask(key, (Message(role="user", content=f"Reverse {word}"),), {"answer": word[::-1]})

    def score(self, payload, completion, truncated):
        return passed("it is reversed") if completion.strip() == payload["answer"] else failed("it is not reversed")

    def probes(self, payload):
        yield from COMMON
        yield Probe("reversed", CanaryTag.RIGHT, str(payload["answer"]))
        yield Probe("echo", CanaryTag.EXPLOIT, str(payload["answer"])[::-1])


"""
CARELESS = """
from {module} import Reversal
from rlvr_verifier.environments.base import Score, failed, passed


class Careless(Reversal):
    def score(self, payload, completion, truncated):
        if completion == "number":
            return 1.0
        if completion == "much":
            return Score(passed("").status, 7.0, "")
        if completion == "mute":
            return Score("infra_error", 0.0, "")
        if completion == "raise":
            raise RuntimeError("not " + payload["answer"])
        return passed("") if completion and eval(repr(completion)) else failed("")

    def sample(self, split, seed, level):
        if seed == 1:
            raise RuntimeError("the answer is cba")
        return "a task" if seed == 2 else super().sample(split, seed, level)


class Half:
    version = 3


def open_half(name, options, read):
    return Half()


def break_down(name, options, read):
    raise RuntimeError("no room")
"""
ENTRIES = """[rlvr.environments]
reversal = {module}:Reversal
careless = {module}_careless:Careless
half = {module}_careless:open_half
broken = {module}_careless:break_down
gone = {module}_nowhere:nothing
"""


def write_plugin(folder: Path, module: str = "reversal_environments") -> Path:
    """Write the package and its metadata; returns the folder that `sys.path` needs."""
    site = folder / module
    metadata = site / f"{module}-1.2.dist-info"
    metadata.mkdir(parents=True)
    (site / f"{module}.py").write_text(SOURCE)
    (site / f"{module}_careless.py").write_text(CARELESS.format(module=module))
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(ENTRIES.format(module=module))
    return site
