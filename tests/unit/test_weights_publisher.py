"""The publisher against engines that speak vLLM's weight routes over HTTP, with the real transport behind them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from blob_server import BlobServer
from opentelemetry.sdk.trace import TracerProvider

from rlvr_api.weight_sync import ObjectStoreDeltas, TorchDistributed, transport_kind
from rlvr_trainer.weights import load_transport
from rlvr_trainer.weights.engine_client import EngineClient, EngineHandle, open_http
from rlvr_trainer.weights.engine_state import EngineStatus
from rlvr_trainer.weights.follower import WeightFollower
from rlvr_trainer.weights.probe import Probe
from rlvr_trainer.weights.protocol import Invitation, SwapOrder
from rlvr_trainer.weights.publisher import WeightPublisher, highest_version

PROMPT = (3, 1, 4)


def make_tensors(seed, count=6, size=1000):
    generator = torch.Generator().manual_seed(seed)
    return {f"layers.{index}.weight": torch.randn(size, generator=generator) for index in range(count)}


def logprobs_of(tensors, tokens):
    """A "model" whose log-probs depend on every weight."""
    mean = sum(tensor.double().mean().item() for tensor in tensors.values())
    return [-1.0 - abs(mean) * token for token in tokens]


@dataclass
class FakeEngine:
    """vLLM's state machine of weight updates, as its workers and its API server have it together."""

    port: int = 0
    transport: str = "torch_distributed"
    on_bucket: object = lambda bucket: None
    hooks: dict = field(default_factory=dict)
    """Called before a route is served; what it returns, if anything, is the answer's status."""

    def __post_init__(self):
        self.version, self.paused, self.session_open, self.live = "default", False, False, {}
        self.calls, self.headers, self.sampled_with = [], [], []
        self.stale = False
        self._arriving = {}
        self.follower = WeightFollower(load_transport(self.transport), self, torch.device("cpu"))
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler_for(self))
        self.server.daemon_threads = False
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def handle(self):
        return EngineHandle(f"engine-{self.port}", f"http://127.0.0.1:{self.port}")

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.follower.close()
        self.thread.join()

    def stage(self, buckets):
        self._arriving = {}
        for bucket in buckets:
            self.on_bucket(bucket)
            self._arriving |= {name: tensor.clone() for name, tensor in bucket}

    def swap(self):
        assert self.paused, "an engine that generates must not be touched"
        self.live = self.live if self.stale else self._arriving

    def settle(self):
        pass

    def answer(self, method, path, body):
        route = path.split("?")[0]
        status = self.hooks.get(route, lambda engine: None)(self)
        self.calls.append(path)
        if status is not None:
            return status, {"error": "as the test wants it"}
        try:
            return 200, getattr(self, "do_" + route.strip("/").replace("/", "_"))(body) or {}
        except (ValueError, RuntimeError) as error:
            return 500, {"error": str(error)}

    def do_weight_info(self, body):
        return {"weight_version": self.version}

    def do_get_world_size(self, body):
        return {"world_size": 1}

    def do_init_weight_transfer_engine(self, body):
        self.follower.accept(Invitation.model_validate(body["init_info"]), 0)

    def do_pause(self, body):
        self.paused = True

    def do_resume(self, body):
        self.paused = False

    def do_start_weight_update(self, body):
        if self.session_open:
            raise RuntimeError("start_weight_update called while a weight update is already active")
        self.session_open = True

    def do_update_weights(self, body):
        if not self.session_open:
            raise RuntimeError("start_weight_update must be called before update_weights")
        try:
            self.follower.order(SwapOrder.model_validate(body["update_info"]))
        except ValueError:
            self.session_open = False
            raise

    def do_finish_weight_update(self, body):
        if not self.session_open:
            raise RuntimeError("finish_weight_update called without a matching start_weight_update")
        self.follower.swap()
        self.session_open, self.version = False, body["weight_version"]

    def do_reset_prefix_cache(self, body):
        return {"success": True}

    def do_abort_requests(self, body):
        return {"status": "aborted"}

    def do_inference_v1_generate(self, body):
        assert not self.paused, "a paused engine answers no prompt"
        tokens = list(range(1, 1 + body["sampling_params"]["max_tokens"]))
        self.sampled_with.append(self.version)
        content = [{"logprob": value} for value in logprobs_of(self.live, tokens)]
        spans = [{"version": self.version, "start": 0, "end": len(tokens)}]
        return {"choices": [{"token_ids": tokens, "logprobs": {"content": content}, "weight_versions": spans, "finish_reason": "length"}]}


