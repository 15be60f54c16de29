"""Environments of a job: where its tasks come from, and how hard they are.

Each kind is one optional member of `EnvironmentSpec`; the verifier service has one file for each in `environments/`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator
from pydantic.alias_generators import to_camel

from rlvr_api.foreign import Plugin, Taskset
from rlvr_api.interactive import Calculator, Gymnasium
from rlvr_api.model import ApiModel, Fraction, Name, PositiveSeconds, Uri, one_member
from rlvr_api.pods import SecretReference


class Arithmetic(ApiModel):
    """Sums, differences and products of whole numbers; at level n the operands have n + 2 digits together: 3 + 4, 34 + 5, 34 + 56."""

    operations: Annotated[tuple[Literal["+", "-", "*"], ...], Field(min_length=1, max_length=3)] = ("+",)
    """Operations to draw from, each at most once."""
    extraction: Literal["lastInteger", "exact", "expression"] = "lastInteger"
    """What counts as the answer: the last integer of the completion, the whole completion without surrounding space, or the value of
    its last expression. A model that truncates in the middle of a sentence is still paid by `lastInteger`, and almost never by `exact`.
    `expression` simplifies before it compares, as graders of mathematics do, and so pays for repeating the question: use it with
    `audit`."""
    instruction: Annotated[str, Field(min_length=1, max_length=500)] = "What is {problem}? Reply with only the number."
    """The user's message; `{problem}` is replaced by for example `3 + 4`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{problem}" not in self.instruction:
            raise ValueError("instruction must contain {problem}, for example 'What is {problem}?'")
        if len(set(self.operations)) != len(self.operations):
            raise ValueError(f"operations lists one twice: {list(self.operations)}")
        return self


class ReasoningGym(ApiModel):
    """A task of the reasoning-gym library whose scorer is known to be safe; the verifier service lists them. Its levels are those of the
    library's curriculum."""

    task: Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=64)]
    """Name of the task, for example `chain_sum`."""
    config: Annotated[dict[str, JsonValue], Field(max_length=32, default_factory=dict)]
    """Settings of the task laid over its curriculum's, at every level."""


