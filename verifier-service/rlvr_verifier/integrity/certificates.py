"""Certificates: what one is bound to, where it lies, and which environments may judge without one.

    environment -> Subject: kind, options, version of the scorer, digest of its data
    subject -> its certificate: shipped with this package, or `<dataset>.certificate.json` beside its dataset,
               or where `plugin.certificate` says
            -> of this very subject, and every check passed? -> it may judge; else it is refused, unless `integrity.allowUncertified`

A certificate is a statement of whoever ran the battery, not a signature: it keeps out what nobody has tried, not who lies.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from rlvr_api.environments import DATASET_KINDS, FOREIGN_KINDS, EnvironmentSpec
from rlvr_api.spec import RLVRJob
from rlvr_verifier.environments.base import Environment, EnvironmentSetupError
from rlvr_verifier.environments.datasets import DatasetMissingError, DatasetReader

SUFFIX = ".certificate.json"
UNGRADED = frozenset({
    "dataset", "heldOut", "instruction", "operations", "timeLimitSeconds", "memoryMegabytes", "minSandboxLevel", "maxTurns",
    "heldOutSeeds", "maxTasks", "certificate",
})  # fmt: skip
"""Options that change which tasks there are, or how long a completion may take, and no verdict by its content."""
SHIPPED = "built_in_certificates.json"


class Document(BaseModel):
    """A part of a certificate."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, serialize_by_alias=True, frozen=True, extra="forbid")


class Check(Document):
    """One check."""

    name: str
    passed: bool
    trials: int
    """Tasks that were tried."""
    failures: int
    """Tasks on which it did not hold."""
    upper_bound: float
    """Of the failure rate, 95 % two-sided."""
    details: tuple[str, ...] = ()
    """What failed, most often first."""


class Subject(Document):
    """What a certificate is about: as long as none of it changes, verdicts follow the same rules."""

    kind: str
    options: dict[str, JsonValue]
    """What verdicts depend on beside the kind; prompts and levels are not part of it."""
    version: str
    """Of the scorer and its library."""
    data_sha256: str | None
    """Of the dataset; None for tasks that are made on the spot."""

    @classmethod
    def of(cls, spec: EnvironmentSpec, environment: Environment) -> "Subject":
        """Of an environment as it is now."""
        options = getattr(spec, spec.kind).model_dump(mode="json", by_alias=True)
        return cls(
            kind=environment.kind,
            options={name: value for name, value in options.items() if name not in UNGRADED},
            version=environment.scorer_version,
            data_sha256=environment.data_sha256,
        )

    @property
    def digest(self) -> str:
        """SHA-256 over all of it."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


class Certificate(Document):
    """What the battery found."""

    subject: Subject
    digest: str
    """Of the subject."""
    environment: str
    """Its name in the job."""
    seed: int
    levels: tuple[int, ...]
    certified: bool
    false_positive_rate: float
    """Share of tasks on which something wrong was paid."""
    false_positive_upper_bound: float
    false_negative_rate: float
    """Share of tasks on which something right was refused."""
    false_negative_upper_bound: float
    base_rate: float
    """Largest pass rate of one constant text."""
    base_rate_text: str
    p99_seconds: float
    """Of scoring one completion, without queueing; texts that try to hang it left out."""
    slowest_seconds: float
    """Of texts that try to hang it, queueing included."""
    checks: tuple[Check, ...]

    def to_json(self) -> str:
        """As it is kept."""
        return self.model_dump_json(indent=1) + "\n"


def dataset_of(spec: EnvironmentSpec) -> str | None:
    """URI of the dataset of an environment, if it has one."""
    return str(getattr(spec, spec.kind).dataset) if spec.kind in DATASET_KINDS else None


def certificate_uri(spec: EnvironmentSpec) -> str | None:
    """Where the certificate of an environment lies; None for those whose certificates come with this package, or that name no place."""
    if spec.kind in FOREIGN_KINDS:
        place: str | None = getattr(spec, spec.kind).certificate
        return place
    dataset = dataset_of(spec)
    return None if dataset is None else f"{dataset}{SUFFIX}"


def find_uncertified(job: RLVRJob, environments: Mapping[str, Environment], reader: DatasetReader) -> tuple[str, ...]:
    """Names of environments without a valid certificate; none unless the job allows it.

    Raises:
        EnvironmentSetupError: there is one, and `integrity.allowUncertified` is not set; the message says how to certify it.
    """
    found: list[str] = []
    for spec in job.spec.environments:
        fault = find_fault(spec, environments[spec.name], reader)
        if fault is None:
            continue
        if not job.spec.integrity.allow_uncertified:
            raise EnvironmentSetupError(f"environment {spec.name} is not certified: {fault}, or set integrity.allowUncertified to true")
        found.append(spec.name)
    return tuple(found)


def find_fault(spec: EnvironmentSpec, environment: Environment, reader: DatasetReader) -> str | None:
    """What is wrong with the certificate of an environment, and what to do; None for one that is valid."""
    subject, uri = Subject.of(spec, environment), certificate_uri(spec)
    if uri is None and spec.kind in FOREIGN_KINDS:
        return f"{to_camel(spec.kind)}.certificate names no place; set it and run `rlvr environment certify JOB.yaml --name {spec.name}`"
    if uri is None:
        shipped = built_in().get(subject.digest)
        if shipped is not None and shipped.certified:
            return None
        what = f"{to_camel(spec.kind)} with {json.dumps(subject.options)}"
        return f"{what} is not among the environments that are certified with this package; choose other options"
    try:
        certificate = Certificate.model_validate_json(reader.read(uri))
        fault = _mismatch(certificate, subject, uri)
    except DatasetMissingError:
        fault = f"there is no {uri}"
    except ValidationError as error:
        fault = f"{uri} is no certificate of this version ({error.errors()[0]['msg']})"
    return None if fault is None else f"{fault}; run `rlvr environment certify JOB.yaml --name {spec.name}`, which writes it"


@lru_cache(1)
def built_in() -> Mapping[str, Certificate]:
    """The certificates that come with this package, by digest of their subject."""
    text = resources.files(__package__).joinpath(SHIPPED).read_bytes()
    return {certificate.digest: certificate for certificate in TypeAdapter(tuple[Certificate, ...]).validate_json(text)}


def _mismatch(certificate: Certificate, subject: Subject, uri: str) -> str | None:
    of = certificate.subject
    for name, then, now in (
        ("other data", of.data_sha256, subject.data_sha256),
        ("another kind", of.kind, subject.kind),
        ("another version of the scorer", of.version, subject.version),
        ("other options", json.dumps(of.options), json.dumps(subject.options)),
    ):
        if then != now:
            return f"{uri} is of {name}: {then}, and this is {now}"
    if certificate.digest != subject.digest:
        return f"{uri} was changed: its digest is not that of its subject"
    if not certificate.certified:
        failed = ", ".join(check.name for check in certificate.checks if not check.passed)
        return f"{uri} says that it did not hold that {failed}"
    return None
