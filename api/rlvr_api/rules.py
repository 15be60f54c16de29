"""Rules between fields, in CEL, for the API server; each has its twin in a model's validator, which `rlvr validate` runs.

Rules sit under `spec`. The one root rule looks at creation only: a root rule that an upgrade tightens makes existing objects unwritable,
even undeletable. Every path in a rule is guarded with `has()` unless the schema gives it a default.

Not expressible in CEL, and refused by `rlvr validate`, the operator and the learner instead: what `rollouts.engineArgs` may hold, since its
values have no schema.
"""

from dataclasses import dataclass

from pydantic.alias_generators import to_camel

from rlvr_api.algorithms import ALGORITHM_KINDS, CORRECTION_KINDS
from rlvr_api.environments import AUDIT_KINDS, AUDITED_KINDS, DATASET_KINDS, ENVIRONMENT_KINDS, INTERACTIVE_KINDS, SANDBOXED_KINDS
from rlvr_api.integrity import CLIPPED_SHARE
from rlvr_api.names import MAX_JOB_NAME
from rlvr_api.stages import EXTERNAL_KINDS, ONE_TURN_KINDS, STAGE_KINDS


@dataclass(frozen=True)
class Rule:
    """One CEL rule and what the API server says when it is broken."""

    cel: str
    message: str
    create_only: bool = False
    """Looks at creation only; the rule uses `oldSelf` as an optional."""


def one_of(kinds: tuple[str, ...]) -> Rule:
    """Exactly one of the members is set."""
    names = [to_camel(kind) for kind in kinds]
    present = ", ".join(f"has(self.{name})" for name in names)
    return Rule(f"[{present}].filter(x, x).size() == 1", f"exactly one of {', '.join(names)} must be set")


def _any_of(place: str, kinds: tuple[str, ...]) -> str:
    return " || ".join(f"has({place}.{to_camel(kind)})" for kind in kinds)


def fixed(path: str) -> Rule:
    """The field may not change once the object exists; its twin is `rlvr_api.changes`."""
    same = f"self.{path} == oldSelf.{path}"
    if path in FIXED_OPTIONAL:
        same = f"has(self.{path}) == has(oldSelf.{path}) && (!has(self.{path}) || {same})"
    return Rule(same, f"{path} says what is trained and is fixed once the job exists: create another job")


FIXED = (
    "seed", "model", "precision", "storage.uri", "environments", "sampling", "stages", "evaluation", "offPolicy", "provenance",
)  # fmt: skip
"""Paths below `spec` that say what is trained."""
FIXED_OPTIONAL = ("mixing", "integrity.audit")
"""The same, without a default."""

_STALE = "self.offPolicy.maxStaleness > 0"
_CORRECTS = "!has(self.offPolicy.correction.none)"
_ALGORITHM = "s.rlvr.algorithm"
_NORMALIZES = " || ".join(
    f"(has({_ALGORITHM}.{name}) && {_ALGORITHM}.{name}.normalizeByStd)" for name in ("grpo", "dapo", "gspo", "cispo", "sapo")
)
_DIVIDES = f"has({_ALGORITHM}.reinforcePlusPlus) || {_NORMALIZES}"
_OVERLONG = "s.rlvr.algorithm.dapo.overlong"

_CAPS = {"tokenTruncated": "cap", "sequenceTruncated": "cap", "tokenMasked": "high", "sequenceMasked": "high"}

