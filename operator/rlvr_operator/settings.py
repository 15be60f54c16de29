"""The operator's own settings: environment variables, as the chart sets them."""

import json
import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from rlvr_api.process import Role
from rlvr_operator.render import Object, Site


class SettingsError(ValueError):
    """A variable is missing or wrong; the message says which."""


@dataclass(frozen=True)
class Settings:
    """How this process runs."""

    site: Site
    pod_name: str
    namespace: str
    """Its own namespace, where the Lease is."""
    watch_namespaces: tuple[str, ...]
    """Empty: all."""
    lease_name: str
    log_level: str
    workers: int
    resync_seconds: float
    http_port: int
    uses_kueue: bool
    """Jobs may name a queue."""


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the environment.

    Raises:
        SettingsError: a variable is missing or wrong.
    """
    images = {role: environ.get(f"RLVR_{role.upper()}_IMAGE", "") for role in Role}
    missing = [f"RLVR_{role.upper()}_IMAGE" for role, image in images.items() if not image]
    if missing:
        raise SettingsError(f"{', '.join(missing)} must name the images of the jobs' pods; the chart sets them")
    namespace = environ.get("RLVR_POD_NAMESPACE", "rlvr-system")
    site = Site(
        images=images,
        pull_policy=environ.get("RLVR_IMAGE_PULL_POLICY", "IfNotPresent"),
        pull_secrets=_list(environ.get("RLVR_IMAGE_PULL_SECRETS", "")),
        operator_namespace=namespace,
        operator_labels=_labels(environ.get("RLVR_OPERATOR_SELECTOR", '{"app.kubernetes.io/name": "rlvr-operator"}')),
        metrics_from=_peers(environ.get("RLVR_METRICS_FROM") or "[]"),
        sandbox_profile=environ.get("RLVR_SANDBOX_SECCOMP_PROFILE") or Site.sandbox_profile,
        sandbox_user_namespaces=_truth(environ, "RLVR_SANDBOX_USER_NAMESPACES"),
    )
    return Settings(
        site=site,
        pod_name=environ.get("RLVR_POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
        namespace=namespace,
        watch_namespaces=_list(environ.get("RLVR_WATCH_NAMESPACES", "")),
        lease_name=environ.get("RLVR_LEASE_NAME", "rlvr-operator"),
        log_level=environ.get("RLVR_LOG_LEVEL", "INFO").upper(),
        workers=_count(environ, "RLVR_WORKERS", 8),
        resync_seconds=_number(environ, "RLVR_RESYNC_SECONDS", 300),
        http_port=_count(environ, "RLVR_HTTP_PORT", 8080),
        uses_kueue=_truth(environ, "RLVR_KUEUE"),
    )


def _truth(environ: Mapping[str, str], name: str) -> bool:
    text = environ.get(name) or "false"
    if text not in ("true", "false"):
        raise SettingsError(f"{name} {text!r} is neither true nor false")
    return text == "true"


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _labels(text: str) -> dict[str, str]:
    try:
        labels = json.loads(text)
    except ValueError as error:
        raise SettingsError(f'RLVR_OPERATOR_SELECTOR {text!r} is not JSON ({error}); write labels as {{"name": "value"}}') from None
    if not isinstance(labels, dict) or not labels or not all(isinstance(value, str) for value in labels.values()):
        raise SettingsError(f'RLVR_OPERATOR_SELECTOR {text!r} holds no labels; write them as {{"name": "value"}}')
    return labels


def _peers(text: str) -> tuple[Object, ...]:
    try:
        peers = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"RLVR_METRICS_FROM {text!r} is not JSON ({error}); write a list of peers as in a NetworkPolicy") from None
    if not isinstance(peers, list) or not all(isinstance(peer, dict) and peer for peer in peers):
        raise SettingsError(f'RLVR_METRICS_FROM {text!r} is no list of peers; write [{{"namespaceSelector": ...}}]')
    return tuple(peers)


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        raise SettingsError(f"{name} {text!r} is not a number") from None
    if not 0 < value < math.inf:
        raise SettingsError(f"{name} {text} must be above 0 and finite")
    return value


def _count(environ: Mapping[str, str], name: str, default: int) -> int:
    value = _number(environ, name, default)
    if value != int(value):
        raise SettingsError(f"{name} {value} must be a whole number")
    return int(value)
