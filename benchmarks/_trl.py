"""`_trl.py SITE`: train with TRL's GRPOTrainer by the settings on standard input; run by `peers.py`.

Writes the model, and as its last line the samples and seconds from the end of the first optimizer step to the end of the last. The settings
are those of the job beside it: GRPO with the group's standard deviation, no KL, one update a step, AdamW with a constant rate.
"""

import importlib
import json
import sys
import time
import warnings
from typing import Any

sys.path.append(sys.argv[1])
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402

from rlvr_api.environments import EnvironmentSpec  # noqa: E402
from rlvr_verifier.environments.arithmetic import ArithmeticEnvironment  # noqa: E402


class Clock(TrainerCallback):  # type: ignore[misc]  # TRL and transformers are not typed
    """When each optimizer step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.ends.append(time.monotonic())


def main() -> None:
    """Train and write."""
    settings, trl, datasets = json.load(sys.stdin), importlib.import_module("trl"), importlib.import_module("datasets")
    environment = ArithmeticEnvironment(EnvironmentSpec.model_validate(settings["environment"]))

    def reward(completions: list[Any], payload: list[str], **_: Any) -> list[float]:
        return [environment.score(json.loads(one), text[0]["content"], False).score for one, text in zip(payload, completions, strict=True)]

    samples, clock = settings["groups"] * settings["group_size"], Clock()
    config = trl.GRPOConfig(
        output_dir=settings["output"], seed=settings["seed"], max_steps=settings["steps"], use_cpu=True, bf16=False, report_to=[],
        save_strategy="no", logging_steps=1, per_device_train_batch_size=samples // 4, gradient_accumulation_steps=4,
        gradient_checkpointing=False, num_generations=settings["group_size"], max_completion_length=settings["max_tokens"],
        learning_rate=settings["learning_rate"], lr_scheduler_type="constant", adam_beta2=0.95, max_grad_norm=1.0, beta=0.0,
        temperature=1.0, top_k=0, top_p=1.0, loss_type="grpo", scale_rewards="group", shuffle_dataset=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    trainer = trl.GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=datasets.Dataset.from_list(settings["tasks"]),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]), callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    trainer.save_model(settings["output"])
    print("\n" + json.dumps({"samples": samples * (len(clock.ends) - 1), "seconds": clock.ends[-1] - clock.ends[0]}), flush=True)


if __name__ == "__main__":
    main()
