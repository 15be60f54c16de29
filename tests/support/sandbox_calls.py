"""Calls of functions in a slot, for tests of what slots are in."""

from rlvr_verifier.sandbox.canonical import encode
from rlvr_verifier.sandbox.pool import Sandbox
from rlvr_verifier.sandbox.protocol import read_transcript
from rlvr_verifier.sandbox.slot import Ending, Item


def call(sandbox: Sandbox, code: str, argument: object, seconds: float = 5.0) -> list[str]:
    """The canonical value that `f` of some code gives for one argument."""
    run = sandbox.run(Item(code, "f", [encode((argument,))], seconds=seconds))
    assert run.ending is Ending.EXITED
    return read_transcript(run.output, 1)
