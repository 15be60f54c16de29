"""A policy of the tiny model with adapters, and its adapters published to an engine."""

import torch

from rlvr_api.spec import RLVRJobSpec
from rlvr_api.weight_sync import TorchDistributed
from rlvr_trainer.policy import Policy
from rlvr_trainer.weights.probe import Probe
from rlvr_trainer.weights.publisher import WeightPublisher


def load_policy(folder, lora=None):
    """With `model.lora` as given; None: without adapters."""
    spec = {
        "model": {"uri": f"file://{folder}", "maxModelLen": 128, **({"lora": lora} if lora else {})},
        "environments": [{"name": "sums", "arithmetic": {}}],
        "sampling": {"maxTokens": 8},
        "stages": [{"name": "climb", "rlvr": {"steps": 20}}],
    }
    return Policy.load(folder, RLVRJobSpec.model_validate(spec))


def disturb(policy, generator, scale):
    """Other weights, at random."""
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


class AdapterLearner:
    """The tiny model with adapters, which alone are published."""

    def __init__(self, folder, tolerance):
        self.policy = load_policy(folder, {"rank": 4})
        self.tolerance = tolerance
        self.generator = torch.Generator().manual_seed(0)

    def publish(self, handle, versions, attempt, **options):
        """Other adapters in each version; how far engine and policy are apart, and the bytes of an update."""
        policy, prompt = self.policy, tuple(range(5, 45))
        probe = Probe(prompt, lambda prompt, completion: policy.sequence_logprobs(prompt, completion, "float32"), self.tolerance)
        gaps, sizes = [], set()
        with WeightPublisher(
            (handle,), timeout_seconds=30.0, probe=probe, advertised_host="127.0.0.1", attempt=attempt, engine_dtype="float32",
            adapter_scale=policy.adapter_scale, **{"transport": TorchDistributed(), **options},
        ) as publisher:  # fmt: skip
            for version in versions:
                disturb(policy, self.generator, 0.1)
                report = publisher.publish(policy.published_tensors(), version)
                assert report.dropped == {}
                gaps.append(report.probe_gap_max)
                sizes.add(report.size_bytes)
        return gaps, max(sizes)
