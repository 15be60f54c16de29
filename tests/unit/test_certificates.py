"""Which environments may judge: certificates that come with the package, or lie beside a dataset, and what makes one invalid."""

from pathlib import Path

import pytest
from verifier_jobs import verifier_job, write_problems

from rlvr_verifier.environments import open_environments
from rlvr_verifier.environments.base import EnvironmentSetupError
from rlvr_verifier.environments.datasets import DatasetReader
from rlvr_verifier.integrity.certificates import Certificate, Check, Subject, built_in, certificate_uri, find_uncertified
from rlvr_verifier.integrity.certify import built_in_environments

PROBLEMS = [(f"What is {n} times {n}?", str(n * n)) for n in range(3, 30)]


def check(environments, **integrity):
    job = verifier_job(environments, {"allowUncertified": False, **integrity})
    return find_uncertified(job, open_environments(job, {}), DatasetReader(job.spec.storage, {}))


def make_certificate(subject, **changes):
    failed = Check(name="exploits are refused", passed=changes.get("certified", True), trials=9, failures=0, upper_bound=0.3)
    return Certificate.model_validate({
        "subject": subject, "digest": subject.digest, "environment": "math", "seed": 0, "levels": [0], "certified": True,
        "falsePositiveRate": 0.0, "falsePositiveUpperBound": 0.3, "falseNegativeRate": 0.0, "falseNegativeUpperBound": 0.3,
        "baseRate": 0.1, "baseRateText": "0", "p99Seconds": 0.1, "slowestSeconds": 0.1, "checks": [failed], **changes,
    })  # fmt: skip


@pytest.fixture
def math(tmp_path: Path):
    """An environment with a dataset, its subject, and where its certificate lies."""
    spec = {"name": "math", "math": {"dataset": write_problems(tmp_path, PROBLEMS)}}
    job = verifier_job([spec])
    place = Path(certificate_uri(job.spec.environments[0]).removeprefix("file://"))
    return spec, Subject.of(job.spec.environments[0], open_environments(job, {})["math"]), place


def test_every_environment_that_the_package_certifies_has_its_certificate():
    shipped = built_in()
    for spec in built_in_environments():
        job = verifier_job([spec.model_dump(mode="json", by_alias=True, exclude_none=True)])
        subject = Subject.of(spec, open_environments(job, {})[spec.name])
        assert subject.digest in shipped, f"{spec.name} has changed: run `python -m rlvr_verifier.integrity.certify`"
        certificate = shipped[subject.digest]
        assert (certificate.subject, certificate.certified) == (subject, True)
        assert all(one.passed for one in certificate.checks)
    assert len(shipped) == len(list(built_in_environments()))


def test_what_comes_with_the_package_judges_whatever_its_prompts_and_levels_are():
    sums = {"name": "sums", "arithmetic": {"operations": ["*"], "instruction": "{problem}="}, "levels": {"start": 2, "maximum": 5}}
    puzzle = {"name": "puzzle", "reasoningGym": {"task": "chain_sum"}}
    assert check([sums, puzzle]) == ()


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"name": "weak", "arithmetic": {"extraction": "expression"}}, r'arithmetic with \{"extraction": "expression"\}'),
        ({"name": "weak", "reasoningGym": {"task": "chain_sum", "config": {"min_terms": 2}}}, r'reasoningGym with .*"min_terms": 2\}\}'),
    ],
)
def test_what_nobody_has_certified_is_refused_or_named(environment, named):
    refusal = f"environment weak is not certified: {named} is not among the .*, or set integrity.allowUncertified to true"
    with pytest.raises(EnvironmentSetupError, match=refusal):
        check([environment])
    sums = {"name": "sums", "arithmetic": {}}
    assert check([environment, sums], allowUncertified=True) == ("weak",)


def test_a_dataset_is_certified_by_the_file_beside_it(math):
    spec, subject, place = math
    way_out = r"run `rlvr environment certify JOB.yaml --name math`, which writes it, or set integrity.allowUncertified to true"
    with pytest.raises(EnvironmentSetupError, match=rf"math is not certified: there is no file://.*\.certificate\.json; {way_out}"):
        check([spec])
    place.write_text(make_certificate(subject).to_json())
    assert check([spec]) == ()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda subject: make_certificate(subject, certified=False), "says that it did not hold that exploits are refused"),
        (lambda subject: make_certificate(subject.model_copy(update={"data_sha256": "0" * 64})), "is of other data: 0000"),
        (lambda subject: make_certificate(subject.model_copy(update={"version": "1"})), "is of another version of the scorer: 1, and"),
        (lambda subject: make_certificate(subject.model_copy(update={"options": {"a": 1}})), "is of other options"),
        (lambda subject: make_certificate(subject.model_copy(update={"kind": "stdio"})), "is of another kind: stdio, and this is math"),
        (lambda subject: make_certificate(subject, digest="0" * 64), "its digest is not that of its subject"),
    ],
)
def test_a_certificate_of_something_else_is_none(math, change, fault):
    spec, subject, place = math
    place.write_text(change(subject).to_json())
    with pytest.raises(EnvironmentSetupError, match=fault):
        check([spec])
    assert check([spec], allowUncertified=True) == ("math",)


def test_a_file_that_is_no_certificate_is_told_from_one_that_is_not_there(math):
    spec, _, place = math
    place.write_text("{}")
    with pytest.raises(EnvironmentSetupError, match="is no certificate of this version"):
        check([spec])
    place.unlink()
    place.mkdir()
    with pytest.raises(EnvironmentSetupError, match=r"cannot be read: Is a directory"):
        check([spec])
