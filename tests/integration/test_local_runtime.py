"""The local runtime against real processes: what happens when any of them, or the runtime itself, is killed, stopped or wedged.

The processes are small fakes (`local_fakes.py`), started through the same plan, supervision and clean-up as real ones.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from rlvr_api.status import EngineProgress, Progress
from rlvr_operator.backoff import Backoff
from rlvr_operator.local import supervision
from rlvr_operator.local.guard import Guard
from rlvr_operator.local.parts import restart_engines
from rlvr_operator.local.ports import HOST, PortReservation
from rlvr_operator.local.process import ChildSpec
from rlvr_operator.local.reaper import MARKER_VARIABLE, marked_processes, sweep
from rlvr_operator.local.supervision import BudgetExhaustedError, Supervisor, Watch

FAKES = Path(__file__).with_name("local_fakes.py")
JOB = """
apiVersion: rlvr.dev/v1alpha1
kind: RLVRJob
metadata: {name: fake}
spec:
  model: {uri: file://model}
  environments: [{name: sums, arithmetic: {}}]
  stages: [{name: climb, rlvr: {steps: 20}}]
  rollouts: {replicas: 2}
  deadlines: {graceSeconds: 20, provisioningSeconds: 60}
  failurePolicy: {maxLearnerRestarts: 1, maxRoleRestarts: 2}
"""
OWN_STORE = '  storage: {endpoint: "http://127.0.0.1:9"}\n'


class Run:
    """One folder in which `rlvr run` is started, more than once."""

    def __init__(self, folder: Path, embedded_s3: bool) -> None:
        self.job, self.runs, self.control = folder / "job.yaml", folder / "runs", folder / "control"
        self.control.mkdir()
        self.job.write_text(JOB + ("" if embedded_s3 else OWN_STORE))
        self.started: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, str(FAKES), "drive", str(self.job), str(self.runs), str(self.control)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.started.append(process)
        return process

    def finish(self, process, seconds=60.0):
        out, err = process.communicate(timeout=seconds)
        return process.returncode, out, err

    def pid(self, name):
        return int((self.control / f"{name}.pid").read_text())

    def marker(self):
        return json.loads((self.runs / "fake" / "state.json").read_text())["marker"] + "/"

    def attempts(self):
        file = self.control / "attempts"
        return file.read_text().split() if file.exists() else []

    def phase(self):
        file = self.runs / "fake" / "status.json"
        return json.loads(file.read_text())["phase"] if file.exists() else ""


@pytest.fixture
def run(tmp_path, request):
    made = Run(tmp_path, embedded_s3=getattr(request, "param", False))
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)
    if (made.runs / "fake" / "state.json").exists():
        assert sweep(made.marker()) == []


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.05)


def killed(run, name):
    """Kills a process and waits until another has taken its place."""
    pid = run.pid(name)
    os.kill(pid, signal.SIGKILL)
    until(lambda: run.pid(name) != pid)


def s3_pid(run):
    wanted = f"{MARKER_VARIABLE}={run.marker()}s3/"
    return next((pid for pid in marked_processes(run.marker()) if wanted in Path(f"/proc/{pid}/environ").read_text()), None)


@pytest.mark.parametrize("run", [True], indirect=True)
def test_any_process_may_be_killed_and_the_run_goes_on(run):
    (run.control / "learner.hold").touch()
    process = run.start()
    until(lambda: run.attempts() == ["1"])
    killed(run, "rollout-1")
    killed(run, "verifier-0")
    store = s3_pid(run)
    os.kill(store, signal.SIGKILL)
    until(lambda: s3_pid(run) not in (None, store))
    assert run.attempts() == ["1"], "losing a service must not restart the learner"
    # Each engine keeps one stubborn child in a session of its own; those of the dead engine are gone.
    until(lambda: len(marked_processes(f"{run.marker()}rollout-1/")) == 2)
    killed(run, "learner")
    until(lambda: run.attempts() == ["1", "2"])
    (run.control / "learner.hold").unlink()
    code, out, err = run.finish(process)
    assert (code, err) == (0, "")
    assert "all stages are finished" in out
    assert "rollout-1 ended by signal 9; starting it again" in out
    assert "learner: attempt 1 ended by signal 9" in out
    assert run.phase() == "Succeeded"
    assert marked_processes(run.marker()) == []
    environments = {name: json.loads((run.control / f"{name}.env").read_text()) for name in ("learner", "rollout-0")}
    assert "AWS_SECRET_ACCESS_KEY" in environments["learner"]
    assert not [key for key in environments["rollout-0"] if key.startswith("AWS_")]


def test_nothing_outlives_a_killed_runtime_and_the_next_run_goes_on(run):
    (run.control / "learner.hold").touch()
    process = run.start()
    until(lambda: run.attempts() == ["1"])
    marker = run.marker()
    until(lambda: len(marked_processes(marker)) == 6)  # four, and a child of each engine
    process.kill()
    until(lambda: marked_processes(marker) == [], seconds=10)
    (run.control / "learner.hold").unlink()
    assert run.finish(run.start())[0] == 0
    assert run.attempts() == ["1", "2"]
    assert run.finish(run.start())[1].startswith("fake is finished")


def test_interrupt_suspends_after_a_checkpoint_and_the_same_command_resumes(run):
    process = run.start()
    until(lambda: run.attempts() == ["1"])
    process.send_signal(signal.SIGINT)
    code, out, _ = run.finish(process)
    assert code == 130
    assert "stopped on request" in out
    assert run.phase() == "Suspended"
    assert marked_processes(run.marker()) == []
    step = int((run.control / "step").read_text()) if (run.control / "step").exists() else 0
    assert step < 20
    assert run.finish(run.start())[0] == 0
    assert run.attempts() == ["1", "2"]


def test_a_second_interrupt_does_not_wait(run):
    (run.control / "learner.hold").touch()
    (run.control / "learner.stubborn").touch()
    process = run.start()
    until(lambda: run.attempts() == ["1"])
    process.send_signal(signal.SIGINT)
    until(lambda: run.phase() == "Suspending")
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    code, out, _ = run.finish(process)
    assert code == 130
    assert "before the learner had committed" in out
    assert time.monotonic() - asked < 15, "graceSeconds is 20"
    assert marked_processes(run.marker()) == []


@pytest.mark.parametrize("name", ["learner", "verifier-0"])
def test_refused_input_ends_everything_with_its_own_words(run, name):
    (run.control / f"{name}.exit").write_text("2 data.jsonl line 812: no answer; add one")
    code, _, err = run.finish(run.start())
    assert code == 2
    assert "data.jsonl line 812: no answer; add one" in err
    assert len(err.splitlines()) == 1
    assert run.phase() == "Failed"


def test_a_learner_that_distrusts_its_reward_pauses_the_run_and_its_words_are_shown(run):
    (run.control / "learner.exit").write_text("77 error: paused by integrity.onViolation: environment sums pays for question-echo")
    code, _, err = run.finish(run.start())
    assert code == 1
    assert "environment sums pays for question-echo" in err
    assert "paused (RewardNotTrustworthy)" in err
    assert run.phase() == "Suspended"
    (run.control / "learner.exit").unlink()
    assert run.finish(run.start())[0] == 0, "the same command goes on once it is trusted again"


@pytest.mark.parametrize(("name", "field"), [("learner", "maxLearnerRestarts is 1"), ("rollout-0", "maxRoleRestarts is 2")])
def test_an_exhausted_budget_fails_the_run_and_says_which(run, name, field):
    (run.control / "learner.hold").touch()
    (run.control / f"{name}.exit").write_text("1 out of memory")
    code, _, err = run.finish(run.start())
    assert code == 1
    for part in (name, "out of memory", field, f"{name}.log", "RestartBudgetExhausted"):
        assert part in err


def test_two_runs_of_one_job_do_not_meet(run):
    (run.control / "learner.hold").touch()
    first = run.start()
    until(lambda: run.attempts() == ["1"])
    code, _, err = run.finish(run.start())
    assert code == 2
    assert "is in use by another `rlvr run`" in err
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert run.finish(first)[0] == 130


def test_a_begun_run_refuses_another_spec(run):
    (run.control / "learner.hold").touch()
    process = run.start()
    until(lambda: run.attempts() == ["1"])
    process.send_signal(signal.SIGINT)
    assert run.finish(process)[0] == 130
    run.job.write_text(run.job.read_text().replace("steps: 20", "steps: 30"))
    code, _, err = run.finish(run.start())
    assert code == 2
    assert "spec.stages[0].rlvr.steps was 20 and is now 30" in err
    assert run.attempts() == ["1"]


def child_spec(folder, script, port):
    return ChildSpec(
        "fake", (sys.executable, "-c", script, str(port)), dict(os.environ), f"http://{HOST}:{port}/", folder / "log", folder / "work"
    )


SERVER = """
import http.server, sys, time, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(30 if pathlib.Path("wedged").exists() else 0)
        self.send_response(200); self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


async def supervised(spec, watch, act):
    events = []
    async with httpx.AsyncClient(trust_env=False) as client:
        supervisor = Supervisor(lambda: spec, "test-supervised", 1, watch, client, events.append, Backoff(base_seconds=0.05))
        task = asyncio.create_task(supervisor.run())
        try:
            await act(supervisor, task)
        finally:
            await supervisor.stop(5)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    return events


def test_a_wedged_process_is_killed_and_started_again(tmp_path):
    watch = Watch(ready_within_seconds=20, poll_seconds=0.05, check_seconds=0.05, timeout_seconds=0.5, strikes=2)

    async def act(supervisor, task):
        del task
        await asyncio.wait_for(supervisor.ready.wait(), 20)
        first = supervisor.pid
        (tmp_path / "work" / "wedged").touch()
        while supervisor.pid in (first, None):  # noqa: ASYNC110 - the test's deadline is pytest's
            await asyncio.sleep(0.05)
        (tmp_path / "work" / "wedged").unlink()
        await asyncio.wait_for(supervisor.ready.wait(), 20)

    with PortReservation() as ports:
        events = asyncio.run(supervised(child_spec(tmp_path, SERVER, ports.reserve()), watch, act))
    assert any("did not answer 2 times in a row, and was killed" in event for event in events)


def test_an_engine_that_the_learner_cannot_mend_is_started_again_once_for_each_report(tmp_path, monkeypatch):
    watch = Watch(ready_within_seconds=20, poll_seconds=0.05)
    report = Progress(
        stage="climb", stage_index=0, stages=1, step=1, steps=2, last_updated=datetime.now(UTC),
        engines={
            "rollout-0": EngineProgress(status="lost", reason="log-probs differ", needs_restart=True),
            "rollout-1": EngineProgress(status="lost", reason="does not answer"),
        },
    )  # fmt: skip

    async def act(supervisor, task):
        del task
        services = {"rollout-0": supervisor, "rollout-1": None}
        await asyncio.wait_for(supervisor.ready.wait(), 20)
        first = supervisor.pid
        restart_engines(services, report)
        assert supervisor.pid == first, "the report may be older than the process"
        monkeypatch.setattr(supervision, "REPORT_AGE_SECONDS", 0.0)
        restart_engines(services, report)
        monkeypatch.undo()
        async with asyncio.timeout(20):
            while supervisor.pid in (first, None):  # noqa: ASYNC110 - a process, not an event
                await asyncio.sleep(0.05)
            await supervisor.ready.wait()
        second = supervisor.pid
        restart_engines(services, report)
        assert supervisor.pid == second

    with PortReservation() as ports:
        events = asyncio.run(supervised(child_spec(tmp_path, SERVER, ports.reserve()), watch, act))
    assert sum("cannot be mended by the learner (log-probs differ), and was killed" in event for event in events) == 1


def test_a_process_that_never_gets_ready_uses_up_its_budget(tmp_path):
    watch = Watch(ready_within_seconds=0.3, poll_seconds=0.05, timeout_seconds=0.2)

    async def act(supervisor, task):
        del supervisor
        with pytest.raises(BudgetExhaustedError, match=r"was not ready within 0 s, and was killed .*failed 2 times"):
            await asyncio.wait_for(task, 20)

    with PortReservation() as ports:
        asyncio.run(supervised(child_spec(tmp_path, "import time; time.sleep(60)", ports.reserve()), watch, act))


def test_a_dead_reaper_is_replaced():
    async def scenario():
        guard = Guard("test-guard")
        kept = asyncio.create_task(guard.keep())
        first = guard.pid
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(10):
            while guard.pid == first:  # noqa: ASYNC110 - bounded by the time-out
                await asyncio.sleep(0.05)
        orphan = await asyncio.create_subprocess_exec("sleep", "60", env={**os.environ, MARKER_VARIABLE: "test-guard/x/1/"})
        kept.cancel()
        await guard.close()
        return await asyncio.wait_for(orphan.wait(), 5)

    assert asyncio.run(scenario()) == -signal.SIGKILL


def test_shared_memory_of_a_killed_process_is_freed(tmp_path):
    """vLLM's engine core and its workers talk through it; only Python's resource tracker knows its name."""
    script = (
        "from multiprocessing import shared_memory; import pathlib, sys, time; "
        "memory = shared_memory.SharedMemory(create=True, size=1 << 20); pathlib.Path(sys.argv[1]).write_text(memory.name); time.sleep(60)"
    )
    name = tmp_path / "name"
    env = {**os.environ, MARKER_VARIABLE: "test-memory/x/1/"}
    with subprocess.Popen([sys.executable, "-c", script, str(name)], env=env) as process:
        until(lambda: name.exists() and name.read_text() != "")
        segment = Path("/dev/shm", name.read_text())
        assert segment.exists()
        process.kill()
        process.wait(10)
        assert sweep("test-memory/") == []
    assert not segment.exists()


def test_a_reserved_port_is_nobody_elses_and_the_server_may_listen_on_it_twice():
    with PortReservation() as ports:
        port = ports.reserve()
        with socket.socket() as rude, pytest.raises(OSError, match="in use"):
            rude.bind((HOST, port))
        for _ in range(2):
            with socket.create_server((HOST, port)) as server, socket.create_connection((HOST, port), timeout=5):
                server.accept()[0].close()
