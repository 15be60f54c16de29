"""Small processes in place of engines, verifier and learner, and a driver that runs them under the real local runtime.

    local_fakes.py drive JOB.yaml RUNS_DIR CONTROL_DIR       like `rlvr run --plain`, with the fake plan and no preflight
    local_fakes.py process ROLE PORT CONTROL_DIR             one fake

The learner's committed step is CONTROL_DIR/step; its attempts are lines of CONTROL_DIR/attempts. A file CONTROL_DIR/<name>.exit makes a
process end at once with the code and the message in it; CONTROL_DIR/learner.hold keeps the learner from stepping, and
CONTROL_DIR/learner.stubborn from stopping.
"""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

STEPS = 20
STEP_SECONDS = 0.05


def drive(job_file: Path, runs_dir: Path, control: Path) -> int:
    from rlvr_operator.local import session
    from rlvr_operator.local.parts import Site
    from rlvr_operator.plan import HttpReadiness, Plan, Workload

    def fake_plan(job, addresses, places, attempt):
        def fake(role, ordinal, name, port, path):
            command = (places.python, __file__, "process", name, str(port), str(control))
            env = {"FAKE_ATTEMPT": str(attempt)} if role == "learner" else {}
            return Workload(role, name, ordinal, command, env, port, HttpReadiness(path), needs_storage=role != "rollout")

        from rlvr_api.process import Role

        engines = [fake(Role.ROLLOUT, i, f"rollout-{i}", address.port, "/health") for i, address in enumerate(addresses.engines)]
        verifier = fake(Role.VERIFIER, 0, "verifier-0", addresses.verifier.port, "/readyz")
        return Plan((*engines, verifier, fake(Role.LEARNER, 0, "learner", addresses.learner.port, "/readyz")))

    session.find_problems = lambda job, runs: ()
    session.Site = lambda *args, **kwargs: Site(*args, **kwargs, planner=fake_plan)
    return session.run_job_file(job_file, runs_dir, plain=True)


class Handler(http.server.BaseHTTPRequestHandler):
    control = Path()

    def do_GET(self):
        body = json.dumps(progress(self.control)).encode() if self.path == "/status" else b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        del args


def progress(control):
    step = committed(control)
    now = datetime.now(UTC).isoformat()
    return {
        "stage": "climb", "stageIndex": 0, "stages": 1, "step": step, "steps": STEPS, "checkpointStep": step, "reward": 0.5,
        "lastUpdated": now,
    }  # fmt: skip


def committed(control):
    file = control / "step"
    return int(file.read_text()) if file.exists() else 0


def put(file: Path, text: str) -> None:
    """Writes at once: the test reads these files at any moment, and kills the writer at any other."""
    draft = file.with_name(f".{file.name}")
    draft.write_text(text)
    draft.replace(file)


def process(name: str, port: int, control: Path) -> int:
    order = control / f"{name}.exit"
    if order.exists():
        code, _, message = order.read_text().partition(" ")
        print("warming up", flush=True)
        print(message, file=sys.stderr, flush=True)
        return int(code)
    put(control / f"{name}.env", json.dumps(dict(os.environ)))
    if name.startswith("rollout"):  # like vLLM's engine core: a child in a session of its own, that ignores polite requests
        script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    Handler.control = control
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    put(control / f"{name}.pid", str(os.getpid()))
    return learn(control) if name == "learner" else signal.pause() or 0


def learn(control: Path) -> int:
    stopped = threading.Event()
    stubborn = (control / "learner.stubborn").exists()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn else lambda *_: stopped.set())
    with (control / "attempts").open("a") as file:
        file.write(os.environ["FAKE_ATTEMPT"] + "\n")
    while committed(control) < STEPS:
        if stopped.wait(STEP_SECONDS):
            return 75
        if not (control / "learner.hold").exists():
            put(control / "step", str(committed(control) + 1))
    return 0


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    if task == "drive":
        from rlvr_api.cli import UserError

        try:
            sys.exit(drive(*(Path(argument).absolute() for argument in arguments)))
        except UserError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
    sys.exit(process(arguments[0], int(arguments[1]), Path(arguments[2])))
