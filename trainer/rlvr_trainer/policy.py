"""The policy: a causal language model with float32 master weights, and the log-probs of completions under it.

    Hugging Face folder -> Policy.load -> completion_logprobs(packed batch), differentiable
                                       -> published_tensors() for the engines, sequence_logprobs() for the probe of what they compute

The model is called with the attention of `tree_attention`, with `use_cache=False`, and with logits at the rows that predict completion
tokens only. A packed call with the default cache or an all-ones mask gives log-probs that are wrong by nats without any error, so nothing
but this module calls the model, and `load` compares trees with the model's own attention on single sequences.

Of a learner's several processes each has a policy that is a part of one model (`distributed`); what is said of forward passes holds for
all of them together. Not covered: models whose final logits are soft-capped, another policy's weights in a model that is sharded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM

from rlvr_api.spec import Dtype, RLVRJobSpec
from rlvr_trainer import tree_attention
from rlvr_trainer.distributed.commands import Command, Load, Score
from rlvr_trainer.distributed.ranks import ALONE, Ranks, Shard
from rlvr_trainer.distributed.sharding import GatheredTensors, MergedShards, ShardedModel
from rlvr_trainer.lora import adapted_shapes, add_adapters, merged_weights, plain_weights, renamed
from rlvr_trainer.packing import Branch, PackedBatch, Tree, pack
from rlvr_trainer.token_logprobs import TokenScores, score_states, score_tokens
from rlvr_trainer.weights.adapters import fits

PREFIX = "model/"
"""Of weights among a checkpoint's tensors."""
BLOCK_TOKENS_CPU = 128
BLOCK_TOKENS_GPU = 1024
"""Attention blocks: on a CPU small ones save arithmetic, on a GPU large ones save kernel launches."""
LOGITS_BYTES_CPU = 1 << 30
LOGITS_BYTES_GPU = 4 << 30
"""Float32 logits of a micro-batch that are made at once; larger ones are made in chunks, twice."""
SELF_CHECK_TOLERANCE = 1e-3
"""Nats; float32 rounding is far below, and an ignored attention plan far above."""


