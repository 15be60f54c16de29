"""The tiny example as a job in a folder of its own, run by its command: what tests do to it, and what they read from its store."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pytest
from ruamel.yaml import YAML

from rlvr_api.embedded_s3 import EmbeddedS3, find_running
from rlvr_api.process import Variable
from rlvr_operator.local.reaper import MARKER_VARIABLE, marked_processes
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.storage.client import ObjectStore
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.records import check_chain, read_records

EXAMPLE = Path(__file__).parents[2] / "examples" / "02-tiny.yaml"
STAGE = StageKeys(0, "climb")
WAIT_SECONDS = 240.0
"""An engine starts in 20 seconds on an idle machine, and in minutes on a busy one."""
Spec = dict[str, Any]


@dataclass
class JobRun:
    """One job, over as many `rlvr run` commands as it takes."""

    file: Path
    commands: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """What the runtime keeps of the run."""
        return self.file.parent / "runs" / self.file.stem

    def start(self) -> None:
        """`rlvr run`."""
        command = [sys.executable, "-m", "rlvr_api", "run", str(self.file), "--runs-dir", str(self.folder.parent), "--plain"]
        with (self.file.parent / "output.txt").open("ab") as output:
            self.commands.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))

    def finish(self, seconds: float = 400.0) -> None:
        """Wait until the job has succeeded."""
        assert self.commands[-1].wait(seconds) == 0, self.said()
        assert self.status()["phase"] == "Succeeded"

    def said(self) -> str:
        """What the commands printed."""
        return (self.file.parent / "output.txt").read_text()

    def status(self) -> Spec:
        """The job's status as the runtime last wrote it."""
        found: Spec = json.loads((self.folder / "status.json").read_text())
        return found

    def parts(self) -> dict[str, psutil.Process]:
        """The running processes by name, without those that they started themselves."""
        found = {}
        for child in psutil.Process(self.commands[-1].pid).children():
            try:
                marker = child.environ().get(MARKER_VARIABLE, "")
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if marker:
                found[marker.split("/")[1]] = child
        return found

    def progress(self) -> Spec:
        """What the learner says of itself; empty while it does not answer."""
        learner = self.parts().get("learner")
        try:
            port = learner.environ()[Variable.STATUS_PORT] if learner is not None else "0"
            found: Spec = httpx.get(f"http://127.0.0.1:{port}/status", timeout=5.0).json()
            return found
        except (httpx.HTTPError, psutil.Error, KeyError):
            return {}

    def step(self) -> int:
        """Optimizer steps done, as the learner says; 0 while it does not answer."""
        return int(self.progress().get("step", 0))

    def wait_for_step(self, step: int) -> None:
        """Until the learner has done that many steps."""
        self.wait(lambda: self.step() >= step, f"step {step}")

    def kill(self, name: str) -> None:
        """SIGKILL to one part and wait for the next of its name; or to the whole `run`, and start it again."""
        if name == "run":
            marker = json.loads((self.folder / "state.json").read_text())["marker"]
            os.kill(self.commands[-1].pid, signal.SIGKILL)
            self.commands[-1].wait(10)
            self.wait(lambda: not marked_processes(marker), "end of all processes of a killed run", running=False)
            self.start()
            return
        killed = self.parts()[name]
        killed.kill()
        self.wait(lambda: self.parts().get(name, killed) != killed, f"new {name}")

    def wait(self, condition: Callable[[], bool], what: str, *, running: bool = True) -> None:
        """Until a condition holds, while the run goes on."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert not running or self.commands[-1].poll() is None, f"the run ended before a {what}: {self.said()}"
            assert time.monotonic() < deadline, f"no {what} within {WAIT_SECONDS:.0f} s: {self.said()}"
            time.sleep(0.05)

    @contextmanager
    def store(self) -> Iterator[ObjectStore]:
        """The job's part of the store, whether the run is up or over."""
        data = self.folder / "s3"
        with ExitStack() as stack:
            server = EmbeddedS3(data, self.folder / "s3.json")
            endpoint = find_running(data) or stack.enter_context(server).endpoint
            client = boto3.client(
                "s3", endpoint_url=endpoint, region_name="us-east-1",
                aws_access_key_id=server.access_key, aws_secret_access_key=server.secret_key,
            )  # fmt: skip
            stack.callback(client.close)
            yield ObjectStore(client, "runs", self.file.stem)

    def records(self) -> dict[str, bytes]:
        """Every step record, as stored."""
        with self.store() as store:
            return {key: store.get(key) for key in store.list(STAGE.records)}

    def check_exactly_once(self, earlier: dict[str, bytes], steps: int) -> None:
        """One record a step, in a chain that continues `earlier`; every admitted index is consumed once, discarded or pending."""
        records = self.records()
        assert {key: records.get(key) for key in earlier} == earlier, "a record that was committed before a kill has changed"
        assert list(records) == [STAGE.record(step) for step in range(1, steps + 1)]
        with self.store() as store:
            committed = read_records(store, STAGE)
        check_chain(committed)
        found = Counter(index for item in committed for index in item.record.groups)
        found.update(discard.index for item in committed for discard in item.record.discarded)
        found.update(admission.index for admission in committed[-1].record.pending)
        assert found == Counter(range(committed[-1].record.cursor))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model."""
    folder: Path = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_model(folder)
    return folder


@pytest.fixture
def run_of(tmp_path: Path) -> Iterator[Callable[[Spec], JobRun]]:
    """The run of a job, in a folder of its own; ended with the test."""
    made: list[JobRun] = []

    def make(job: Spec) -> JobRun:
        name = job["metadata"]["name"]
        folder = tmp_path / name
        folder.mkdir()
        with (folder / f"{name}.yaml").open("w") as file:
            YAML().dump(job, file)
        made.append(JobRun(folder / f"{name}.yaml"))
        return made[-1]

    yield make
    for run in made:
        for command in run.commands:
            if command.poll() is None:
                command.kill()
            command.wait(30)


@pytest.fixture
def make_run(run_of: Callable[[Spec], JobRun], model: Path) -> Callable[..., JobRun]:
    """`make_run(name, steps=…, change=…)`: a job like the tiny example, with small steps; `change` may change its spec."""

    def make(name: str, *, steps: int, change: Callable[[Spec], None] = lambda _: None) -> JobRun:
        job = YAML(typ="safe").load(EXAMPLE)
        spec: Spec = job["spec"]
        job["metadata"]["name"] = name
        spec["model"]["uri"] = f"file://{model}"
        spec["stages"][0]["rlvr"].update(steps=steps, promptsPerStep=8, groupSize=8)
        spec["evaluation"] = {"tasksPerEnvironment": 8, "samplesPerTask": 4}
        spec["learner"] = {"checkpoint": {"everySteps": 3, "keepLast": 2}}
        change(spec)
        return run_of(job)

    return make
