"""Publishing waits for engines: with a bound while some are wanted, without one while none is."""

import time
from types import SimpleNamespace

import pytest

from rlvr_trainer.run import NoEngineError, Run
from rlvr_trainer.weights.engine_state import EngineState, EngineStatus

LIMIT_SECONDS = 0.3


class Publisher:
    """Engines that are wanted, and clean, from some time on."""

    def __init__(self, wanted_after, clean_after):
        self.began, self.wanted_after, self.clean_after = time.monotonic(), wanted_after, clean_after

    def passed(self, seconds):
        return time.monotonic() - self.began >= seconds

    def handles(self):
        return ("rollout-0",) if self.passed(self.wanted_after) else ()

    def clean_engines(self):
        return ("rollout-0",) if self.passed(self.clean_after) else ()

    def states(self):
        return {"rollout-0": EngineState(EngineStatus.LOST, reason="connection refused")}

    def publish(self, tensors, version):
        return f"report of {version}"


def publish(publisher):
    deadlines = SimpleNamespace(provisioning_seconds=LIMIT_SECONDS)
    run = SimpleNamespace(
        context=SimpleNamespace(job=SimpleNamespace(spec=SimpleNamespace(deadlines=deadlines))),
        versions=SimpleNamespace(publish=lambda step: step),
        publisher=publisher,
        board=SimpleNamespace(update=lambda **values: None),
        check=lambda: None,
        _weights=dict,
    )
    return Run.publish(run, 3)


def test_engines_that_are_wanted_and_do_not_come_end_the_wait_with_their_reasons():
    with pytest.raises(NoEngineError, match=r"no engine took weight version 3: rollout-0 is lost \(connection refused\)"):
        publish(Publisher(wanted_after=0.0, clean_after=60.0))


def test_a_time_without_wanted_engines_does_not_count():
    assert publish(Publisher(wanted_after=3 * LIMIT_SECONDS, clean_after=3 * LIMIT_SECONDS + 0.05)) == "report of 3"
