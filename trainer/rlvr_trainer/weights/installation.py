"""How weights that have arrived become those that vLLM computes with.

    stage   in the background, bucket by bucket, while the engine generates with the old weights
    swap    the engine is paused: as short as can be
    settle  in the background again, before the learner probes the engine

On the CPU, vLLM computes with packed copies of the weights that oneDNN makes; packing takes longer than the whole broadcast. There, a
`ShadowInstallation` loads into a second instance of the model, swaps pointers, computes with plain matrices for the moment and packs
after the engine has gone on. From the second update on, what arrives is not copied: the memory it came in becomes the parameters
(`placement`). Everywhere else, `LayerwiseInstallation` uses vLLM's own reload while the engine is paused.
Not covered: weights that were compiled into a graph by value, which is why a CPU engine has to be eager.
"""

import copy
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812

from rlvr_trainer.weights.placement import Places, join, watch_load

log = logging.getLogger("rlvr.weights")

Buckets = Iterable[Sequence[tuple[str, torch.Tensor]]]
"""Named tensors in checkpoint format; whole, not sharded."""


class Installation(Protocol):
    """Brings weights into a model that is in use."""

    def stage(self, buckets: Buckets) -> bool:
        """Take the tensors as they arrive; true when their memory is that of the weights from the swap on.

        Raises:
            ValueError: some of the model's weights are not among them.
        """

    def swap(self) -> None:
        """Make the staged weights live. Called between two steps of the paused engine."""

    def settle(self) -> None:
        """Do what need not hold up the engine. Until it returns, `stage` is not called."""


def build_installation(model: torch.nn.Module, vllm_config: Any, device: torch.device) -> Installation:
    """The installation that fits this engine.

    Raises:
        ValueError: the engine compiles its model on the CPU, where new weights would not reach it.
    """
    if device.type == "cpu":
        if not vllm_config.model_config.enforce_eager:
            raise ValueError("a CPU engine that compiles its model keeps the old weights: start it with --enforce-eager")
        if _is_plain(model):
            try:
                return ShadowInstallation(model, _build_shadow(vllm_config, device))
            except _MismatchError as error:
                log.warning("weights are reloaded layer by layer, with longer pauses: %s", error)
    return LayerwiseInstallation(model, vllm_config.model_config)


class LayerwiseInstallation:
    """vLLM's layerwise reload: right for every format, quantized ones included, and it keeps addresses that CUDA graphs know."""

    def __init__(self, model: torch.nn.Module, model_config: Any) -> None:
        self._model: Any = model
        self._model_config = model_config
        self._staged: list[tuple[str, torch.Tensor]] = []

    def stage(self, buckets: Buckets) -> bool:
        """Keep the tensors until the swap; they are views of staging buffers, not copies."""
        self._staged = [pair for bucket in buckets for pair in bucket]
        return False

    def swap(self) -> None:
        """Reload all layers."""
        from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        initialize_layerwise_reload(self._model)
        with disable_mtp_completeness_check():
            self._model.load_weights(iter(self._staged))
        finalize_layerwise_reload(self._model, self._model_config)
        # A tied head is not reloaded with the embedding it shares, and would go on with its old packed copy, without any error.
        for module in self._model.modules():
            if hasattr(module, "cpu_linear") and module.weight.ndim == 2:
                module.quant_method.process_weights_after_loading(module)

    def settle(self) -> None:
        """Nothing is left to do."""