class Policy:
    """The model that is trained.

    Args:
        model: float32, on its device, with `tree_attention` as its attention.
        compute_dtype: of forward and backward; weights stay float32.
        gradient_checkpointing: recompute activations in the backward pass.
        ranks: the processes that it is spread over.
    """

    def __init__(
        self, model: nn.Module, compute_dtype: torch.dtype = torch.float32, *, gradient_checkpointing: bool = False, ranks: Ranks = ALONE
    ) -> None:
        self._model = model
        self._compute_dtype = compute_dtype
        self.ranks = ranks
        self._sharded = ShardedModel(model, ranks) if ranks.size > 1 else None
        self.device = next(model.parameters()).device
        self._load_again: Callable[[], Policy] | None = None
        self.adapter_scale: float | None = None
        """Of what `published_tensors` gives; see `rlvr_trainer.weights.protocol.Layout`."""
        self._head_gives_logits = True
        """And nothing scales or shifts them behind it; `load` finds out."""
        self.block_tokens = BLOCK_TOKENS_CPU if self.device.type == "cpu" else BLOCK_TOKENS_GPU
        _silence_dropout(model)
        model.train()  # without this, gradient checkpointing does nothing
        if gradient_checkpointing:
            enable: Callable[..., None] = model.gradient_checkpointing_enable  # type: ignore[assignment]
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @classmethod
    def load(cls, folder: Path, spec: RLVRJobSpec, ranks: Ranks = ALONE) -> "Policy":
        """Load the model of a Hugging Face folder, and check that it computes trees as it computes sequences.

        Raises:
            OSError: the folder or a file in it is missing.
            ValueError: it is no causal language model, not one that can be trained on trees, or `learner.gpus` asks for what is not there.
        """
        device = _device(spec.learner.gpus, ranks)
        model = _load_model(folder)
        if getattr(model.config, "final_logit_softcapping", None) is not None:
            raise ValueError("its final logits are soft-capped, which the learner does not support: take another model")
        if spec.model.lora is not None:
            add_adapters(model, model.get_output_embeddings(), spec.model.lora, spec.seed)
        policy = cls(
            model if ranks.size > 1 else model.to(device),  # sharding moves a layer at a time
            getattr(torch, spec.precision.learner_compute),
            gradient_checkpointing=spec.learner.gradient_checkpointing,
            ranks=ranks,
        )
        if spec.model.lora is not None and fits(folder, adapted_shapes(model)):
            policy.adapter_scale = spec.model.lora.alpha / spec.model.lora.rank
        policy._check_trees(spec.model.max_model_len)
        policy._load_again = partial(cls.load, folder, spec, ranks)
        return policy

    def load_again(self) -> "Policy":
        """Another policy, as this one was loaded."""
        assert self._load_again is not None
        return self._load_again()

    def completion_logprobs(self, batch: PackedBatch, temperature: float, weights: Mapping[str, Tensor] | None = None) -> TokenScores:
        """Log-prob of each of the batch's N completion tokens, and the entropy it was drawn from.

        Args:
            batch: on the policy's device.
            temperature: divides the logits.
            weights: another policy's, by the names of `parameters` or of `engine_named_tensors`; None: its own.

        Returns:
            Both float32 (float64 for a float64 model), [N], differentiable.
        """
        return self._score(batch, temperature, weights, with_logits=self._takes_logits(len(batch.logit_rows)))[0]

    def completion_states(self, batch: PackedBatch, temperature: float) -> tuple[TokenScores, Tensor]:
        """As `completion_logprobs`, and the last hidden state from which each token was drawn: [N, hidden size], differentiable."""
        scores, states = self._score(batch, temperature, None, with_logits=self._takes_logits(len(batch.logit_rows)))
        if len(states) != len(batch.logit_rows):
            raise ValueError(
                f"the model gives its head {len(states)} states where {len(batch.logit_rows)} logits are wanted: take another one"
            )
        return scores, states[batch.token_rows]

    @property
    def hidden_size(self) -> int:
        """Of the states that `completion_states` gives."""
        return self._head.in_features

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable weights by the names of the model's state dict, each storage once: a tied `lm_head.weight` is left out.

        With `model.lora` the adapters alone. Of a sharded model the own rows.
        """
        if self._sharded is not None:
            return self._sharded.parameters
        return {name: parameter for name, parameter in self._model.named_parameters() if parameter.requires_grad}

    def shards(self) -> list[Shard]:
        """Which rows of which wholes `parameters` are, in their order; none where they are the wholes."""
        everything = self.all_shards()
        return [everything[name] for name in self.parameters()] if everything else []

    def all_shards(self) -> dict[str, Shard]:
        """The same of all weights, frozen ones included, by name."""
        return self._sharded.shards(PREFIX) if self._sharded is not None else {}

    def take_gradients(self) -> None:
        """Have the gradients of all processes' backward passes, summed, at `parameters`."""
        if self._sharded is not None:
            self._sharded.take_gradients()

    def drop_gradients(self) -> None:
        """Free gradients that were not taken."""
        if self._sharded is not None:
            self._sharded.drop_gradients()

    def published_tensors(self) -> Mapping[str, Tensor]:
        """What engines are sent: the adapters where they can add them themselves (`adapter_scale`), else `engine_named_tensors`."""
        if self.adapter_scale is None:
            return self.engine_named_tensors()
        parameters = self.parameters()
        if self._sharded is not None:
            return GatheredTensors(dict(zip(parameters, self.shards(), strict=True)), self.ranks, self.device)
        return {name: parameter.detach() for name, parameter in parameters.items()}

    def engine_named_tensors(self) -> Mapping[str, Tensor]:
        """The weights, float32, on the policy's device, by the names of the model's folder; adapters are worked in.

        No copies but of what is merged, so they change with the next step; those of a sharded model are gathered one by one.
        """
        if self._sharded is not None:
            shards = self.all_shards()
            parts = {
                name: shards[found] if isinstance(found, str) else MergedShards(found, shards)
                for name, found in plain_weights(self._model).items()
            }
            return GatheredTensors(parts, self.ranks, self.device)
        return merged_weights(self._model)

    def sequence_logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], cast_dtype: Dtype) -> list[float]:
        """Log-probs of one completion at temperature 1, with weights and compute in `cast_dtype`, as an engine of that dtype has them."""
        branch = Branch(tuple(completion_ids), (0.0,) * len(completion_ids))
        batch = pack([Tree(0, tuple(prompt_ids), (branch,))], self.block_tokens).to(self.device)
        dtype = getattr(torch, cast_dtype)
        self.ranks.tell(lambda: Command(Score(prompt_ids=[*prompt_ids], completion_ids=[*completion_ids], cast_dtype=cast_dtype)))
        with torch.no_grad():
            if self._sharded is not None:
                # Casting a sharded model would take a second one: it computes in this dtype, with the weights as they are.
                return self._score(batch, 1.0, None, with_logits=True, dtype=dtype)[0].logprobs.tolist()
            weights = {name: tensor.to(dtype) for name, tensor in self.engine_named_tensors().items()}
            logits = self._call(batch, weights).logits
            return score_tokens(logits.squeeze(0), batch.token_rows, batch.targets, 1.0).logprobs.tolist()

    def tensors(self) -> dict[str, Shard | Tensor]:
        """The weights as a checkpoint names them; of a sharded model the own rows."""
        if self._sharded is not None:
            return {shard.name: shard for shard in self.shards()}
        return {PREFIX + name: parameter.detach() for name, parameter in self.parameters().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the weights out of a checkpoint's tensors; others are ignored.

        Raises:
            ValueError: the weights of another model; none is changed.
        """
        self.check_tensors(tensors)
        self.ranks.tell(lambda: Command(Load()))
        self.take_tensors(tensors)

    def check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError when a checkpoint's tensors have the weights of another model."""
        shapes = {name: part.shape for name, part in self.tensors().items()}
        found = {PREFIX + name: tensor for name, tensor in weights_of(tensors).items()}
        differing = sorted(found.keys() ^ shapes.keys()) or sorted(name for name, shape in shapes.items() if found[name].shape != shape)
        if differing:
            raise ValueError(
                f"the checkpoint's weights are not those of spec.model.uri: '{differing[0].removeprefix(PREFIX)}' and {len(differing) - 1} "
                "more differ; give the job that the checkpoint is from, with the same model.lora, or another name"
            )

    def take_tensors(self, tensors: Mapping[str, Tensor] | None) -> None:
        """Take the weights out of tensors that have been checked. On all processes at once; those of the lead are dealt out."""
        with torch.no_grad():
            if self._sharded is None:
                for name, parameter in self.parameters().items():
                    assert tensors is not None
                    parameter.copy_(tensors[PREFIX + name])
            for shard in self.shards():
                whole = None if tensors is None else tensors[shard.name]
                shard.local.copy_(self.ranks.scatter(whole, shard.shape, self.device))

    def _score(
        self,
        batch: PackedBatch,
        temperature: float,
        weights: Mapping[str, Tensor] | None,
        *,
        with_logits: bool,
        dtype: torch.dtype | None = None,
    ) -> tuple[TokenScores, Tensor]:
        """Of the tokens, and the states that the head is given: of the logit rows, [U, hidden size]. `dtype`: None is that of training."""
        seen: list[tuple[Tensor, Tensor]] = []
        dtype = dtype or self._compute_dtype

        def look(head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            assert isinstance(head.weight, Tensor)
            seen.append((arguments[0].squeeze(0), head.weight))
            return None if with_logits else (arguments[0][:, :0],)  # no row, no work

        handle = self._head.register_forward_pre_hook(look)
        try:
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                logits = self._call(batch, weights).logits
        finally:
            handle.remove()
        states, head_weight = seen[0]
        if with_logits:
            scores = score_tokens(logits.squeeze(0), batch.token_rows, batch.targets, temperature)
        else:
            cast = states if dtype == torch.float32 else states.to(dtype)
            scores = score_states(cast, head_weight, batch.token_rows, batch.targets, temperature)
        self._end_forward()
        return scores, states

    def _end_forward(self) -> None:
        if self._sharded is not None and not torch.is_grad_enabled():
            self._sharded.forget_forward()

    def _takes_logits(self, rows: int) -> bool:
        """Whether logits are made at once: they are small, or the model makes more of them than its head does."""
        limit = LOGITS_BYTES_CPU if self.device.type == "cpu" else LOGITS_BYTES_GPU
        return not self._head_gives_logits or rows * self._head.out_features * 4 <= limit

    @property
    def _head(self) -> nn.Linear:
        head: nn.Linear = self._model.get_output_embeddings()  # type: ignore[operator]
        return head

    def _call(self, batch: PackedBatch, weights: Mapping[str, Tensor] | None) -> Any:
        if weights is None:
            return self._model(**_arguments(batch))
        assert self._sharded is None
        return torch.func.functional_call(self._model, renamed(self._model, weights), kwargs=_arguments(batch))

    def _check_trees(self, max_model_len: int) -> None:
        prompt, branches = (3, 1, 2), ((1, 3, 2), (2, 2, 1, 3))
        tree = Tree(0, prompt, tuple(Branch(tokens, (0.0,) * len(tokens)) for tokens in branches))
        batch = pack([tree], self.block_tokens).to(self.device)
        arguments = _arguments(batch)
        arguments["attention_plan"] = tree_attention.AttentionPlan(batch.attention.blocks, max_model_len)
        with torch.no_grad():
            logits = self._model(**arguments).logits.squeeze(0)
            found = score_tokens(logits, batch.token_rows, batch.targets, 1.0).logprobs
            wanted = torch.cat([self._plain_logprobs(prompt, tokens) for tokens in branches])
            by_logits, by_head = (self._score(batch, 1.0, None, with_logits=way)[0].logprobs for way in (True, False))
            self._end_forward()
        gap = float((found - wanted).abs().max())
        if not gap <= SELF_CHECK_TOLERANCE:
            raise ValueError(
                f"its log-probs on a tree of completions differ by {gap:.3g} nats from those on single sequences, so "
                "some of its layers are not plain attention; take a model whose layers all are"
            )
        self._head_gives_logits = float((by_head - by_logits).abs().max()) <= SELF_CHECK_TOLERANCE

    def _plain_logprobs(self, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
        """By the model's own attention, one sequence without a cache."""
        ids = torch.tensor([*prompt, *completion], device=self.device)
        switch: Callable[[str], None] = self._model.set_attn_implementation  # type: ignore[assignment]
        switch("sdpa")
        try:
            logits = self._model(input_ids=ids[None], use_cache=False).logits[0]
        finally:
            switch(tree_attention.NAME)
        rows = log_softmax(logits[len(prompt) - 1 : -1].float(), -1)
        return rows.gather(1, ids[len(prompt) :, None])[:, 0]


def weights_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights among a checkpoint's tensors, by the names of `Policy.parameters`."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a Hugging Face folder, float32 on the CPU, by the names of `Policy.parameters`."""
    return {name: parameter.detach() for name, parameter in _load_model(folder).named_parameters()}


def _load_model(folder: Path) -> Any:
    tree_attention.register()
    with _no_progress_bars():
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=tree_attention.NAME, local_files_only=True
        )


def _arguments(batch: PackedBatch) -> dict[str, object]:
    return {
        "input_ids": batch.token_ids[None],
        "position_ids": batch.position_ids[None],
        "attention_plan": batch.attention,
        "logits_to_keep": batch.logit_rows,
        "use_cache": False,
    }


def _device(gpus: int, ranks: Ranks) -> torch.device:
    if gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"learner.gpus is {gpus}, and torch {torch.__version__} sees no GPU here: set it to 0, or give the learner a GPU")
    return torch.device("cuda") if ranks.size == 1 else torch.device("cuda", ranks.rank)


def _silence_dropout(model: nn.Module) -> None:
    """Log-probs must be those of the policy that sampled, which has no dropout."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if "attention_dropout" in vars(module):
            vars(module)["attention_dropout"] = 0.0


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
