"""What a weight transport is: the interfaces of its two ends."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rlvr_trainer.weights.protocol import Acknowledgement, Carrier, Invitation, Layout, UpdateHeader

if TYPE_CHECKING:  # engines import this file, and need no S3 client
    from rlvr_trainer.storage.client import ObjectStore

OpenStore = Callable[[], "ObjectStore"]
"""The job's folder in the object store, for a transport that needs one."""

Stage = Callable[[Iterable[Sequence[tuple[str, torch.Tensor]]]], bool]
"""Takes the tensors of an update, one bucket after the other; views of staging buffers that stay as they are until the next.

True: these buffers are the weights from the swap on, and stay as they are until the swap after that.
"""

FindDead = Callable[[Sequence[int]], Sequence[int]]
"""Which of these silent ranks are known to be dead."""


def no_store() -> "ObjectStore":
    """For transports that need none."""
    raise ValueError("this transport needs the job's object store")


class Sender(Protocol):
    """The learner's end of one epoch's group; it is rank 0."""

    def await_members(self, ranks: Sequence[int], find_dead: FindDead) -> Mapping[int, Acknowledgement]:
        """Wait until the ranks have answered the invitation."""

    def connect(self) -> None:
        """Form the group with the ranks that answered."""

    def send(self, tensors: Mapping[str, torch.Tensor], header: UpdateHeader, on_last_bucket: Callable[[], None]) -> int:
        """Send all tensors of the layout and return the bytes; `on_last_bucket` is called once, when engines may pause for their swap."""

    def await_staged(self, sequence: int, ranks: Sequence[int], find_dead: FindDead) -> Mapping[int, Acknowledgement]:
        """Wait until the ranks hold the weights of an update, or failed to get them."""

    def await_settled(self, sequence: int, ranks: Sequence[int], find_dead: FindDead) -> Mapping[int, Acknowledgement]:
        """Wait until the ranks have nothing left to do after the swap."""

    def abort(self) -> None:
        """End what the group is doing, for all members, soon. Safe from any thread."""

    def close(self) -> None:
        """Leave the group; it does not wait."""


class Rendezvous(Protocol):
    """Where groups meet; it lives as long as the learner."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that go into invitations."""

    def carrier(self, device: torch.device) -> Carrier:
        """What moves the bytes of tensors on `device`."""

    def open_group(self, attempt: int, epoch: int, world_size: int, layout: Layout, device: torch.device) -> Sender:
        """The learner's end of a new group."""

    def close(self) -> None:
        """Close the store."""


class Receiver(Protocol):
    """A worker's end of one epoch's group."""

    def start(self) -> None:
        """Join the group and receive updates, on a thread of its own."""

    def staged_header(self) -> UpdateHeader | None:
        """The update whose weights are complete and wait for their swap."""

    def swap_staged(self, header: UpdateHeader, swap: Callable[[], None]) -> bool:
        """Call `swap` if that update is staged, and say whether it is. It counts as staged no more, for its memory is exchanged."""

    def report_settled(self, header: UpdateHeader, error: str) -> None:
        """Tell the learner that the work after a swap is done; an empty error is success."""

    def close(self) -> None:
        """Leave the group; safe in any state, and it does not wait for the thread."""


class Transport(Protocol):
    """What the module of a transport defines."""

    def open_rendezvous(self, advertised_host: str, settings: Any, timeout_seconds: float, open_store: OpenStore) -> Rendezvous:
        """The learner's end."""

    def make_receiver(self, invitation: Invitation, rank: int, device: torch.device, stage: Stage, previous: Any) -> Receiver:
        """A worker's end. `stage` gets the tensors of each bucket as it arrives; `previous` is the receiver that this one replaces."""