RULES: dict[str, tuple[Rule, ...]] = {
    "Algorithm": (one_of(ALGORITHM_KINDS),),
    "Correction": (one_of(CORRECTION_KINDS),),
    "Stage": (one_of(STAGE_KINDS),),
    "EnvironmentSpec": (
        one_of(ENVIRONMENT_KINDS),
        Rule(
            f"self.levels.maximum == 0 || !({_any_of('self', DATASET_KINDS)})",
            "a dataset has one level: remove levels, or list one environment for each difficulty",
        ),
        Rule(
            f"!has(self.audit) || {_any_of('self', AUDITED_KINDS)}",
            f"audit.finalAnswer is for {', '.join(map(to_camel, AUDITED_KINDS))} alone: remove audit",
        ),
    ),
    "Noise": (Rule("self.falsePositiveRate + self.falseNegativeRate < 1.0", "error rates that add up to 1 leave nothing to learn"),),
    "AuditVerifier": (one_of(AUDIT_KINDS),),
    "Levels": (Rule("self.maximum >= self.start", "maximum is below start; write the same number for one level only"),),
    "Arithmetic": (Rule("self.instruction.contains('{problem}')", "instruction must contain {problem}, for example 'What is {problem}?'"),),
    "Calculator": (Rule("self.instruction.contains('{problem}')", "instruction must contain {problem}, for example 'What is {problem}?'"),),
    "Gymnasium": (Rule("self.highestReturn > self.lowestReturn", "highestReturn is not above lowestReturn"),),
    "Taskset": (Rule("self.highestReward > self.lowestReward", "highestReward is not above lowestReward"),),
    "Mixing": (Rule("self.floor <= self.cap", "floor is above cap: lower it"),),
    "Rlvr": (
        Rule("!self.ordered || self.zeroVariance == 'skip'", "ordered allows no discards, so zeroVariance must be skip, not resample"),
        Rule("self.minibatches <= self.promptsPerStep", "minibatches is more than promptsPerStep: some would have no group"),
        Rule(
            "self.minibatches == 1 || !has(self.algorithm.rloo)",
            "rloo has no ratio, so with several minibatches it would learn from stale samples as if they were fresh: "
            "set minibatches to 1, or take reinforcePlusPlus",
        ),
        Rule(
            "self.zeroVariance == 'skip' || !has(self.algorithm.reinforcePlusPlus) || self.algorithm.reinforcePlusPlus.groupBaseline",
            "groups of equal rewards carry a gradient where reinforcePlusPlus.groupBaseline is false: set zeroVariance to skip",
        ),
        Rule(
            "self.zeroVariance == 'skip' || !has(self.algorithm.ppo)",
            "groups of equal rewards teach the critic of ppo, and zeroVariance resample would throw them away: set it to skip",
        ),
    ),
    "ReferenceKl": (
        Rule(
            "self.placement != 'loss' || self.estimator != 'k1'",
            "k1 in the loss has a gradient of mean 0, so nothing would hold the policy: set estimator to k2 or k3, or placement to reward",
        ),
        Rule(
            "self.placement != 'reward' || self.estimator == 'k1'",
            "in the reward only k1 has the gradient of the KL: set estimator to k1, or placement to loss",
        ),
    ),
    "Distill": (Rule("self.keepPerPrompt <= self.samplesPerPrompt", "keepPerPrompt is above samplesPerPrompt: lower it"),),
    "RejectionSampling": (
        Rule("self.keepPerPrompt <= self.samplesPerPrompt", "keepPerPrompt is above samplesPerPrompt: lower it"),
        Rule("self.optimizer.schedule == 'constant'", "a cosine needs a last step, and what passes decides it: write constant"),
    ),
    "Evaluate": (Rule("self.k.all(n, n <= self.samplesPerTask)", "pass@k needs k samples of a task: raise samplesPerTask"),),
    "Rollouts": (
        Rule(
            "self.tensorParallel == 1 || self.tensorParallel <= self.gpusPerReplica",
            "tensorParallel needs as many GPUs: raise gpusPerReplica or lower tensorParallel",
        ),
    ),
    "Learner": (
        Rule("self.gpus == 0 || self.gpus == self.processesPerNode", "each process has one GPU: write the same number, or gpus 0"),
    ),
    "Verifiers": (
        Rule(
            "!has(self.maxReplicas) || self.maxReplicas >= self.replicas",
            "maxReplicas is below replicas: raise the one or lower the other",
        ),
    ),
    "Toleration": (
        Rule("self.operator != 'Exists' || !has(self.value)", "value means nothing with operator Exists: remove it, or write Equal"),
        Rule("self.operator != 'Equal' || has(self.key)", "operator Equal needs a key; Exists without one tolerates every taint"),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds counts for effect NoExecute only: set that effect, or remove it",
        ),
    ),
    "Governor": (Rule("self.pauseKl > self.maxKl", "pauseKl is not above maxKl: it would pause where it should tighten"),),
    "OffPolicy": (
        Rule("self.dropBeyond >= self.maxStaleness", "dropBeyond is below maxStaleness: admitted groups would be thrown away"),
        Rule(
            "!has(self.governor) || self.governor.minStaleness <= self.maxStaleness",
            "governor.minStaleness is above maxStaleness: lower the one or raise the other",
        ),
        Rule(
            "!has(self.governor) || self.maxStaleness > 0 || !has(self.correction.none)",
            "a governor has nothing to tighten with maxStaleness 0 and correction none: remove it, or raise maxStaleness",
        ),
        *(
            Rule(
                f"!has(self.governor) || !has(self.correction.{kind}) || self.governor.minCap <= self.correction.{kind}.{cap}",
                f"governor.minCap is above the correction's {cap}: lower minCap",
            )
            for kind, cap in _CAPS.items()
        ),
    ),
    "RLVRJobSpec": (
        Rule("self.sampling.maxTokens < self.model.maxModelLen", "sampling.maxTokens leaves no room for a prompt in model.maxModelLen"),
        Rule(
            f"!({_CORRECTS}) || !self.stages.exists(s, has(s.rlvr) && has(s.rlvr.algorithm.dppoTv))",
            "dppoTv already weighs by the sampler: set offPolicy.correction to {none: {}}",
        ),
        Rule(
            f"({_CORRECTS}) || !({_STALE}) || !self.stages.exists(s, has(s.rlvr) && !has(s.rlvr.algorithm.dppoTv))",
            "an algorithm other than dppoTv with offPolicy.maxStaleness above 0 and no correction learns from stale samples as if they "
            "were fresh: set offPolicy.correction to {tokenTruncated: {}}, or maxStaleness to 0",
        ),
        Rule(
            f"!self.stages.exists(s, has(s.rlvr) && has(s.rlvr.algorithm.dapo) && has({_OVERLONG}) "
            f"&& {_OVERLONG}.bufferTokens > self.sampling.maxTokens)",
            "dapo.overlong.bufferTokens is more than sampling.maxTokens: an empty completion would be punished; write a fifth of maxTokens",
        ),
        Rule(
            "!self.stages.exists(s, has(s.promoteWhen) && has(s.promoteWhen.environment) "
            "&& !self.environments.exists(e, e.name == s.promoteWhen.environment))",
            "promoteWhen.environment names none of the job's environments",
        ),
        Rule(
            f"!has(self.verifiers.sandboxResources) || self.environments.exists(e, {_any_of('e', SANDBOXED_KINDS)})",
            "verifiers.sandboxResources means nothing without an environment that runs code: remove it",
        ),
        Rule(
            f"!self.environments.exists(e, has(e.noise)) || self.stages.exists(s, has(s.rlvr) && ({_NORMALIZES}))",
            "environments[].noise is read by normalizeByStd: true alone: set that, or remove noise",
        ),
        Rule(
            "!self.environments.exists(e, has(e.noise)) || "
            f"!self.stages.exists(s, has(s.rlvr) && has({_ALGORITHM}.dapo) && has({_ALGORITHM}.dapo.overlong))",
            "environments[].noise is of verdicts, and dapo.overlong mixes lengths into them: remove one",
        ),
        Rule(
            "!self.environments.exists(e, has(e.noise)) || "
            "!self.stages.exists(s, has(s.rlvr) && has(s.rlvr.referenceKl) && s.rlvr.referenceKl.placement == 'reward')",
            "environments[].noise is of verdicts: set referenceKl.placement to loss, or remove noise",
        ),
        Rule(
            "!has(self.integrity.audit) || self.integrity.audit.rewards == 'paid' || !self.stages.exists(s, has(s.rlvr) && "
            f"s.rlvr.optimizer.maxGradientNorm < {CLIPPED_SHARE} / self.integrity.audit.positiveRate && "
            f"s.rlvr.optimizer.maxGradientNorm < {CLIPPED_SHARE} * self.integrity.audit.maxWeight)",
            "optimizer.maxGradientNorm cuts off the steps in which an audit weighs much, and a hack survives: write at least "
            f"{CLIPPED_SHARE} / integrity.audit.positiveRate",
        ),
        Rule(
            "has(self.integrity.audit) == self.environments.exists(e, has(e.audit))",
            "integrity.audit and environments[].audit go together: the one says how often, the other by what",
        ),
        Rule(
            f"!has(self.integrity.audit) || self.integrity.audit.rewards == 'paid' || !self.stages.exists(s, has(s.rlvr) && ({_DIVIDES}))",
            "an algorithm that divides by a standard deviation undoes integrity.audit: take normalizeByStd: false or another algorithm, or "
            "set integrity.audit.rewards to paid",
        ),
        Rule(
            f"!({_STALE}) || !self.stages.exists(s, has(s.rlvr) && s.rlvr.ordered)",
            "an ordered stage repeats a run only with offPolicy.maxStaleness 0",
        ),
        Rule(
            "self.provenance.externalTraces == 'Allowed' || !self.stages.exists(s, "
            + " || ".join(f"has(s.{to_camel(kind)})" for kind in EXTERNAL_KINDS)
            + ")",
            "provenance.externalTraces is Forbidden, and a stage learns from words that are not the model's own: take it out, or write "
            "rejectionSampling",
        ),
        Rule(
            "self.stages.all(s, !has(s.distill) || !has(s.distill.teacher.credentialsSecret) || self.stages.all(t, !has(t.distill) || "
            "!has(t.distill.teacher.credentialsSecret) || t.distill.teacher.credentialsSecret.name == "
            "s.distill.teacher.credentialsSecret.name))",
            "the teachers of a job share one credentialsSecret: name the same one, or make two jobs",
        ),
        Rule(
            "self.sampling.temperature == 1.0 || !self.stages.exists(s, has(s.onPolicyDistillation))",
            "onPolicyDistillation compares the model's distribution with the teacher's: write sampling.temperature 1",
        ),
        Rule(
            "!has(self.mixing) || (self.mixing.floor * double(self.environments.size()) <= 1.0 "
            "&& self.mixing.cap * double(self.environments.size()) >= 1.0)",
            "mixing.floor and cap cannot hold for so many environments: lower the floor or raise the cap",
        ),
        Rule(
            f"!self.environments.exists(e, {_any_of('e', INTERACTIVE_KINDS)}) || !self.stages.exists(s, {_any_of('s', ONE_TURN_KINDS)})",
            f"{', '.join(map(to_camel, ONE_TURN_KINDS))} learn from completions of one turn, and an environment has several: train on "
            "it with rlvr, in a job of its own",
        ),
        *map(fixed, (*FIXED, *FIXED_OPTIONAL)),
    ),
    "WeightSync": (
        Rule(
            "!has(self.torchDistributed) || !has(self.objectStore)",
            "torchDistributed and objectStore are both set, and weights take one way: remove one",
        ),
    ),
    "RLVRJob": (
        Rule(
            "oldSelf.hasValue() || (self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') "
            f"&& self.metadata.name.size() <= {MAX_JOB_NAME})",
            f"metadata.name must be lower-case letters, digits and '-', begin with a letter, and have at most {MAX_JOB_NAME} characters",
            create_only=True,
        ),
    ),
}
"""Rules by the name of the model that they are attached to."""

LIST_KEYS = {
    "RLVRJobSpec.environments": "name",
    "RLVRJobSpec.stages": "name",
    "RLVRJobStatus.conditions": "type",
    "RLVRJobStatus.roles": "name",
}
"""Lists whose items have a key: the API server refuses duplicates, and appliers own single items."""

SET_LISTS = frozenset({"Arithmetic.operations", "Calculator.operations", "Evaluate.k"})
"""Lists of different values."""
