"""How new weights reach the rollout engines: the registry of transports.

A transport is one file that holds both ends: `Sender` for the learner, `Receiver` for an engine's workers (`transport` has the
interfaces). It is named by its member of
`spec.weightSync`. To add one: its class in `rlvr_api.spec`, its file here, its line in `TRANSPORTS`.

Nothing here imports torch or vLLM: every process of an engine imports this package when it loads plug-ins.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlvr_trainer.weights.transport import Transport

TRANSPORTS = {
    "torch_distributed": "rlvr_trainer.weights.torch_distributed",
    "object_store": "rlvr_trainer.weights.object_store",
}
"""Module of each transport, by its member of `spec.weightSync`."""


def backend_name(member: str) -> str:
    """The name under which vLLM knows a transport: `{"backend": ...}` of `--weight-transfer-config`."""
    return f"rlvr_{member}"


def load_transport(member: str) -> "Transport":
    """The module of a transport.

    Raises:
        ValueError: there is no transport of that name.
    """
    if member not in TRANSPORTS:
        raise ValueError(f"there is no weight transport '{member}'; there are: {', '.join(TRANSPORTS)}")
    module: Any = import_module(TRANSPORTS[member])
    transport: Transport = module
    return transport
