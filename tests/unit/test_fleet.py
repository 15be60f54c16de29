"""The learner's HTTP interface: which engines it is told to use, what it says of them, and when it is ready."""

from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient

from rlvr_api.status import Progress
from rlvr_api.wire import MAX_ENGINE_SET_BYTES, MAX_ENGINES
from rlvr_trainer.fleet import EngineFleet
from rlvr_trainer.progress import ProgressBoard, build_app
from rlvr_trainer.weights.engine_client import EngineHandle
from rlvr_trainer.weights.engine_state import EngineEvent, EngineState, EngineStatus

FIRST, SECOND = "http://job-rollout-0.job-rollout.default.svc:8000", "http://10.0.0.2:8000"


class RecordingPublisher:
    """Keeps what it is told, and says what the test wants of each engine."""

    def __init__(self):
        self.told, self.engine_states = [], {}

    def set_engines(self, handles):
        self.told.append(tuple(handles))

    def clean_engines(self):
        return tuple(name for name, state in self.engine_states.items() if state.status is EngineStatus.CLEAN)

    def states(self):
        return dict(self.engine_states)

    def state(self, name):
        return self.engine_states[name]


@contextmanager
def serving(urls):
    fleet = EngineFleet(urls)
    board = ProgressBoard("climb", 1, 10, fleet)
    with TestClient(build_app(board)) as client:
        yield fleet, board, client


def progress(client):
    return Progress.model_validate_json(client.get("/status").raise_for_status().content)


def test_engines_are_wanted_before_there_is_a_publisher_and_told_to_it_later():
    with serving({"rollout-0": FIRST}) as (fleet, _, client):
        assert progress(client).engines["rollout-0"].status == "dirty"
        assert client.put("/engines", json={"urls": {"rollout-0": FIRST, "rollout-1": SECOND}}).status_code == 200
        assert list(progress(client).engines) == ["rollout-0", "rollout-1"]
        assert (fleet.clean_engines(), fleet.is_settled("rollout-0"), fleet.url("rollout-1")) == ((), True, SECOND)
        publisher = RecordingPublisher()
        fleet.attach(publisher)
        assert publisher.told == [(EngineHandle("rollout-0", FIRST), EngineHandle("rollout-1", SECOND))]


def test_the_same_set_again_changes_nothing_and_an_empty_one_is_allowed():
    with serving({"rollout-0": FIRST}) as (fleet, _, client):
        publisher = RecordingPublisher()
        fleet.attach(publisher)
        for _ in range(2):
            assert client.put("/engines", json={"urls": {"rollout-0": FIRST}}).status_code == 200
        assert len(publisher.told) == 1
        assert client.put("/engines", json={"urls": {}}).status_code == 200
        assert publisher.told[-1] == ()
        assert progress(client).engines == {}
        assert (fleet.has_engines(), fleet.url("rollout-0")) == (False, None)


def test_the_progress_says_what_is_known_of_each_engine_on_one_line():
    with serving({"rollout-0": FIRST, "rollout-1": SECOND}) as (fleet, _, client):
        publisher = RecordingPublisher()
        fleet.attach(publisher)
        publisher.engine_states = {
            "rollout-0": EngineState(EngineStatus.CLEAN, version=7),
            "rollout-1": EngineState(EngineStatus.LOST, version=6, reason="it differs:\n" + 600 * "x", needs_restart=True),
        }
        told = client.get("/status").json()["engines"]
        assert told["rollout-0"] == {"status": "clean", "version": 7, "reason": "", "needsRestart": False}
        assert told["rollout-1"]["needsRestart"] is True
        assert told["rollout-1"]["reason"].startswith("it differs: xxx")
        assert len(told["rollout-1"]["reason"]) == 512


def test_what_an_engine_samples_before_it_is_lost_is_told_apart():
    fleet = EngineFleet({"rollout-0": FIRST})
    before = fleet.incarnation("rollout-0")
    fleet.note(EngineEvent("rollout-0", EngineState(EngineStatus.CLEAN, version=1), EngineStatus.DIRTY))
    assert fleet.incarnation("rollout-0") == before
    fleet.note(EngineEvent("rollout-0", EngineState(EngineStatus.LOST), EngineStatus.CLEAN))
    assert fleet.incarnation("rollout-0") > before


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"not json", 422, "not a set of engines"),
        (b'{"urls": {"rollout-0": "ftp://x"}}', 422, "urls.rollout-0"),
        (b'{"urls": {"rollout-0": "http://x/path"}}', 422, "urls.rollout-0"),
        (b'{"urls": {"Rollout_0": "http://x"}}', 422, "urls.Rollout_0"),
        (b'{"engines": {}}', 422, "urls"),
        (b'{"urls": {%s}}' % b",".join(b'"e-%d": "http://x:1"' % n for n in range(MAX_ENGINES + 1)), 422, "urls"),
        (b" " * (MAX_ENGINE_SET_BYTES + 1), 413, "larger than"),
    ],
)
def test_a_set_that_cannot_be_is_refused_in_words_and_changes_nothing(body, status, words):
    with serving({"rollout-0": FIRST}) as (fleet, _, client):
        answer = client.put("/engines", content=body)
        assert answer.status_code == status
        assert words in answer.json()["error"]
        assert fleet.handles() == (EngineHandle("rollout-0", FIRST),)


def test_it_is_alive_at_once_and_ready_only_after_the_preflight():
    with serving({}) as (_, board, client):
        board.update(message="loading the model")
        assert client.get("/healthz").status_code == 200
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["error"]) == (503, "the preflight has not passed yet: loading the model")
        board.ready.set()
        assert client.get("/readyz").status_code == 200