def _handler_for(engine):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self):
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            engine.headers.append(dict(self.headers))
            status, content = engine.answer(self.command, self.path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = serve  # noqa: N815

        def log_message(self, *args):
            pass

    return Handler


class Rig:
    """Engines, and publishers over them."""

    def __init__(self, stack, transport):
        self.stack, self.events, self.tensors, self.transport = stack, [], make_tensors(0), transport
        self.store = BlobServer()
        stack.callback(self.store.close)

    def engine(self, **settings):
        engine = FakeEngine(transport=transport_kind(self.transport), **settings)
        self.stack.callback(lambda: engine.thread.is_alive() and engine.stop())
        return engine

    def publisher(self, handles, attempt=1, timeout_seconds=10.0, watch_seconds=3600.0):
        probe = Probe(PROMPT, lambda prompt, tokens: logprobs_of(self.tensors, tokens), tolerance=1e-6)
        return self.stack.enter_context(
            WeightPublisher(
                handles, transport=self.transport, timeout_seconds=timeout_seconds, probe=probe,
                advertised_host="127.0.0.1", attempt=attempt, engine_dtype="float32", on_event=self.events.append,
                watch_seconds=watch_seconds, open_store=lambda: self.store,
            )
        )  # fmt: skip

    def publish(self, publisher, version, seed=None):
        self.tensors = make_tensors(version if seed is None else seed)
        return publisher.publish(self.tensors, version)

    def holds(self, engine, version):
        return engine.version == str(version) and all(torch.equal(engine.live[name], tensor) for name, tensor in self.tensors.items())

    def statuses(self, name):
        return [event.state.status for event in self.events if event.engine == name]


@pytest.fixture(params=[TorchDistributed(bucket_mib=1), ObjectStoreDeltas(bucket_mib=1)], ids=transport_kind)
def rig(request):
    with ExitStack() as stack:
        yield Rig(stack, request.param)


def wait_until(condition, what, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def test_every_version_reaches_every_engine_which_serves_only_after_its_probe(rig):
    engines = [rig.engine() for _ in range(3)]
    publisher = rig.publisher([engine.handle for engine in engines])
    assert publisher.clean_engines() == ()
    for version in (4, 5, 9):
        report = rig.publish(publisher, version)
        assert report.dropped == {}
        assert set(publisher.clean_engines()) == {engine.handle.name for engine in engines}
        assert all(rig.holds(engine, version) and not engine.paused for engine in engines)
        assert [engine.sampled_with[-1] for engine in engines] == [str(version)] * 3
        assert report.probe_gap_max <= 1e-6
        assert report.size_bytes >= 6 * 4000
        assert 0 < report.broadcast_seconds < report.update_seconds < report.total_seconds
        assert set(report.paused_seconds) == set(report.engines) == set(publisher.clean_engines())
    name = engines[0].handle.name
    assert rig.statuses(name) == [EngineStatus.DIRTY, EngineStatus.CLEAN] * 3
    assert publisher.state(name).version == 9
    assert publisher.state(name).epoch == 1
    swap = [call.split("?")[0] for call in engines[0].calls[-7:]]
    assert swap == [
        "/pause", "/start_weight_update", "/reset_prefix_cache", "/update_weights", "/finish_weight_update", "/resume",
        "/inference/v1/generate",
    ]  # fmt: skip
    assert "/pause?mode=keep&clear_cache=false" in engines[0].calls


def test_a_version_is_used_once_and_joiners_get_the_current_one(rig):
    engine = rig.engine()
    publisher = rig.publisher([engine.handle])
    rig.publish(publisher, 3)
    for version in (3, 2):
        with pytest.raises(ValueError, match=f"version {version} is not above 3"):
            rig.publish(publisher, version)
    with pytest.raises(ValueError, match="version 4 is not the current one, 3"):
        publisher.sync_joiners(rig.tensors, 4)
    calls = len(engine.calls)
    assert publisher.sync_joiners(make_tensors(3), 3).broadcast_seconds == 0.0
    assert len(engine.calls) == calls


def test_an_engine_that_is_not_there_is_dropped_and_joins_when_it_is(rig):
    first, late = rig.engine(), rig.engine()
    late.stop()
    publisher = rig.publisher([first.handle, late.handle], watch_seconds=0.02)
    report = rig.publish(publisher, 0)
    assert publisher.clean_engines() == (first.handle.name,)
    assert list(report.dropped) == [late.handle.name]
    assert report.engines[late.handle.name].status is EngineStatus.LOST
    back = rig.engine(port=late.port)
    wait_until(lambda: publisher.state(back.handle.name).status is EngineStatus.DIRTY, "the watcher sees it")
    calls = [call for call in first.calls if call != "/weight_info"]
    assert publisher.sync_joiners(rig.tensors, 0).dropped == {}
    assert rig.holds(back, 0)
    assert set(publisher.clean_engines()) == {first.handle.name, back.handle.name}
    assert [call for call in first.calls if call != "/weight_info"] == calls
    assert rig.publish(publisher, 1).dropped == {}
    assert rig.holds(first, 1)
    assert rig.holds(back, 1)


def test_a_restart_between_updates_is_noticed(rig):
    engine = rig.engine()
    publisher = rig.publisher([engine.handle], watch_seconds=0.02)
    rig.publish(publisher, 0)
    engine.version = "default"
    wait_until(lambda: publisher.clean_engines() == (), "the watcher sees it")
    assert "was restarted: it has version default, not 0" in publisher.state(engine.handle.name).reason
    engine.stop()
    wait_until(lambda: publisher.state(engine.handle.name).status is EngineStatus.LOST, "the watcher sees that it is gone")


def test_engines_join_and_leave_while_the_run_goes_on(rig):
    first, second = rig.engine(), rig.engine()
    publisher = rig.publisher([first.handle])
    rig.publish(publisher, 0)
    publisher.set_engines([first.handle, second.handle])
    assert publisher.state(second.handle.name).status is EngineStatus.DIRTY
    assert publisher.clean_engines() == (first.handle.name,)
    calls = len(first.calls)
    assert publisher.sync_joiners(rig.tensors, 0).dropped == {}
    assert len(first.calls) == calls
    assert rig.holds(second, 0)
    publisher.set_engines([second.handle])
    assert publisher.clean_engines() == (second.handle.name,)
    assert rig.statuses(first.handle.name)[-1] is EngineStatus.LOST
    with pytest.raises(KeyError):
        publisher.state(first.handle.name)
    calls = len(first.calls)
    assert rig.publish(publisher, 1).dropped == {}
    assert rig.holds(second, 1)
    assert len(first.calls) == calls
    publisher.set_engines([])
    assert (publisher.clean_engines(), publisher.handles()) == ((), ())
    assert rig.publish(publisher, 2).engines == {}
    publisher.set_engines([first.handle, second.handle])
    assert publisher.sync_joiners(rig.tensors, 2).dropped == {}
    assert rig.holds(first, 2)
    assert rig.holds(second, 2)


def test_another_address_under_the_same_name_is_another_engine(rig):
    old, new = rig.engine(), rig.engine()
    publisher = rig.publisher([EngineHandle("rollout-0", old.handle.base_url)])
    rig.publish(publisher, 0)
    publisher.set_engines([EngineHandle("rollout-0", new.handle.base_url)])
    assert publisher.clean_engines() == ()
    assert (publisher.state("rollout-0").status, publisher.state("rollout-0").version) == (EngineStatus.DIRTY, None)
    assert publisher.sync_joiners(rig.tensors, 0).dropped == {}
    assert rig.holds(new, 0)
    assert publisher.clean_engines() == ("rollout-0",)


def test_engines_that_come_and_go_during_an_update_do_so_when_it_ends_but_get_no_prompts_at_once(rig):
    leaver, stayer, joiner = rig.engine(), rig.engine(), rig.engine()
    publisher = rig.publisher([leaver.handle, stayer.handle])
    rig.publish(publisher, 0)
    seen = []

    def change(engine):
        publisher.set_engines([stayer.handle, joiner.handle])
        seen.append((publisher.clean_engines(), set(publisher.states())))

    stayer.hooks["/inference/v1/generate"] = change
    report = rig.publish(publisher, 1)
    assert seen
    assert all(leaver.handle.name not in clean and joiner.handle.name not in known for clean, known in seen)
    assert set(report.engines) == {leaver.handle.name, stayer.handle.name}
    assert set(publisher.states()) == {stayer.handle.name, joiner.handle.name}
    assert publisher.clean_engines() == (stayer.handle.name,)
    assert publisher.sync_joiners(rig.tensors, 1).dropped == {}
    assert rig.holds(joiner, 1)


def test_an_engine_whose_name_is_not_known_is_lost_and_joins_when_it_is(rig, monkeypatch):
    engine = rig.engine()
    handle = EngineHandle("rollout-0", f"http://job-rollout-0.nowhere.invalid:{engine.port}")
    publisher = rig.publisher([handle])
    report = rig.publish(publisher, 0)
    assert publisher.state("rollout-0").status is EngineStatus.LOST
    assert "failed" in report.dropped["rollout-0"]
    resolve = socket.getaddrinfo
    known = {"job-rollout-0.nowhere.invalid": "127.0.0.1", b"job-rollout-0.nowhere.invalid": "127.0.0.1"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **more: resolve(known.get(host, host), *args, **more))
    assert publisher.readmit() == ("rollout-0",)
    assert publisher.sync_joiners(rig.tensors, 0).dropped == {}
    assert publisher.clean_engines() == ("rollout-0",)


def test_an_engine_that_computes_with_other_weights_is_quarantined_and_loaded_again(rig):
    def mend(engine):
        engine.stale = False

    sound, broken = rig.engine(), rig.engine(hooks={"/abort_requests": mend})
    publisher = rig.publisher([sound.handle, broken.handle])
    rig.publish(publisher, 0)
    broken.stale = True
    report = rig.publish(publisher, 1)
    assert report.dropped == {}
    assert broken.calls.count("/abort_requests") == 1
    assert EngineStatus.QUARANTINED in rig.statuses(broken.handle.name)
    assert EngineStatus.QUARANTINED not in rig.statuses(sound.handle.name)
    assert rig.holds(broken, 1)
    assert set(publisher.clean_engines()) == {sound.handle.name, broken.handle.name}


def test_an_engine_that_differs_after_a_reload_is_lost_until_it_is_restarted(rig):
    sound, broken = rig.engine(), rig.engine()
    publisher = rig.publisher([sound.handle, broken.handle])
    rig.publish(publisher, 0)
    broken.stale = True
    report = rig.publish(publisher, 1)
    assert publisher.clean_engines() == (sound.handle.name,)
    assert "log-probs of engine and trainer differ" in report.dropped[broken.handle.name]
    assert "restart it" in report.dropped[broken.handle.name]
    assert publisher.readmit() == ()
    assert publisher.state(broken.handle.name).status is EngineStatus.LOST
    broken.version, broken.stale = "default", False
    assert publisher.readmit() == (broken.handle.name,)
    assert rig.publish(publisher, 2).dropped == {}


def test_an_engine_whose_swap_fails_half_way_is_not_resumed(rig):
    engine = rig.engine(hooks={"/finish_weight_update": lambda engine: 500})
    publisher = rig.publisher([engine.handle])
    report = rig.publish(publisher, 0)
    assert "answered 500" in report.dropped[engine.handle.name]
    assert engine.paused
    assert "/abort_requests" in engine.calls
    assert publisher.state(engine.handle.name).needs_restart


def test_an_engine_that_cannot_begin_its_swap_goes_on_with_old_weights_and_gets_no_prompts(rig):
    engine = rig.engine()
    publisher = rig.publisher([engine.handle])
    rig.publish(publisher, 0)
    old = engine.live
    engine.hooks["/update_weights"] = lambda engine: 503
    assert list(rig.publish(publisher, 1).dropped) == [engine.handle.name]
    assert not engine.paused
    assert engine.live is old
    assert publisher.clean_engines() == ()
    engine.hooks, engine.session_open = {}, True
    assert rig.publish(publisher, 2).dropped == {}
    assert rig.holds(engine, 2)


def test_a_new_attempt_ends_what_a_dead_one_left_open(rig):
    engine = rig.engine()
    dead = rig.publisher([engine.handle], attempt=1)
    rig.publish(dead, 6)
    engine.paused = engine.session_open = True
    assert highest_version([engine.handle, EngineHandle("gone", "http://127.0.0.1:9")]) == 6
    publisher = rig.publisher([engine.handle], attempt=2)
    assert publisher.abort_requests() == (engine.handle.name,)
    assert not engine.paused
    assert rig.publish(publisher, 7).dropped == {}
    assert rig.holds(engine, 7)
    # The first learner was not dead after all: nobody follows it any more.
    report = rig.publish(dead, 8)
    assert "joined a newer group" in report.dropped[engine.handle.name]
    assert "attempt 1, epoch 2 is refused" in rig.publish(dead, 9).dropped[engine.handle.name]
    assert dead.clean_engines() == ()
    assert engine.version == "7"


def test_an_engine_that_answers_too_late_holds_nobody_up_for_long(rig):
    released = threading.Event()
    quick, slow = rig.engine(), rig.engine()
    slow.hooks["/pause"] = lambda engine: released.wait(30) and None
    rig.stack.callback(released.set)
    publisher = rig.publisher([quick.handle, slow.handle], timeout_seconds=2.0)
    started = time.monotonic()
    report = rig.publish(publisher, 0)
    assert time.monotonic() - started < 10 * 2.0
    assert publisher.clean_engines() == (quick.handle.name,)
    assert "did not answer within 2 s" in report.dropped[slow.handle.name]
    released.set()


def test_an_engine_that_dies_while_it_settles_is_lost_soon(rig):
    sound, dying = rig.engine(), rig.engine()
    publisher = rig.publisher([sound.handle, dying.handle])
    never = threading.Event()
    rig.stack.callback(never.set)

    def die():
        wait_until(lambda: dying.calls[-1] == "/resume", "the swap is over")
        dying.server.shutdown()
        dying.server.server_close()
        never.wait(30.0)

    dying.settle = die
    started = time.monotonic()
    report = rig.publish(publisher, 0)
    assert time.monotonic() - started < 4.0
    assert publisher.clean_engines() == (sound.handle.name,)
    assert report.engines[dying.handle.name].status is EngineStatus.LOST


def test_publishing_to_nobody_says_so(rig):
    publisher = rig.publisher([EngineHandle("engine-0", "http://127.0.0.1:9")])
    report = rig.publish(publisher, 0)
    assert report.paused_seconds == {}
    assert report.engines["engine-0"].status is EngineStatus.LOST
    assert publisher.clean_engines() == ()
    assert rig.publisher([]).publish(rig.tensors, 0).engines == {}


def test_an_engine_that_cannot_load_the_weights_says_why_and_the_others_go_on(rig):
    def refuse(bucket):
        raise KeyError("model.layers.99")

    sound, other = rig.engine(), rig.engine(on_bucket=refuse)
    publisher = rig.publisher([sound.handle, other.handle])
    report = rig.publish(publisher, 0)
    assert "model.layers.99" in report.dropped[other.handle.name]
    assert rig.holds(sound, 0)
    assert not other.paused


def test_calls_carry_the_trace_of_their_update(rig):
    engine = rig.engine()
    publisher = rig.publisher([engine.handle])
    with TracerProvider().get_tracer("test").start_as_current_span("update") as span:
        rig.publish(publisher, 0)
    trace = f"{span.get_span_context().trace_id:032x}"
    headers = [{name.lower(): value for name, value in headers.items()} for headers in engine.headers]
    assert all(f"-{trace}-" in header["traceparent"] for header in headers[-6:])


def test_something_else_than_an_engine_is_lost_and_named(rig):
    stranger = rig.engine()
    stranger.do_get_world_size = lambda body: {"hello": "world"}
    publisher = rig.publisher([stranger.handle])
    report = rig.publish(publisher, 0)
    assert "answered without world_size: is it an engine?" in report.dropped[stranger.handle.name]
    assert publisher.clean_engines() == ()


def test_an_answer_without_log_probs_is_named():
    with ExitStack() as stack:
        engine = Rig(stack, TorchDistributed()).engine()
        engine.do_inference_v1_generate = lambda body: {"choices": [{"token_ids": [1]}]}
        http = stack.enter_context(open_http())
        with pytest.raises(RuntimeError, match="answered without 'logprobs'"):
            EngineClient(engine.handle, http, 5.0).sample((1,), 1, 1.0, 0, "salt")


def through_the_store(stack, **settings):
    return Rig(stack, ObjectStoreDeltas(**settings))


def test_an_object_that_is_damaged_in_the_store_reaches_nobody_and_the_same_version_comes_whole():
    with ExitStack() as stack:
        rig = through_the_store(stack)
        engines = [rig.engine(), rig.engine()]
        publisher = rig.publisher([engine.handle for engine in engines])
        rig.publish(publisher, 0)
        put, served = rig.store.put, rig.store.objects

        def put_damaged(key, data):
            blob = put(key, data)
            if "/00000001/" in key and not key.endswith(".json"):
                served[key] = bytes([data[0] ^ 1]) + bytes(data[1:])
            return blob

        rig.store.put = put_damaged
        report = rig.publish(publisher, 1)
        assert report.dropped == {}
        assert len(publisher.clean_engines()) == 2
        assert all(rig.holds(engine, 1) for engine in engines)
        assert {engine.sampled_with[-1] for engine in engines} == {"1"}
        assert {key.split("/")[2] for key in served} == {"00000002"}


def test_a_store_that_engines_cannot_read_leaves_them_dirty_and_unpaused_until_they_can(monkeypatch):
    monkeypatch.setattr("rlvr_trainer.weights.chain_reader.PAUSE_SECONDS", 0.001)
    with ExitStack() as stack:
        rig = through_the_store(stack)
        engine = rig.engine()
        publisher = rig.publisher([engine.handle])
        rig.publish(publisher, 0)
        rig.store.failures = [503] * 100
        report = rig.publish(publisher, 1)
        assert "the store answered 503" in report.dropped[engine.handle.name]
        assert publisher.state(engine.handle.name).status is EngineStatus.DIRTY
        assert publisher.clean_engines() == ()
        assert not engine.paused
        assert engine.version == "0"
        rig.store.failures = []
        assert rig.publish(publisher, 2).dropped == {}
        assert rig.holds(engine, 2)


def test_a_joiner_gets_base_and_deltas_and_those_that_are_there_fetch_nothing_again():
    with ExitStack() as stack:
        rig = through_the_store(stack, bucket_mib=1)
        first, late = rig.engine(), rig.engine()
        publisher = rig.publisher([first.handle])
        whole = rig.publish(publisher, 0).size_bytes
        for version in (1, 2):
            for tensor in rig.tensors.values():
                tensor[version] += 1.0
            assert publisher.publish(rig.tensors, version).size_bytes < whole / 20
        publisher.set_engines([first.handle, late.handle])
        rig.store.requests.clear()
        assert publisher.sync_joiners(rig.tensors, 2).size_bytes == 0
        assert rig.holds(late, 2)
        assert {key.split("/")[2] for key in rig.store.requests} == {"00000000", "00000001", "00000002"}
        rig.store.requests.clear()
        rig.tensors["layers.0.weight"][7] += 1.0
        assert publisher.publish(rig.tensors, 3).dropped == {}
        assert rig.holds(first, 3)
        assert rig.holds(late, 3)
        assert {key.split("/")[2] for key in rig.store.requests} == {"00000003"}


def test_an_engine_of_the_other_transport_is_dropped_and_says_so():
    with ExitStack() as stack:
        rig = through_the_store(stack)
        engine = Rig(stack, TorchDistributed()).engine()
        report = rig.publish(rig.publisher([engine.handle]), 0)
        assert "this engine was started for broadcasts: restart it" in report.dropped[engine.handle.name]


def test_a_publisher_that_closes_leaves_nothing_in_the_store():
    with ExitStack() as stack:
        rig = through_the_store(stack)
        with rig.publisher([rig.engine().handle]) as publisher:
            rig.publish(publisher, 0)
            assert rig.store.objects
        assert rig.store.objects == {}


def serve_until_frozen():
    """An engine in a process of its own that stops itself when the first bucket of its second update is there."""
    buckets = []

    def count(bucket):
        buckets.append(bucket)
        if engine.version != "default":
            os.kill(os.getpid(), signal.SIGSTOP)

    engine = FakeEngine(transport=sys.argv[1], on_bucket=count)
    print(engine.port, flush=True)
    threading.Event().wait(60)


@contextmanager
def engine_process(transport):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, __file__, transport], stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            port = int(process.stdout.readline())
            yield process, EngineHandle("mortal", f"http://127.0.0.1:{port}")
        finally:
            process.kill()


def state_of(process):
    with open(f"/proc/{process.pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0]


@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "replaced"])
def test_an_engine_killed_in_mid_broadcast_is_dropped_and_the_others_get_the_same_version_in_the_next_epoch(rig, replaced):
    survivors = [rig.engine(), rig.engine()]
    with engine_process(transport_kind(rig.transport)) as (process, mortal):
        # The last member gets its bytes from another one, not from the learner.
        publisher = rig.publisher([*(engine.handle for engine in survivors), mortal], timeout_seconds=120.0)
        rig.tensors = make_tensors(0, count=40, size=2**18)
        assert publisher.publish(rig.tensors, 0).dropped == {}

        def kill_when_frozen():
            wait_until(lambda: state_of(process) == "T", "the engine stops itself")
            process.kill()
            process.wait()
            if replaced:
                rig.engine(port=int(mortal.base_url.rpartition(":")[2]))

        killer = threading.Thread(target=kill_when_frozen)
        killer.start()
        rig.tensors = make_tensors(1, count=40, size=2**18)
        started = time.monotonic()
        report = publisher.publish(rig.tensors, 1)
        killer.join()
        assert time.monotonic() - started < 60.0
        assert list(report.dropped) == ["mortal"]
        assert report.engines["mortal"].status is EngineStatus.LOST
        for engine in survivors:
            assert rig.holds(engine, 1)
            assert publisher.state(engine.handle.name).status is EngineStatus.CLEAN
        assert publisher.readmit() == (("mortal",) if replaced else ())
        assert publisher.sync_joiners(rig.tensors, 1).dropped == {}
        assert len(publisher.clean_engines()) == (3 if replaced else 2)
        assert publisher.publish(make_tensors(1, count=40, size=2**18), 2).dropped == {}


if __name__ == "__main__":
    serve_until_frozen()
