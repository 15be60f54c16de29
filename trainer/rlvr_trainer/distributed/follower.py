"""`python -m rlvr_trainer.distributed.follower`: a process of a learner that does what the lead says, and nothing by itself.

    join -> load the model -> each command: the method of the same name, with the same arguments as on the lead -> Close

It opens no connection but to the lead and has no credentials. The lead alone is asked to stop; signals to do so that reach this process, as
from a terminal, are not its business. Without a lead it ends at once.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from rlvr_api.spec import RLVRJobSpec
from rlvr_trainer.distributed.commands import (
    Close,
    Command,
    Gather,
    Load,
    OpenRlvr,
    OpenSupervised,
    Score,
    TakeRlvrStep,
    TakeSupervisedStep,
)
from rlvr_trainer.distributed.ranks import Shard
from rlvr_trainer.distributed.rendezvous import JOIN_SECONDS, LOOPBACK, Inbox, join, leave
from rlvr_trainer.learner import Learner
from rlvr_trainer.policy import Policy
from rlvr_trainer.reverse_kl_learner import ReverseKlLearner
from rlvr_trainer.storage.rollouts import decode_groups
from rlvr_trainer.supervised_learner import SupervisedLearner
from rlvr_trainer.training import NonFiniteStepError

logger = logging.getLogger("rlvr_trainer.follower")

ORPHAN_POLL_SECONDS = 0.5
LEAD_SECONDS = 30.0
"""Time for the lead to end by itself where it must."""


class Follower:
    """The part of a learner that this process has."""

    def __init__(self, policy: Policy, spec: RLVRJobSpec) -> None:
        self._policy, self._spec = policy, spec
        self._learner: Learner | SupervisedLearner | None = None
        self._shards: dict[str, Shard] | None = None

    def follow(self, inbox: Inbox) -> None:
        """Obey until there is nothing more to do."""
        while not isinstance((command := inbox.take()).order, Close):
            try:
                self._obey(command)
            except NonFiniteStepError as error:
                logger.warning("%s", error)  # the lead has found the same, and decides

    def _obey(self, command: Command) -> None:
        if not isinstance(command.order, Gather):
            self._shards = None
        match command.order:
            case OpenRlvr(stage=stage):
                self._learner = Learner(self._policy, stage, self._spec)
            case OpenSupervised() as order:
                kind = ReverseKlLearner if order.towards_teacher else SupervisedLearner
                self._learner = kind(self._policy, order.optimizer, order.total_steps, self._spec.learner.tokens_per_micro_batch)
            case TakeRlvrStep() as order:
                assert isinstance(self._learner, Learner)
                self._learner.off_policy = order.off_policy
                groups = tuple(decode_groups(pa.BufferReader(command.payload), "the lead's message"))
                self._learner.step(groups, order.current_step, order.version_steps.__getitem__)
            case TakeSupervisedStep(place=place):
                assert isinstance(self._learner, SupervisedLearner)
                self._learner.step(self._learner.example_lists.validate_json(command.payload), place)
            case Gather(name=name):
                self._shards = self._shards or self._find_shards()
                self._policy.ranks.gather(self._shards[name])
            case Load(step=None):
                self._policy.take_tensors(None)
            case Load(step=int(step), optimizer=state):
                assert self._learner is not None
                self._learner.trainer.take_tensors(None, state, step)
            case Score() as order:
                self._policy.sequence_logprobs(order.prompt_ids, order.completion_ids, order.cast_dtype)

    def _find_shards(self) -> dict[str, Shard]:
        state = self._learner.trainer.parts().values() if self._learner is not None else ()
        everything = (*self._policy.all_shards().values(), *state)
        return {part.name: part for part in everything if isinstance(part, Shard)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Follow the lead until it says that there is nothing more to do."""
    options = _options().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s %(levelname)s rank {options.rank}: %(message)s", stream=sys.stderr
    )  # fmt: skip
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(options.lead,), name="orphan-watch", daemon=True).start()
    spec, ranks, inbox = join(options.host, options.port, options.rank, options.join_seconds)
    try:
        policy = Policy.load(options.model, spec, ranks)
    except (OSError, ValueError) as error:
        # The lead finds the same, and knows what it means for the job: it is not to find this process gone before.
        logger.error("the model cannot be loaded: %s", error)
        threading.Event().wait(LEAD_SECONDS)
        return 1
    Follower(policy, spec).follow(inbox)
    leave()
    return 0


def _end_with(lead: int) -> None:
    """End this process once its parent is not the lead any more, whatever else it waits for."""
    while os.getppid() == lead:
        time.sleep(ORPHAN_POLL_SECONDS)
    os._exit(1)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rank", type=int, required=True, help="this process's, from 1")
    parser.add_argument("--host", default=LOOPBACK, help="of the lead's store")
    parser.add_argument("--join-seconds", type=float, default=JOIN_SECONDS, help="longest wait for the lead")
    parser.add_argument("--port", type=int, required=True, help="of the lead's store")
    parser.add_argument("--lead", type=int, required=True, help="process id of its parent: the lead, or what stands for it on another node")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    return parser


if __name__ == "__main__":
    sys.exit(main())