class ShadowInstallation:
    """A second instance of the model holds the weights that come; a swap exchanges pointers."""

    def __init__(self, model: torch.nn.Module, shadow: torch.nn.Module) -> None:
        """Raises _MismatchError when `shadow` is not built like `model`."""
        self._shadow: Any = shadow
        self._linears: list[_PackedLinear] = []
        self._exchanged: list[tuple[torch.nn.Parameter, torch.nn.Parameter]] = []
        self._pair(model, shadow)
        self._parameters = dict(shadow.named_parameters())
        self._places: Places = {}

    def stage(self, buckets: Buckets) -> bool:
        """Load into the shadow, which fuses and shards as vLLM's own loading does; what the first load placed is not copied again."""
        pairs = (pair for bucket in buckets for pair in bucket)
        placed = bool(self._places)
        if placed:
            loaded = self._stage_in_place(pairs)
        else:
            loaded, self._places = watch_load(self._shadow, self._shadow.load_weights, pairs)
        missing = sorted(self._parameters.keys() - loaded) if loaded is not None else []
        if missing:
            raise ValueError(f"the broadcast lacks weights of {len(missing)} parameters, among them {', '.join(missing[:3])}")
        for linear in self._linears:
            linear.prepare()
        return placed

    def _stage_in_place(self, pairs: Iterable[tuple[str, torch.Tensor]]) -> set[str] | None:
        wanted = {part for parts in self._places.values() for part in parts}
        arrived: dict[str, torch.Tensor] = {}

        def others() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in pairs:
                if name in wanted:
                    arrived[name] = tensor
                else:
                    yield name, tensor

        loaded: set[str] | None = self._shadow.load_weights(others())
        complete = {name: parts for name, parts in self._places.items() if arrived.keys() >= set(parts)}
        for name, parts in complete.items():
            parameter = self._parameters[name]
            parameter.data = join([arrived[part] for part in parts], parameter.shape)
        return None if loaded is None else loaded | complete.keys()

    def swap(self) -> None:
        """Exchange pointers; matrix products go without packing for now."""
        for live, shadow in self._exchanged:
            live.data, shadow.data = shadow.data, live.data
        for linear in self._linears:
            linear.swap()

    def settle(self) -> None:
        """Pack the matrices, one by one."""
        for linear in self._linears:
            linear.settle()

    def _pair(self, model: torch.nn.Module, shadow: torch.nn.Module) -> None:
        lives, shadows = dict(model.named_modules()), dict(shadow.named_modules())
        if lives.keys() != shadows.keys():
            raise _MismatchError(f"modules differ: {sorted(lives.keys() ^ shadows.keys())[:3]}")
        packed_away: set[int] = set()
        for name, live in lives.items():
            if hasattr(live, "cpu_linear"):
                linear = _PackedLinear(live, shadows[name])
                self._linears.append(linear)
                if linear.weight_is_packed_away:
                    packed_away.add(id(live.weight))
        waiting = dict(shadow.named_parameters())
        for name, parameter in model.named_parameters():
            if id(parameter) in packed_away:
                continue
            if name not in waiting or waiting[name].shape != parameter.shape:
                raise _MismatchError(f"parameter {name} of shape {tuple(parameter.shape)} has no counterpart")
            self._exchanged.append((parameter, waiting[name]))


class _PackedLinear:
    """One matrix that vLLM multiplies by in a packed form, `cpu_linear`, made of the weight as it was at that time."""

    def __init__(self, live: Any, shadow: Any) -> None:
        self._live = live
        self._shadow = shadow
        self.weight_is_packed_away: bool = live.weight.numel() == 0
        self._ready: Any = None

    def prepare(self) -> None:
        """Before the swap: pack now if plain products are impossible, because packing changes the type of the bias."""
        bias = getattr(self._live, "bias", None)
        if bias is not None and bias.dtype != self._shadow.weight.dtype:
            self._ready = self._packed(self._shadow)

    def swap(self) -> None:
        """Multiply by the new weight."""
        if self._ready is not None:
            self._live.cpu_linear = self._ready
        elif self.weight_is_packed_away:
            self._live.cpu_linear = partial(_multiply_by, self._shadow.weight.data)
        else:
            self._live.cpu_linear = F.linear

    def settle(self) -> None:
        """Pack the weight that is live now."""
        if self._ready is None:
            self._live.cpu_linear = self._packed(self._shadow if self.weight_is_packed_away else self._live)
        self._ready = None

    def _packed(self, source: Any) -> Any:
        # vLLM packs in place and drops the weight; a carrier takes that upon itself.
        carrier: Any = torch.nn.Module()
        carrier.weight = torch.nn.Parameter(source.weight.data, requires_grad=False)
        if getattr(source, "bias", None) is not None:
            carrier.bias = torch.nn.Parameter(source.bias.data, requires_grad=False)
        carrier._cpu_skip_gemm_dispatch = getattr(self._live, "_cpu_skip_gemm_dispatch", False)
        self._live.quant_method.process_weights_after_loading(carrier)
        return carrier.cpu_linear


class _MismatchError(RuntimeError):
    """The second instance of the model is not like the first."""


def _multiply_by(matrix: torch.Tensor, x: torch.Tensor, _: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x, matrix, bias)


def _build_shadow(vllm_config: Any, device: torch.device) -> torch.nn.Module:
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    # Layers enter themselves in these registers of the engine, by names that are taken.
    config = copy.copy(vllm_config)
    config.compilation_config = copy.copy(vllm_config.compilation_config)
    config.compilation_config.static_forward_context = {}
    config.compilation_config.static_all_moe_layers = []
    with set_default_torch_dtype(vllm_config.model_config.dtype), device:
        shadow: torch.nn.Module = initialize_model(config)
    return shadow.eval()


def _is_plain(model: torch.nn.Module) -> bool:
    """No quantization, no fused experts, and no layer that derives further tensors from its weights."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    plain = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
    for module in model.modules():
        if isinstance(module, Attention):
            continue
        method = getattr(module, "quant_method", None)
        if (method is not None and type(method) not in plain) or callable(getattr(module, "process_weights_after_loading", None)):
            return False
    return True