class Math(ApiModel):
    """Problems with one final answer, judged by mathematical equivalence (math-verify)."""

    dataset: Uri
    """JSONL of `{"problem": ..., "answer": ...}`, as `s3://bucket/key` or `file:///path`; answers are LaTeX or plain."""
    instruction: Annotated[str, Field(max_length=2000)] = "Put your final answer in \\boxed{}."
    """Added to each problem on a line of its own."""
    held_out: Annotated[Fraction, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the problems kept for evaluation, chosen by a hash of the normalised problem text."""


SandboxLevel = Literal["L0", "L1", "L1u", "L2"]
"""How far code that the model wrote is kept away from everything else, as attacks from inside a slot measure it. L0: limits of time and
memory at most. L1: files, processes, network and kernel objects are out of reach. L1u: a slot is another user than what is outside. L2:
what is outside cannot even be seen."""
NeededLevel = Literal["L1", "L1u", "L2"]


class PythonFunctions(ApiModel):
    """Functions that the model writes, called on hidden inputs in a sandbox that never holds the expected values."""

    dataset: Uri
    """JSONL of `{"prompt", "entryPoint", "visible", "hidden", "reference", "expected", "generator"}`, or of `tests`, a list of sources with
    tests, in the place of the inputs and `expected`. `visible` and `hidden` are lists of argument lists, the visible ones also shown in
    the prompt. `reference` is Python source of a right solution; `expected` its values, of the visible and then the hidden inputs. One of
    the two is enough; both must agree. `generator` is source of `generate(seed)`, which returns further arguments."""
    instruction: Annotated[str, Field(max_length=2000)] = "Answer with one Python code block."
    """Added to each prompt on a line of its own."""
    held_out: Annotated[Fraction, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the prompts kept for evaluation, chosen by a hash of the normalised prompt."""
    time_limit_seconds: Annotated[float, Field(gt=0.0, le=300.0)] = 5.0
    """Processor time of a solution on all its inputs together; beyond it, or twice as long by the clock, it is a `timeout`."""
    memory_megabytes: Annotated[int, Field(ge=64, le=16_384)] = 512
    """Address space of a solution; Python itself takes about 40."""
    float_tolerance: Annotated[float, Field(ge=0.0, le=0.1)] = 1e-9
    """Relative difference up to which floats are equal; there is no absolute one, so small numbers are not all zero. Types are compared
    exactly: 1, 1.0 and true differ, and so do lists and tuples."""
    min_sandbox_level: NeededLevel = "L1"
    """Least level of the sandbox, as measured when the verifier starts; below it the environment is refused. Above L1 slots are put behind
    more: a user each (L1u, Pod Security baseline), namespaces each (L2, a seccomp profile on the nodes)."""


ProgramLanguage = Literal["python", "c", "cpp", "go", "javascript"]


class Stdio(ApiModel):
    """Programs that the model writes, which read standard input and write standard output, in a sandbox."""

    dataset: Uri
    """JSONL of `{"prompt", "tests"}`, each test `{"input", "output"}`. Outputs are compared line by line without trailing space."""
    language: ProgramLanguage = "python"
    """What the programs are written in. All but Python need their tools where the sandbox runs, as in the image `rlvr/verifier-toolchains`;
    where they are missing the environment is refused with what to install."""
    instruction: Annotated[str, Field(max_length=2000)] | None = None
    """Added to each prompt on a line of its own. Unset: asks for one program in the language, in a code block."""
    held_out: Annotated[Fraction, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the prompts kept for evaluation, chosen by a hash of the normalised prompt."""
    time_limit_seconds: Annotated[float, Field(gt=0.0, le=300.0)] = 10.0
    """Processor time of a program on all its tests together, without compiling it; beyond it, or twice as long by the clock, it is a
    `timeout`."""
    memory_megabytes: Annotated[int, Field(ge=64, le=16_384)] = 512
    """Address space of a program; Python itself takes about 40. Go and Node get what their runtimes reserve on top of it."""
    min_sandbox_level: NeededLevel = "L1"
    """Least level of the sandbox, as measured when the verifier starts; below it the environment is refused. Above L1 slots are put behind
    more: a user each (L1u, Pod Security baseline), namespaces each (L2, a seccomp profile on the nodes)."""


class JsonSchema(ApiModel):
    """Documents that the model writes: one JSON document, valid by the task's schema (draft 2020-12), and nothing else."""

    dataset: Uri
    """JSONL of `{"prompt", "schema", "example", "expected"}`. `expected` has values that must be in the document, by JSON pointer;
    `example` is a right document, which is never shown: canaries and certification are made of it. Both may be left out."""
    instruction: Annotated[str, Field(max_length=2000)] = "Answer with one JSON document and nothing else."
    """Added to each prompt on a line of its own."""
    held_out: Annotated[Fraction, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the prompts kept for evaluation, chosen by a hash of the normalised prompt."""


class Regex(ApiModel):
    """Regular expressions that the model writes, of Python's engine; each must match some whole strings and not others."""

    dataset: Uri
    """JSONL of `{"prompt", "mustMatch", "mustNotMatch", "reference"}`. Some strings of both lists must not stand in the prompt; `reference`
    is a right pattern, which is never shown."""
    instruction: Annotated[str, Field(max_length=2000)] = "Answer with one regular expression of Python in a code block."
    """Added to each prompt on a line of its own."""
    held_out: Annotated[Fraction, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the prompts kept for evaluation, chosen by a hash of the normalised prompt."""
    max_pattern_characters: Annotated[int, Field(ge=1, le=10_000)] = 500
    """Longest pattern: a list of all strings should not fit."""


class Instructions(ApiModel):
    """Texts that the model writes, which must keep to constraints that a program decides: length, form, words that must be there or not."""

    dataset: Uri
    """JSONL of `{"prompt", "constraints", "example", "refuseDegenerate"}`. A constraint is `{"kind": "wordCount", "minimum": 50}`; all must
    hold. `example` is a right text, which is never shown. `refuseDegenerate` (true) refuses texts that repeat themselves, or are little
    more than the words that must be there."""
    instruction: Annotated[str, Field(max_length=2000)] = ""
    """Added to each prompt on a line of its own; empty: nothing is."""
    held_out: Annotated[Fraction, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the prompts kept for evaluation, chosen by a hash of the normalised prompt."""


class Sql(ApiModel):
    """Queries that the model writes, in SQLite's SQL, judged on the database of the prompt and on others that it never sees."""

    dataset: Uri
    """JSONL of `{"prompt", "schema", "rows", "reference", "hidden", "ordered"}`. `schema` and `rows` are scripts; `reference` is a right
    query, which is never shown. `hidden` may list scripts of rows for further databases; `ordered` says whether the order of the result
    counts, which it does without it where the reference ends with ORDER BY."""
    instruction: Annotated[str, Field(max_length=2000)] = "Answer with one SQLite query in a code block."
    """Added to each prompt on a line of its own."""
    held_out: Annotated[Fraction, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the prompts kept for evaluation, chosen by a hash of the normalised prompt."""
    hidden_databases: Annotated[int, Field(ge=1, le=20)] = 4
    """Databases that are made of a task's rows by taking some out, besides one with the rows in another order."""


class Judge(ApiModel):
    """Tasks with a rubric, judged by a language model behind any OpenAI-compatible endpoint. Its verdicts are not deterministic."""

    dataset: Uri
    """JSONL of `{"prompt", "rubric", "reference", "answer", "right", "wrong"}`. The judge sees prompt, rubric and reference; `right` and
    `wrong` list answers whose verdict is known, for canaries and certification; `answer` is the final number, for `audit.finalAnswer`. Only
    prompt and rubric must be there."""
    endpoint: Annotated[Uri, Field(pattern=r"^https?://[^?#]+$")]
    """Base URL with the version, for example `https://judge.example/v1`."""
    model: Annotated[str, Field(min_length=1, max_length=256)]
    """Name of the model there; part of the verifier's version."""
    credentials_secret: SecretReference | None = None
    """In clusters: Secret with the key `JUDGE_API_KEY`, sent as a bearer token. Unset: none is sent. A local run takes this variable, or
    `JUDGE_API_KEY_` with the environment's name in capitals, from the person's environment."""
    instruction: Annotated[str, Field(max_length=2000)] = ""
    """Added to each prompt on a line of its own; empty: nothing is."""
    held_out: Annotated[Fraction, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the prompts kept for evaluation, chosen by a hash of the normalised prompt."""
    timeout_seconds: PositiveSeconds = 60.0
    """Longest wait for one verdict, with all tries; beyond it the item is an `infra_error`, and asked for again."""
    requests_in_flight: Annotated[int, Field(ge=1, le=1024)] = 16
    """Requests at once, of each replica of the verifier."""
    max_tokens: Annotated[int, Field(ge=16, le=100_000)] = 1024
    """Longest reply, in the judge's tokens: models that think first need many."""
    structured_reply: bool = False
    """Have the endpoint hold the judge to the form of a verdict (`response_format` with a JSON schema), as vLLM and many others can: small
    models often reply with something else, which is no verdict."""
    max_answer_characters: Annotated[int, Field(ge=1, le=65_536)] = 20_000
    """Longest answer that is shown to the judge; a longer one is `invalid`."""


class Levels(ApiModel):
    """The curriculum of one environment: where it starts, and when the next level begins."""

    start: Annotated[int, Field(ge=0, le=100)] = 0
    """First level."""
    maximum: Annotated[int, Field(ge=0, le=100)] = 0
    """Last level; equal to `start` for no curriculum."""
    raise_at: Annotated[Fraction, Field(gt=0.0)] = 0.9
    """A level is left when the pass rate over the last `window` scored groups reaches this."""
    window: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Groups that the decision looks at: one step of the examples."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.maximum < self.start:
            raise ValueError(f"maximum {self.maximum} is below start {self.start}; write maximum: {self.start} for one level only")
        return self


class FinalAnswer(ApiModel):
    r"""Compares one literal number exactly: all of the last `\boxed{}`, or else the last number of the completion. It works nothing out,
    so neither an expression nor the question itself is an answer. Every gold answer must be a number."""


class Noise(ApiModel):
    """Known error rates of an environment's verifier, for example from audits of another job or from its certification.

    Read by algorithms with `normalizeByStd`: advantages are divided by the standard deviation of the true reward, which these rates let
    estimate, and groups whose passes are explained by false positives teach nothing.
    """

    false_positive_rate: Annotated[float, Field(ge=0.0, lt=1.0)]
    """P(pass | wrong)."""
    false_negative_rate: Annotated[float, Field(ge=0.0, lt=1.0)]
    """P(not pass | right)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.false_positive_rate + self.false_negative_rate >= 1.0:
            raise ValueError(
                f"falsePositiveRate {self.false_positive_rate} and falseNegativeRate {self.false_negative_rate} add up to 1 or more: "
                "nothing can be learned from such verdicts"
            )
        return self


AUDIT_KINDS = ("final_answer",)


class AuditVerifier(ApiModel):
    """A second verifier of the same tasks, stronger than the one that pays; exactly one kind is set."""

    final_answer: FinalAnswer | None = None
    """Literal numbers. For `arithmetic`, `math`, and for `judge` where every row has `answer`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        one_member(self, AUDIT_KINDS)
        return self

    @property
    def kind(self) -> str:
        """Which of `AUDIT_KINDS` is set."""
        return one_member(self, AUDIT_KINDS)


class Mixing(ApiModel):
    """Draws prompts by learnability: an environment's share follows its weight times the mean of p(1 − p), which is largest where half of
    the completions are right, and 0 where all or none are. The error rates of verifiers that are known are taken out."""

    window: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Groups of an environment, at its current level, that the mean is taken over. Before the first, it counts as the largest."""
    floor: Fraction = 0.05
    """Least share of an environment: what is hopeless now may not stay so."""
    cap: Annotated[Fraction, Field(gt=0.0)] = 1.0
    """Largest share of an environment."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.floor > self.cap:
            raise ValueError(f"floor {self.floor} is above cap {self.cap}: lower it")
        return self


ENVIRONMENT_KINDS = (
    "arithmetic",
    "calculator",
    "reasoning_gym",
    "math",
    "python_functions",
    "stdio",
    "json_schema",
    "regex",
    "instructions",
    "sql",
    "judge",
    "plugin",
    "gymnasium",
    "taskset",
)
DATASET_KINDS = ("math", "python_functions", "stdio", "json_schema", "regex", "instructions", "sql", "judge")
"""Kinds whose problems are listed: they have level 0 alone."""
AUDITED_KINDS = ("arithmetic", "math", "judge")
"""Kinds that have a final answer which a second verifier can compare."""
SANDBOXED_KINDS = ("python_functions", "stdio")
"""Kinds that run what the model wrote."""
FOREIGN_KINDS = ("plugin", "gymnasium", "taskset")
"""Kinds whose code comes from elsewhere: they say where their certificate is."""
INTERACTIVE_KINDS = ("calculator", "gymnasium")
"""Kinds whose episodes have several turns."""


class EnvironmentSpec(ApiModel):
    """One source of tasks; exactly one of its kinds is set."""

    name: Name
    """How rollouts, metrics and task keys name it."""
    weight: Annotated[float, Field(gt=0.0, le=1000.0)] = 1.0
    """Share of the prompts drawn from it, relative to the others."""
    levels: Levels = Levels()
    """Curriculum; a dataset has level 0 alone."""
    arithmetic: Arithmetic | None = None
    """Arithmetic made on the spot."""
    calculator: Calculator | None = None
    """Arithmetic in turns, with a calculator."""
    reasoning_gym: ReasoningGym | None = None
    """A procedural puzzle."""
    math: Math | None = None
    """A dataset of mathematical problems."""
    python_functions: PythonFunctions | None = None
    """A dataset of functions to write."""
    stdio: Stdio | None = None
    """A dataset of programs to write."""
    json_schema: JsonSchema | None = None
    """A dataset of JSON documents to write."""
    regex: Regex | None = None
    """A dataset of regular expressions to write."""
    instructions: Instructions | None = None
    """A dataset of texts to write under constraints."""
    sql: Sql | None = None
    """A dataset of queries to write."""
    judge: Judge | None = None
    """A dataset of tasks that a language model judges."""
    plugin: Plugin | None = None
    """An environment of another distribution."""
    gymnasium: Gymnasium | None = None
    """An environment of the Gymnasium interface."""
    taskset: Taskset | None = None
    """A taskset of the library `verifiers`."""
    audit: AuditVerifier | None = None
    """Second verifier that `integrity.audit` asks. Unset: this environment is not audited."""
    noise: Noise | None = None
    """Known error rates. Unset: none are corrected for."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind in DATASET_KINDS and self.levels.maximum != 0:
            raise ValueError("a dataset has one level: remove levels, or list one environment for each difficulty")
        if self.audit is not None and self.kind not in AUDITED_KINDS:
            raise ValueError(
                f"audit.finalAnswer is for {', '.join(map(to_camel, AUDITED_KINDS))}, not for {to_camel(self.kind)}: remove audit"
            )
        return self

    @property
    def kind(self) -> str:
        """Which of `ENVIRONMENT_KINDS` is set."""
        return one_member(self, ENVIRONMENT_KINDS)
