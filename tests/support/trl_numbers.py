"""Writes tests/golden/trl.json: losses and gradients that TRL's own GRPOTrainer computes on fixed tensors.

    pip install trl==1.16.0 accelerate datasets      (in an environment of its own; it is no dependency of this project)
    python tests/support/trl_numbers.py

Only `_compute_loss` is called, on a trainer that has nothing but its settings, so what is kept is TRL's arithmetic and not ours.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch

FILE = Path(__file__).parents[1] / "golden" / "trl.json"
LENGTHS = (6, 4, 1, 5)
"""Of the completions; the table is padded to the longest."""

CASES = {
    "grpo": {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 3.0},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "sapo": {"loss_type": "sapo"},
    "grpo weighted": {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 3.0, "weighted": True},
    "sapo weighted": {"loss_type": "sapo", "weighted": True},
    "grpo with opsm": {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 3.0, "off_policy_mask_threshold": 0.1},
    "grpo with entropy": {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 3.0, "entropy_coef": 0.01},
    "k3": {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 3.0, "beta": 1.0, "zero_advantages": True},
}


class Trainer(SimpleNamespace):
    """The settings that `_compute_loss` reads."""

    def __init__(self, trainer_class, logprobs, entropies, **changes):
        args = SimpleNamespace(
            delta=changes.get("delta"), sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, use_bias_correction_kl=False,
            steps_per_generation=1,
        )  # fmt: skip
        super().__init__(
            args=args, aux_loss_enabled=False, top_entropy_quantile=1.0, beta=changes.get("beta", 0.0), loss_type=changes["loss_type"],
            off_policy_mask_threshold=changes.get("off_policy_mask_threshold"), epsilon_low=changes.get("epsilon_low", 0.2),
            importance_sampling_level=changes.get("importance_sampling_level", "token"), epsilon_high=changes.get("epsilon_high", 0.2),
            use_vllm=changes.get("weighted", False), vllm_importance_sampling_correction=True, max_completion_length=max(LENGTHS),
            model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, use_adaptive_entropy=False,
            entropy_coef=changes.get("entropy_coef", 0.0), _entropy_bonus_enabled="entropy_coef" in changes,
            _metrics={"train": defaultdict(list)},
            accelerator=SimpleNamespace(num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x),
            get_off_policy_mask=trainer_class.get_off_policy_mask,
            _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, entropies, None),
        )  # fmt: skip


def tensors():
    """Log-probs and the like, [completions, tokens] in float64; entries behind a completion's end mean nothing."""
    generator = torch.Generator().manual_seed(20)
    shape = (len(LENGTHS), max(LENGTHS))

    def noise(scale):
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    logprobs = -torch.rand(shape, generator=generator, dtype=torch.float64) * 3 - 0.05
    return {
        "logprobs": logprobs,
        "old": logprobs - noise(0.5),
        "sampler": logprobs - noise(0.6),
        "reference": logprobs - noise(0.7),
        "entropies": torch.rand(shape, generator=generator, dtype=torch.float64),
        "weights": torch.rand(shape, generator=generator, dtype=torch.float64) * 2,
        "advantages": torch.tensor([1.0, -0.5, 0.75, -1.25], dtype=torch.float64),
    }


def main():
    """Write the file."""
    import trl
    from trl.trainer.grpo_trainer import GRPOTrainer

    given = tensors()
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    results = {}
    for name, changes in CASES.items():
        logprobs, entropies = given["logprobs"].clone().requires_grad_(), given["entropies"].clone().requires_grad_()
        ids = torch.zeros(mask.shape, dtype=torch.long)
        advantages = given["advantages"] * (0.0 if changes.get("zero_advantages") else 1.0)
        inputs = {
            "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids, "completion_mask": mask.long(),
            "advantages": advantages, "old_per_token_logps": given["old"], "sampling_per_token_logps": given["sampler"],
            "ref_per_token_logps": given["reference"], "importance_sampling_ratio": given["weights"], "num_items_in_batch": mask.sum(),
        }  # fmt: skip
        trainer = Trainer(GRPOTrainer, logprobs, entropies, **changes)
        loss = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
        loss.backward()
        results[name] = {"loss": loss.item(), "gradient": logprobs.grad[mask].tolist()}
        if entropies.grad is not None:
            results[name]["entropy_gradient"] = entropies.grad[mask].tolist()
    flat = {key: value[mask].tolist() if value.shape == mask.shape else value.tolist() for key, value in given.items()}
    FILE.write_text(json.dumps({"trl": trl.__version__, "lengths": LENGTHS, "tensors": flat, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
