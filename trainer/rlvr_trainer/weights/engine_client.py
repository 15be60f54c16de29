"""The routes of one vLLM engine that have to do with weights, as calls with a time-out.

`VLLM_SERVER_DEV_MODE=1` and `--enable-scale-out` register them. The routes of an update run in the engine's loop between two steps, so an
answer takes up to one step while the engine generates; `/health` alone does not, and says nothing of a loop that hangs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from rlvr_trainer.weights.protocol import Invitation, SwapOrder


class EngineError(RuntimeError):
    """An engine did not do what it was asked to; the message says which, what and why."""


class EngineUnreachableError(EngineError):
    """Nobody listens, or the connection broke: the process is gone."""


class EngineSlowError(EngineError):
    """No answer in time: busy or wedged, which cannot be told apart from outside."""


@dataclass(frozen=True, slots=True)
class EngineHandle:
    """Name and address of an engine."""

    name: str
    """Unique in the job, for example `rollout-0`."""
    base_url: str
    """For example `http://127.0.0.1:8000`."""


@dataclass(frozen=True, slots=True)
class ProbeReply:
    """What an engine sampled for the probe."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """The engine's log-prob of each token."""
    versions: frozenset[str]
    """Weight versions that the engine says it sampled with."""


CONNECT_SECONDS = 4.0
"""Bound of a connection: a kernel accepts at once, however busy its processes are; two packets may get lost on the way."""


def open_http() -> httpx.Client:
    """The way to all engines; safe to use from several threads.

    Each call has a connection of its own, and resolves the name anew. vLLM closes kept ones when they idle for 5 s and after each error,
    and a call that meets the closing looks like a dead engine; most calls are not safe to repeat.
    """
    return httpx.Client(limits=httpx.Limits(max_connections=None, max_keepalive_connections=0), trust_env=False)


class EngineClient:
    """Calls to one engine. Every method raises EngineError, and of it what fits of EngineUnreachableError and EngineSlowError."""

    def __init__(
        self, handle: EngineHandle, http: httpx.Client, timeout_seconds: float, trace_headers: Callable[[], Mapping[str, str]] = dict
    ) -> None:
        self.handle = handle
        self._http = http
        self._timeout_seconds = timeout_seconds
        self._trace_headers = trace_headers

    def weight_version(self, timeout_seconds: float | None = None) -> str:
        """The version in use; `default` in an engine that has never been updated. The engine's loop answers, so it is alive."""
        return str(self._read("/weight_info", "weight_version", timeout_seconds))

    def world_size(self) -> int:
        """Workers of the engine, over all kinds of parallelism."""
        return int(self._read("/get_world_size", "world_size"))

    def invite(self, invitation: Invitation) -> None:
        """Ask it to join a group; it joins in the background."""
        self._call("POST", "/init_weight_transfer_engine", {"init_info": invitation.model_dump(mode="json")})

    def pause(self) -> None:
        """Stop between two steps and keep what is being generated, with its keys and values."""
        # clear_cache would throw away the keys and values of running requests too, and compute them again after the pause.
        self._call("POST", "/pause?mode=keep&clear_cache=false")

    def resume(self) -> None:
        """Go on."""
        self._call("POST", "/resume")

    def start_update(self, discard: SwapOrder) -> None:
        """Open an update session; one that a dead learner left open is closed first, by order `discard`."""
        try:
            self._call("POST", "/start_weight_update")
        except EngineUnreachableError:
            raise
        except EngineError:
            try:
                self._call("POST", "/update_weights", {"update_info": discard.model_dump(mode="json")})
            except EngineUnreachableError:
                raise
            except EngineError:
                pass  # by design: only an error closes vLLM's session
            self._call("POST", "/start_weight_update")

    def order_swap(self, order: SwapOrder) -> None:
        """Name the staged weights that are to become live."""
        self._call("POST", "/update_weights", {"update_info": order.model_dump(mode="json")})

    def finish_update(self, version: int) -> None:
        """Make the ordered weights live, under that version."""
        self._call("POST", "/finish_weight_update", {"weight_version": str(version)})

    def reset_prefix_cache(self) -> None:
        """Drop cached prefixes of older weights. Those that running requests hold stay; the salt of later requests keeps them apart."""
        self._call("POST", "/reset_prefix_cache")

    def abort_all(self) -> None:
        """End all requests in flight; their callers get finish reason `abort`."""
        self._call("POST", "/abort_requests", {})

    def sample(self, prompt_ids: Sequence[int], max_tokens: int, temperature: float, seed: int, cache_salt: str) -> ProbeReply:
        """One completion with its log-probs."""
        sampling = {
            "n": 1, "temperature": temperature, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": max_tokens, "logprobs": 0,
            "seed": seed, "ignore_eos": True,
        }  # fmt: skip
        body = {"token_ids": list(prompt_ids), "sampling_params": sampling, "return_token_ids": True, "cache_salt": cache_salt}
        answer = self._call("POST", "/inference/v1/generate", body)
        try:
            choice = answer["choices"][0]
            return ProbeReply(
                token_ids=tuple(choice["token_ids"]),
                logprobs=tuple(float(entry["logprob"]) for entry in choice["logprobs"]["content"]),
                versions=frozenset(str(span["version"]) for span in choice["weight_versions"]),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(f"engine {self.handle.name}: /inference/v1/generate answered without {error}: {str(answer)[:200]}") from error

    def _read(self, path: str, key: str, timeout_seconds: float | None = None) -> int | str:
        value = self._call("GET", path, timeout_seconds=timeout_seconds).get(key)
        if not isinstance(value, int | str):
            raise EngineError(f"engine {self.handle.name}: GET {self.handle.base_url}{path} answered without {key}: is it an engine?")
        return value

    def _call(self, method: str, path: str, body: Any = None, timeout_seconds: float | None = None) -> dict[str, Any]:
        timeout = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        place = f"engine {self.handle.name}: {method} {self.handle.base_url}{path}"
        try:
            response = self._http.request(
                method,
                f"{self.handle.base_url}{path}",
                json=body,
                headers=dict(self._trace_headers()),
                timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS),
            )
        except httpx.ConnectTimeout as error:
            raise EngineUnreachableError(f"{place} failed: no connection within {CONNECT_SECONDS:g} s") from error
        except httpx.TimeoutException as error:
            raise EngineSlowError(f"{place} did not answer within {timeout:g} s") from error
        except (httpx.TransportError, OSError) as error:
            raise EngineUnreachableError(f"{place} failed: {str(error) or type(error).__name__}") from error
        if response.status_code != httpx.codes.OK:
            raise EngineError(f"{place} answered {response.status_code}: {response.text[:500]}")
        try:
            content = response.json()
        except ValueError:
            content = None
        return content if isinstance(content, dict) else {}
