"""A plain vLLM server of a model on the CPU, for tests and benchmarks that ask one over HTTP."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from commands import free_port, wait_for

START_SECONDS = 240


@contextmanager
def serving_model(model: Path, log: Path, name: str, *arguments: str, threads: int = 1) -> Iterator[str]:
    """The address of the API, with the version, once it answers.

    Args:
        log: file for what it says.
        name: of the model there.
        arguments: further ones of the server.
    """
    port = free_port()
    command = (
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port), "--host", "127.0.0.1",
        "--enforce-eager", "--served-model-name", name, *arguments,
    )  # fmt: skip
    env = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads),
        "TORCHDYNAMO_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with log.open("w") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(answers, START_SECONDS, lambda: log.read_text()[-3000:], every=0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
