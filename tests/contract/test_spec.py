"""What a job may say: the cases that the models refuse and, by the same rules in CEL, the API server (tests/cluster)."""

import copy
import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rlvr_api.loading import InvalidJobError, load_job
from rlvr_api.spec import RLVRJob

ROOT = Path(__file__).parents[2]
VALID = {
    "apiVersion": "rlvr.dev/v1alpha1",
    "kind": "RLVRJob",
    "metadata": {"name": "job"},
    "spec": {
        "model": {"uri": "file:///models/base", "maxModelLen": 128},
        "environments": [{"name": "sums", "arithmetic": {}}],
        "sampling": {"maxTokens": 8},
        "stages": [{"name": "climb", "rlvr": {"steps": 4}}],
    },
}

ALGORITHMS = {
    "grpo": {}, "drGrpo": {"normalizerTokens": 8}, "rloo": {}, "reinforcePlusPlus": {}, "dapo": {"overlong": {"bufferTokens": 2}},
    "gspo": {}, "cispo": {}, "sapo": {}, "ppo": {},
}  # fmt: skip
"""All that take a correction."""


def audited(algorithm, norm=10.0, **audit):
    """A spec with audits."""
    return {
        **VALID["spec"],
        "environments": [{"name": "sums", "arithmetic": {}, "audit": {"finalAnswer": {}}}],
        "stages": [{"name": "a", "rlvr": {"steps": 1, "algorithm": algorithm, "optimizer": {"maxGradientNorm": norm}}}],
        "integrity": {"audit": audit},
    }


def noisy(algorithm, **settings):
    """A spec with a verifier whose error rates are known."""
    return {
        **VALID["spec"],
        "environments": [{"name": "sums", "arithmetic": {}, "noise": {"falsePositiveRate": 0.1, "falseNegativeRate": 0.2}}],
        "stages": [{"name": "a", "rlvr": {"steps": 1, "algorithm": algorithm, **settings}}],
    }


