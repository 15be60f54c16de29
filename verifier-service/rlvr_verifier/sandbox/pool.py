"""Slots that are kept warm, and what to do when one is lost.

    run: an idle slot -> its run -> lost? a fresh slot, once more -> lost again? that is the item's doing: it fails

An item that takes down two slots is not a fault of the machine, and must not be retried for ever by somebody else. A slot is replaced
after `ITEMS_PER_SLOT` items, so that nothing in it can grow without bound. Blocking; callers bring their threads.
"""

import logging
import queue
import threading
from contextlib import suppress

from rlvr_verifier.sandbox.probe import Level, ProbeReport
from rlvr_verifier.sandbox.slot import Item, Run, Slot, SlotLostError
from rlvr_verifier.sandbox.source import ChildSlots, HostedSlots, SlotSource

logger = logging.getLogger(__name__)

ITEMS_PER_SLOT = 20_000


class SandboxError(RuntimeError):
    """No slot could be started: nothing can be judged, and it is not the candidate's doing."""


class ItemLostError(RuntimeError):
    """The item took two slots down."""


class Sandbox:
    """A number of slots, and the level that one of them measured at the start.

    Args:
        source: where slots come from; None: children of this process.

    Raises:
        SandboxError: the first slot does not start.
    """

    def __init__(self, slots: int, source: SlotSource | None = None) -> None:
        self._slots = slots
        self._source: SlotSource = source or ChildSlots()
        self._idle: queue.LifoQueue[_Warm | None] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._live: set[Slot] = set()
        self._closed = False
        first = self._start()
        try:
            self.report: ProbeReport = self._source.measure(first.slot)
        except SlotLostError as error:
            self._end(first)
            raise SandboxError(f"the sandbox was lost while its level was measured: {error}") from error
        self.languages = {name: one for name, one in first.slot.languages.items() if name not in self.report.weak}
        self.missing: dict[str, str] = {
            **first.slot.missing,
            **{name: f"in its jail attacks succeed: {', '.join(sorted(more))}" for name, more in self.report.weak.items()},
        }
        self._idle.put(first)
        for _ in range(slots - 1):
            self._idle.put(None)
        logger.info("sandbox level %s, %d slots, Landlock ABI %d", self.level, slots, first.slot.landlock_abi)

    @property
    def level(self) -> Level:
        """As measured at the start."""
        return self.report.level

    @property
    def is_separate(self) -> bool:
        """Whether slots are somebody else's processes, in a container of their own."""
        return isinstance(self._source, HostedSlots)

    def run(self, item: Item) -> Run:
        """Run one item; waits for a slot.

        Raises:
            ItemLostError: it took down two slots.
            SandboxError: no slot starts.
        """
        for attempt in (1, 2):
            try:
                return self._once(item, fresh=attempt == 2)
            except SlotLostError as error:
                logger.warning("a slot of the sandbox was lost (try %d of 2): %s", attempt, error)
        raise ItemLostError("it took down two slots of the sandbox")

    def close(self) -> None:
        """End all slots; what runs in them is lost."""
        with self._lock:
            self._closed = True
            for slot in self._live:
                slot.kill()
        # A slot that is in use is closed by the thread that uses it, as soon as it notices.
        for _ in range(self._slots):
            with suppress(queue.Empty):
                warm = self._idle.get_nowait()
                if warm is not None:
                    self._end(warm)
                # Whoever waits for a slot is told, instead of waiting for ever.
                self._idle.put(None)

    def _once(self, item: Item, *, fresh: bool) -> Run:
        warm, usable = self._idle.get(), False
        try:
            if warm is not None and fresh:
                self._end(warm)
                warm = None
            if warm is None:
                warm = self._start()
            done = warm.slot.run(item)
            warm.items += 1
            usable = warm.items < ITEMS_PER_SLOT
        finally:
            if warm is not None and not usable:
                self._end(warm)
                warm = None
            self._idle.put(warm)
        return done

    def _start(self) -> "_Warm":
        try:
            slot = self._source.start()
        except (OSError, SlotLostError) as error:
            raise SandboxError(f"no slot of the sandbox starts: {error}") from error
        with self._lock:
            if self._closed:
                slot.close()
                raise SandboxError("the sandbox is closed")
            self._live.add(slot)
        return _Warm(slot)

    def _end(self, warm: "_Warm") -> None:
        with self._lock:
            self._live.discard(warm.slot)
        warm.slot.close()


class _Warm:
    """A slot, and how much it has run."""

    def __init__(self, slot: Slot) -> None:
        self.slot, self.items = slot, 0
