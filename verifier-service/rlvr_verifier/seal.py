"""Seals what scoring needs into a task key: AES-256-GCM, bound to the environment and its version.

Outside the service a key is opaque and cannot be forged. All replicas of one job share the key file; a process without one makes a key of
its own, and task keys die with it: the collector then samples the task again, which gives the same task.
"""

import base64
import hmac
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import JsonValue

logger = logging.getLogger(__name__)

KEY_BYTES = 32
NONCE_BYTES = 12


class UnknownKeyError(ValueError):
    """A task key that this service did not seal, or not for this environment."""


class Seal:
    """Opens what it sealed, and nothing else."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the seal key has {len(key)} bytes, and needs {KEY_BYTES}; write a new one with `head -c 32 /dev/urandom`")
        self._cipher = AESGCM(key)
        self._draw_key = hmac.digest(key, b"rlvr draws", "sha256")

    @classmethod
    def from_file(cls, path: str | None) -> "Seal":
        """The seal of a key file; None makes a fresh key."""
        if path is None:
            logger.warning("no seal key file is given: task keys will not survive a restart of this process")
            return cls(os.urandom(KEY_BYTES))
        return cls(Path(path).read_bytes())

    def close(self, payload: Mapping[str, JsonValue], environment: str, version: str) -> str:
        """A task key."""
        nonce = os.urandom(NONCE_BYTES)
        data = self._cipher.encrypt(nonce, json.dumps(payload).encode(), f"{environment}@{version}".encode())
        return base64.urlsafe_b64encode(nonce + data).decode()

    def open(self, task_key: str, environment: str, version: str) -> dict[str, JsonValue]:
        """What was sealed.

        Raises:
            UnknownKeyError: the key is forged, of another environment or version, or sealed with another key file.
        """
        try:
            raw = base64.b64decode(task_key, altchars=b"-_", validate=True)
            if base64.urlsafe_b64encode(raw).decode() != task_key:
                raise ValueError("another spelling of the same bytes")
            data = self._cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], f"{environment}@{version}".encode())
        except (ValueError, InvalidTag):
            raise UnknownKeyError(f"a task key of environment {environment!r} was not sealed here; sample the task again") from None
        opened = json.loads(data)
        assert isinstance(opened, dict)
        return opened

    def draw(self, name: str) -> float:
        """A number in [0, 1) that is the same for the same name and key, and cannot be told without the key."""
        return int.from_bytes(hmac.digest(self._draw_key, name.encode(), "sha256")[:7], "big") / 2**56