REFUSED = {
    "two environments of one name": ("spec.environments", [{"name": "a", "arithmetic": {}}, {"name": "a", "arithmetic": {}}], "twice"),
    "two stages of one name": ("spec.stages", [{"name": "a", "rlvr": {"steps": 1}}, {"name": "a", "rlvr": {"steps": 1}}], "twice"),
    "an environment of no kind": ("spec.environments.0", {"name": "a"}, "exactly one of"),
    "an environment of two kinds": ("spec.environments.0.math", {"dataset": "file:///d"}, "exactly one of"),
    "a stage of no kind": ("spec.stages.0", {"name": "a"}, "exactly one of"),
    "two algorithms": ("spec.stages.0.rlvr.algorithm", {"grpo": {}, "dppoTv": {}}, "exactly one of"),
    "no correction kind": ("spec.offPolicy", {"correction": {}}, "exactly one of"),
    "levels that end before they start": ("spec.environments.0.levels", {"start": 2, "maximum": 1}, "below start"),
    "a dataset with levels": (
        "spec.environments.0",
        {"name": "m", "math": {"dataset": "file:///d"}, "levels": {"maximum": 2}},
        "a dataset has one level",
    ),
    "a dataset of queries with levels": (
        "spec.environments.0",
        {"name": "q", "sql": {"dataset": "file:///d"}, "levels": {"maximum": 2}},
        "a dataset has one level",
    ),
    "an audit of what has no final answer": (
        "spec.environments.0",
        {"name": "q", "regex": {"dataset": "file:///d"}, "audit": {"finalAnswer": {}}},
        "audit.finalAnswer is for arithmetic, math, judge, not for regex",
    ),
    "a judge at no address": (
        "spec.environments.0",
        {"name": "j", "judge": {"dataset": "file:///d", "endpoint": "judge.example", "model": "m"}},
        "endpoint",
    ),
    "an instruction without the problem": ("spec.environments.0.arithmetic", {"instruction": "Say a number."}, "{problem}"),
    "a calculator without the problem": ("spec.environments", [{"name": "desk", "calculator": {"instruction": "?"}}], "{problem}"),
    "returns that mean nothing": (
        "spec.environments",
        [{"name": "lake", "gymnasium": {"id": "FrozenLake-v1", "lowestReturn": 1, "highestReturn": 1}}],
        "is not above lowestReturn",
    ),
    "rewards that mean nothing": (
        "spec.environments",
        [{"name": "words", "taskset": {"id": "words", "lowestReward": 1, "highestReward": 1}}],
        "is not above lowestReward",
    ),
    "an environment of several turns for a stage of whole completions": (
        "spec",
        {
            **VALID["spec"],
            "environments": [{"name": "desk", "calculator": {}}],
            "stages": [{"name": "a", "rejectionSampling": {}}],
        },
        "learns from completions of one turn",
    ),
    "two ways for weights": (
        "spec.weightSync",
        {"torchDistributed": {}, "objectStore": {}},
        "torchDistributed and objectStore are both set",
    ),
    "an operation twice": ("spec.environments.0.arithmetic", {"operations": ["+", "+"]}, "twice"),
    "a group of one": ("spec.stages.0.rlvr.groupSize", 1, "at least 2"),
    "ordered and resampled": (
        "spec.stages.0.rlvr",
        {"steps": 1, "ordered": True, "zeroVariance": "resample"},
        "ordered allows no discards",
    ),
    "ordered and asynchronous": ("spec.stages.0.rlvr.ordered", True, "maxStaleness 0"),
    "more tensor parallelism than GPUs": ("spec.rollouts", {"tensorParallel": 2, "gpusPerReplica": 1}, "tensorParallel"),
    "a drop limit below the staleness limit": ("spec.offPolicy", {"maxStaleness": 4, "dropBeyond": 3}, "dropBeyond"),
    "a governor that pauses before it tightens": (
        "spec.offPolicy.governor",
        {"maxKl": 0.5, "pauseKl": 0.5},
        "pause where it should tighten",
    ),
    "a governor that may not tighten": ("spec.offPolicy", {"maxStaleness": 1, "governor": {"minStaleness": 2}}, "minStaleness 2 is above"),
    "a governor with a cap above the correction's": ("spec.offPolicy.governor", {"minCap": 3}, "minCap 3.0 is above the bound 2.0"),
    "a governor with a cap above the masking's": (
        "spec.offPolicy",
        {"correction": {"sequenceMasked": {"high": 1.5}}, "governor": {"minCap": 1.6}},
        "correction.sequenceMasked",
    ),
    "a governor with nothing to govern": (
        "spec.offPolicy",
        {"maxStaleness": 0, "correction": {"none": {}}, "governor": {}},
        "nothing to tighten",
    ),
    "no room for a prompt": ("spec.sampling.maxTokens", 128, "no room for a prompt"),
    "two weights against the sampler": ("spec.stages.0.rlvr.algorithm", {"dppoTv": {}}, "already weighs by the sampler"),
    "no weight against the sampler": ("spec.offPolicy", {"correction": {"none": {}}}, "as if they were fresh"),
    "another algorithm without a weight": (
        "spec",
        {
            **VALID["spec"],
            "stages": [{"name": "a", "rlvr": {"steps": 1, "algorithm": {"sapo": {}}}}],
            "offPolicy": {"correction": {"none": {}}},
        },
        "as if they were fresh",
    ),
    "GSPO with the range of GRPO": (
        "spec.stages.0.rlvr.algorithm",
        {"gspo": {"clipLow": 0.2}},
        "spec.stages[0].rlvr.algorithm.gspo.clipLow: is 0.2; write a number above 0.0 and at most 0.05, for example 0.0003",
    ),
    "Dr. GRPO without its constant": ("spec.stages.0.rlvr.algorithm", {"drGrpo": {}}, "normalizerTokens: is missing"),
    "a cap of CISPO meant as a distance": ("spec.stages.0.rlvr.algorithm", {"cispo": {"maxRatio": 0.2}}, "a number above 1"),
    "several updates without a ratio": ("spec.stages.0.rlvr", {"steps": 1, "minibatches": 2, "algorithm": {"rloo": {}}}, "has no ratio"),
    "more minibatches than groups": ("spec.stages.0.rlvr", {"steps": 1, "minibatches": 4, "promptsPerStep": 3}, "above promptsPerStep"),
    "live groups thrown away": (
        "spec.stages.0.rlvr",
        {"steps": 1, "zeroVariance": "resample", "algorithm": {"reinforcePlusPlus": {"groupBaseline": False}}},
        "groupBaseline is false",
    ),
    "groups that teach the critic thrown away": (
        "spec.stages.0.rlvr",
        {"steps": 1, "zeroVariance": "resample", "algorithm": {"ppo": {}}},
        "teach the critic",
    ),
    "a buffer longer than a completion": (
        "spec.stages.0.rlvr.algorithm",
        {"dapo": {"overlong": {"bufferTokens": 9}}},
        "overlong.bufferTokens",
    ),
    "k1 in the loss": ("spec.stages.0.rlvr.referenceKl", {"coefficient": 1e-3, "estimator": "k1"}, "a gradient of mean 0"),
    "k2 in the reward": ("spec.stages.0.rlvr.referenceKl", {"coefficient": 1e-3, "placement": "reward"}, "set it to k1"),
    "more tries than samples": ("spec.stages.0", {"name": "a", "evaluate": {"k": [1, 32]}}, "pass@k needs k samples"),
    "more kept than sampled": ("spec.stages.0", {"name": "a", "rejectionSampling": {"keepPerPrompt": 17}}, "above samplesPerPrompt"),
    "a cosine to nowhere": ("spec.stages.0", {"name": "a", "rejectionSampling": {"optimizer": {"schedule": "cosine"}}}, "write constant"),
    "a gate on an environment that is not there": (
        "spec.stages.0.promoteWhen",
        {"atLeast": 0.5, "environment": "words"},
        "promoteWhen.environment",
    ),
    "a gate that everything passes": ("spec.stages.0.promoteWhen", {"atLeast": 0}, "a number above 0"),
    "given traces that are forbidden": (
        "spec",
        {
            **VALID["spec"],
            "stages": [{"name": "a", "sft": {"traces": "s3://data/t.jsonl"}}],
            "provenance": {"externalTraces": "Forbidden"},
        },
        "stages[0].sft learns from words that are not the model's own",
    ),
    "a teacher that is forbidden": (
        "spec",
        {
            **VALID["spec"],
            "stages": [{"name": "a", "distill": {"teacher": {"endpoint": "https://t/v1", "model": "m"}}}],
            "provenance": {"externalTraces": "Forbidden"},
        },
        "stages[0].distill learns from words that are not the model's own",
    ),
    "teachers with different Secrets": (
        "spec.stages",
        [
            {"name": name, "distill": {"teacher": {"endpoint": "https://t/v1", "model": "m", "credentialsSecret": {"name": name}}}}
            for name in ("a", "b")
        ],
        "stages name the teachers' Secrets a, b, and a job has one",
    ),
    "a teacher with a query": (
        "spec.stages.0",
        {"name": "a", "distill": {"teacher": {"endpoint": "https://t/v1?k=1", "model": "m"}}},
        "of the form",
    ),
    "more answers kept than asked for": (
        "spec.stages.0",
        {"name": "a", "distill": {"teacher": {"endpoint": "https://t/v1", "model": "m"}, "keepPerPrompt": 2}},
        "keepPerPrompt 2 is above samplesPerPrompt 1",
    ),
    "floors that are too much together": ("spec.mixing", {"floor": 1.0, "cap": 0.5}, "floor 1.0 is above cap 0.5"),
    "a cap that leaves prompts over": ("spec.mixing", {"cap": 0.5}, "cannot hold for 1 environments"),
    "a teacher compared at another temperature": (
        "spec",
        {
            **VALID["spec"],
            "sampling": {"maxTokens": 8, "temperature": 0.7},
            "stages": [{"name": "a", "onPolicyDistillation": {"steps": 1, "teacher": {"endpoint": "http://t/v1", "model": "m"}}}],
        },
        "sampling.temperature 0.7 changes one of them",
    ),
    "a number of tries twice": ("spec.stages.0", {"name": "a", "evaluate": {"k": [2, 2]}}, "k lists a number twice"),
    "traces from a web page": ("spec.stages.0", {"name": "a", "sft": {"traces": "https://x/t.jsonl"}}, "of the form"),
    "a name that is no label": ("metadata.name", "Job_1", "of the form"),
    "a name that leaves no room": ("metadata.name", "a" * 41, "40 characters"),
    "an unknown field": ("spec.rollouts", {"replica": 2}, "did you mean 'replicas'?"),
    "text for a number": ("spec.stages.0.rlvr.steps", "4", "a whole number"),
    "fewer verifiers at most than at least": ("spec.verifiers", {"replicas": 3, "maxReplicas": 2}, "maxReplicas 2 is below replicas 3"),
    "a sandbox where no code is run": (
        "spec.verifiers",
        {"sandboxResources": {"limits": {"cpu": "2"}}},
        "sandboxResources means nothing without an environment that runs code",
    ),
    "a toleration of all with a value": (
        "spec.rollouts.pod",
        {"tolerations": [{"operator": "Exists", "key": "gpu", "value": "yes"}]},
        "means nothing with operator Exists",
    ),
    "a toleration without a key": ("spec.learner.pod", {"tolerations": [{"value": "yes"}]}, "needs a key"),
    "a toleration for a while of what does not evict": (
        "spec.verifiers.pod",
        {"tolerations": [{"operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 3}]},
        "NoExecute only",
    ),
    "an audit verifier that is never asked": ("spec.environments.0.audit", {"finalAnswer": {}}, "set integrity.audit to {}"),
    "audits by nobody": ("spec.integrity.audit", {}, "no environment has an audit verifier"),
    "an audit of a puzzle": (
        "spec.environments.0",
        {"name": "p", "reasoningGym": {"task": "chain_sum"}, "audit": {"finalAnswer": {}}},
        "not for reasoningGym",
    ),
    "an audit verifier of no kind": ("spec.environments.0.audit", {}, "exactly one of finalAnswer"),
    "audits that a standard deviation undoes": ("spec", audited({"grpo": {"normalizeByStd": True}}), "undoes integrity.audit"),
    "audits that a batch's deviation undoes": ("spec", audited({"reinforcePlusPlus": {}}), "undoes integrity.audit"),
    "audits that clipped gradients undo": ("spec", audited({"grpo": {}}, norm=1.0), "write 10 or more"),
    "noise that leaves nothing": (
        "spec.environments.0.noise",
        {"falsePositiveRate": 0.5, "falseNegativeRate": 0.5},
        "add up to 1 or more",
    ),
    "noise that nobody reads": ("spec.environments.0.noise", {"falsePositiveRate": 0.1, "falseNegativeRate": 0}, "remove noise"),
    "noise of verdicts mixed with lengths": (
        "spec",
        noisy({"dapo": {"normalizeByStd": True, "overlong": {"bufferTokens": 2}}}),
        "mixes lengths into them",
    ),
    "noise of verdicts mixed with a penalty": (
        "spec",
        noisy({"grpo": {"normalizeByStd": True}}, referenceKl={"coefficient": 0.01, "placement": "reward", "estimator": "k1"}),
        "referenceKl.placement to loss",
    ),
    "a violation that is not provided for": ("spec.integrity", {"onViolation": "Stop"}, "Warn"),
    "a GPU for two processes": ("spec.learner", {"processesPerNode": 2, "gpus": 1}, "write the same number"),
    "two GPUs for one process": ("spec.learner", {"gpus": 2}, "each process has one GPU"),
    "an amount in words": ("spec.rollouts.pod", {"resources": {"limits": {"memory": "4 GB"}}}, "of the form"),
    "a Secret's name in capitals": ("spec.storage.credentialsSecret", {"name": "S3"}, "of the form"),
    "a wish that is no truth value": ("spec.suspend", "yes", "true or false"),
    "a bucket in capitals": ("spec.storage", {"uri": "s3://Runs"}, "of the form"),
}
"""Name of the case: where the valid job is changed, to what, and part of the message."""

OUT_OF_BOUNDS = {
    "spec.seed": -1,
    "spec.model.uri": "hf://org/model",
    "spec.model.maxModelLen": 15,
    "spec.model.chatTemplate": "",
    "spec.model.lora": {"rank": 0},
    "spec.precision.engine": "float16",
    "spec.storage.endpoint": "s3:9000",
    "spec.storage.region": "r" * 65,
    "spec.environments": [],
    "spec.environments.0.name": "Sums",
    "spec.environments.0.levels.start": -1,
    "spec.environments.0.arithmetic.operations": ["/"],
    "spec.sampling.temperature": 0,
    "spec.sampling.maxTokens": 0,
    "spec.stages": [{"name": f"s{number}", "rlvr": {"steps": 1}} for number in range(17)],
    "spec.stages.0.name": "a" * 41,
    "spec.stages.0.rlvr.steps": 0,
    "spec.stages.0.rlvr.optimizer.learningRate": 0,
    "spec.stages.0.rlvr.optimizer.beta1": 1,
    "spec.stages.0.rlvr.entropyBonus": 0.2,
    "spec.stages.0.rlvr.referenceKl": {"coefficient": 0},
    "spec.evaluation.samplesPerTask": 1,
    "spec.rollouts.replicas": 4097,
    "spec.rollouts.minAvailable": 0,
    "spec.rollouts.pod.nodeSelector": {"pool": "not a label"},
    "spec.learner.gpus": 65,
    "spec.learner.processesPerNode": 0,
    "spec.learner.checkpoint.keepLast": 0,
    "spec.verifiers.replicas": 0,
    "spec.weightSync.timeoutSeconds": 0,
    "spec.weightSync.objectStore": {"maxDeltas": -1},
    "spec.offPolicy.maxStaleness": 65,
    "spec.offPolicy.governor.minEss": 1,
    "spec.integrity.canaryRate": 1.5,
    "spec.integrity.windowSteps": 0,
    "spec.failurePolicy.maxLearnerRestarts": -1,
    "spec.deadlines.provisioningSeconds": 86401,
    "spec.ttl.podsAfterFinishedSeconds": -1,
    "spec.scheduling.priorityClassName": "Research!",
    "spec.observability.tracing": {"endpoint": "otel:4318"},
}
"""One value that its field does not take."""

NOT_IN_CEL = {
    "a variable of the plan": ("spec.rollouts", {"env": {"RLVR_ATTEMPT": "1"}}, "env may not set RLVR_ATTEMPT"),
    "a credential in clear": ("spec.learner", {"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "env may not set AWS_SECRET_ACCESS_KEY"),
    "a variable with a dash": ("spec.learner", {"env": {"NCCL-DEBUG": "INFO"}}, "NCCL-DEBUG"),
    "an engine argument of the plan": ("spec.rollouts", {"engineArgs": {"port": 1}}, "engineArgs may not set port"),
    "an engine argument past the plan": ("spec.rollouts", {"engineArgs": {"served_model_name": "x"}}, "served_model_name"),
    "an engine argument without a value": ("spec.rollouts", {"engineArgs": {"max-num-seqs": None}}, "no value"),
}

ACCEPTED = {
    "as it is": ("metadata.name", "job"),
    "dppo without correction": (
        "spec",
        {
            **VALID["spec"],
            "stages": [{"name": "a", "rlvr": {"steps": 1, "algorithm": {"dppoTv": {}}}}],
            "offPolicy": {"correction": {"none": {}}},
        },
    ),
    "grpo in step without correction": ("spec.offPolicy", {"maxStaleness": 0, "correction": {"none": {}}}),
    "every algorithm": (
        "spec.stages",
        [
            {"name": kind.lower(), "rlvr": {"steps": 1, "minibatches": 1 if kind == "rloo" else 2, "algorithm": {kind: settings}}}
            for kind, settings in ALGORITHMS.items()
        ],
    ),
    "a cold start and a measurement": (
        "spec.stages",
        [
            {"name": "a", "sft": {"traces": "s3://data/t.jsonl", "tooLong": "refuse"}},
            {"name": "b", "evaluate": {"k": [16]}},
            {"name": "c", "rejectionSampling": {"rounds": 3}},
        ],
    ),
    "a gate": ("spec.stages.0.promoteWhen", {"metric": "eval/pass_rate", "atLeast": 0.6, "environment": "sums"}),
    "mixing and problems left alone": (
        "spec",
        {
            **VALID["spec"],
            "mixing": {"window": 8},
            "stages": [{"name": "a", "rlvr": {"steps": 1, "ordered": True, "revisit": {"solvedAfter": 9, "hopelessAfter": 3}}}],
            "offPolicy": {"maxStaleness": 0},
        },
    ),
    "a teacher that is asked about every token": (
        "spec.stages.0",
        {"name": "a", "onPolicyDistillation": {"steps": 1, "teacher": {"endpoint": "http://t/v1", "model": "m"}}},
    ),
    "a teacher": (
        "spec.stages.0",
        {
            "name": "a",
            "distill": {
                "teacher": {
                    "endpoint": "https://t/v1",
                    "model": "m",
                    "credentialsSecret": {"name": "t"},
                    "requestsPerMinute": 30,
                    "budgetTokens": 9,
                },
                "samplesPerPrompt": 4,
                "keepPerPrompt": 2,
            },
        },
    ),
    "a model of its own making": (
        "spec",
        {
            **VALID["spec"],
            "stages": [{"name": "a", "rejectionSampling": {}}, {"name": "b", "rlvr": {"steps": 2}}],
            "provenance": {"externalTraces": "Forbidden", "contamination": {"against": ["s3://data/known.jsonl"], "onFound": "Fail"}},
        },
    ),
    "a KL in the loss": ("spec.stages.0.rlvr.referenceKl", {"coefficient": 1e-3, "estimator": "k3", "reference": "stageStart"}),
    "a KL in the reward": ("spec.stages.0.rlvr.referenceKl", {"coefficient": 1e-3, "estimator": "k1", "placement": "reward"}),
    "every rejection": (
        "spec.offPolicy",
        {"correction": {"sequenceMasked": {}}, "rejection": {"geometric": {}, "vetoBelow": 1e-4, "opsm": {}}},
    ),
    "adapters": ("spec.model.lora", {"rank": 8, "alpha": 16}),
    "a governor": ("spec.offPolicy", {"maxStaleness": 8, "governor": {"minStaleness": 1, "minCap": 1.2}}),
    "a governor of staleness alone": (
        "spec",
        {
            **VALID["spec"],
            "stages": [{"name": "a", "rlvr": {"steps": 1, "algorithm": {"dppoTv": {}}}}],
            "offPolicy": {"correction": {"none": {}}, "governor": {}},
        },
    ),
    "a dataset": ("spec.environments.0", {"name": "m", "math": {"dataset": "file:///d"}}),
    "GPUs": ("spec.rollouts", {"gpusPerReplica": 4, "tensorParallel": 4, "engineArgs": {"max-num-seqs": 8}}),
    "no engines": ("spec.rollouts.replicas", 0),
    "pods with size and place": (
        "spec.rollouts.pod",
        {
            "resources": {"requests": {"cpu": "500m", "memory": "4Gi"}, "limits": {"rdma/hca": "1"}},
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "sharedMemory": "8Gi",
        },
    ),
    "a cluster's settings": (
        "spec",
        {
            **VALID["spec"],
            "storage": {"uri": "s3://runs/a", "endpoint": "http://s3:9000", "credentialsSecret": {"name": "s3"}},
            "verifiers": {"replicas": 2, "maxReplicas": 8},
            "scheduling": {"priorityClassName": "research", "gpuResource": "amd.com/gpu", "topologyKey": "topology.kubernetes.io/zone"},
            "suspend": True,
        },
    ),
    "audits": ("spec", audited({"grpo": {}}, positiveRate=0.1)),
    "known noise": ("spec", noisy({"grpo": {"normalizeByStd": True}})),
    "audits of a third with clipped gradients": ("spec", audited({"grpo": {}}, norm=1.0, positiveRate=0.3)),
    "audits that only measure": ("spec", audited({"reinforcePlusPlus": {}}, rewards="paid")),
    "the longest name": ("metadata.name", "a" * 40),
}


def changed(path, value):
    job = copy.deepcopy(VALID)
    node = job
    *parents, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in parents:
        node = node[step] if isinstance(step, int) else node.setdefault(step, {})
    node[last] = value
    return job


@pytest.mark.parametrize("case", [*REFUSED, *NOT_IN_CEL])
def test_refuses_with_the_way_out(case):
    path, value, part = {**REFUSED, **NOT_IN_CEL}[case]
    with pytest.raises(InvalidJobError) as refused:
        load_job(json.dumps(changed(path, value)).encode())
    assert part in str(refused.value)


@pytest.mark.parametrize("path", OUT_OF_BOUNDS)
def test_names_the_field_that_is_out_of_bounds(path):
    with pytest.raises(InvalidJobError) as refused:
        load_job(json.dumps(changed(path, OUT_OF_BOUNDS[path])).encode())
    assert as_written(path) in str(refused.value)


def as_written(path):
    """`spec.stages.0.name` as messages have it."""
    return re.sub(r"\.(\d+)", r"[\1]", path)


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepts(case):
    assert load_job(json.dumps(changed(*ACCEPTED[case])).encode()).kind == "RLVRJob"


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.name)
def test_examples_are_valid_and_survive_the_round_trip(file):
    """What is written to `job.json` is what every process reads."""
    job = load_job(file.read_bytes())
    assert RLVRJob.model_validate_json(job.model_dump_json(by_alias=True)) == job
    assert load_job(job.model_dump_json(by_alias=True).encode()) == job


def test_numbers_and_words_mean_what_kubectl_makes_of_them(tmp_path):
    text = json.dumps(VALID).replace('"steps": 4', '"steps": 4, "optimizer": {"learningRate": 1e-6}')
    assert load_job(text.encode()).spec.stages[0].rlvr.optimizer.learning_rate == 1e-6
    file = tmp_path / "job.yaml"
    named_on = changed("spec.environments.0.name", "on")
    YAML().dump(named_on, file)
    assert "name: on" in file.read_text()
    assert load_job(file.read_bytes()).spec.environments[0].name == "on"
