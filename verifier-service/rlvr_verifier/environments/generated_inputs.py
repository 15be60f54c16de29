"""Inputs beyond a row's own, made anew for each completion, with the values that the row's reference gives them.

    keyed hash of the code -> one of `BATCHES` batches of a row -> generate(seed) and then the reference, both in the sandbox -> kept

The key is the row with its hidden inputs and reference, which the model never sees: it cannot tell which inputs its code will meet, and a
table of all inputs that anybody has written down is wrong. The same code always meets the same ones, so verdicts can be kept, repeated and
audited. Pairs whose value has NaN, which equals nothing, are left out.
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rlvr_verifier.environments.base import Score
from rlvr_verifier.sandbox.canonical import NotCanonicalError, Value, encode, equal

BATCHES = 64
"""Of a row. A batch costs two runs in the sandbox when the first code meets it."""
BATCH_INPUTS = 16
KEPT_BATCHES = 4_096
ENTRY_POINT = "generate"
Call = Callable[[str, str, Sequence[str]], list[Value] | Score]
"""Source, function and canonical argument tuples -> values, or why there are none."""


class GeneratorError(ValueError):
    """A row's generator or reference gives no inputs or values; says why, and nothing of them."""


@dataclass(frozen=True, slots=True)
class Generator:
    """What makes inputs of one row, and their values."""

    source: str
    """Defines `generate(seed)`, which returns a list of arguments."""
    reference: str
    entry_point: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs as canonical argument tuples, and what the function must return for each."""

    inputs: tuple[str, ...]
    expected: tuple[Value, ...]


class GeneratedInputs:
    """Batches of all rows of an environment."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._batch = lru_cache(KEPT_BATCHES)(self._make)

    def batch(self, generator: Generator, number: int) -> Batch:
        """One batch.

        Raises:
            GeneratorError: there is none.
            ItemLostError, SandboxError: as `Sandbox.run` does.
        """
        return self._batch(generator, number)

    def _make(self, generator: Generator, number: int) -> Batch:
        seeds = [encode((number * BATCH_INPUTS + index,)) for index in range(BATCH_INPUTS)]
        made = self._values(generator.source, ENTRY_POINT, seeds, "generator")
        if not all(isinstance(arguments, list | tuple) for arguments in made):
            raise GeneratorError("its generator returns something else than a list of arguments")
        inputs = tuple(dict.fromkeys(encode(tuple(arguments)) for arguments in made if isinstance(arguments, list | tuple)))
        values = self._values(generator.reference, generator.entry_point, inputs, "reference on generated inputs")
        pairs = [(one, value) for one, value in zip(inputs, values, strict=True) if equal(value, value, 0.0)]
        return Batch(tuple(one for one, _ in pairs), tuple(value for _, value in pairs))

    def _values(self, source: str, entry_point: str, inputs: Sequence[str], whose: str) -> list[Value]:
        try:
            found = self._call(source, entry_point, inputs)
        except NotCanonicalError as error:
            raise GeneratorError(f"its {whose}: {error}") from None
        if isinstance(found, Score):
            raise GeneratorError(f"its {whose} fails: {found.reason}")
        return found


def batch_number(key: bytes, code: str) -> int:
    """Which batch a code meets.

    Args:
        key: known to nobody who writes the code.
    """
    return int.from_bytes(hmac.digest(key, code.encode(errors="surrogatepass"), hashlib.sha256)[:4]) % BATCHES
