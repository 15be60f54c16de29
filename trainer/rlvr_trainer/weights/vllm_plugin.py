"""The entry point `vllm.general_plugins`: makes every weight transport known to vLLM, in each of its processes.

vLLM loads it in the API server, the engine core and all workers, possibly more than once. The engine itself is imported only where
`--weight-transfer-config '{"backend": "rlvr_torch_distributed"}'` asks for it.
"""

from rlvr_trainer.weights import TRANSPORTS, backend_name


def register() -> None:
    """Register our weight-transfer engines with vLLM; calling it again changes nothing."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for member in TRANSPORTS:
        name = backend_name(member)
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, "rlvr_trainer.weights.vllm_engine", "StagedWeightTransferEngine")
