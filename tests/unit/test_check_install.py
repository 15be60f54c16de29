"""What `helm test` asks: the sample is what the models take, and each right is asked for as the API server spells it."""

import json

import pytest

from rlvr_api import names
from rlvr_api.loading import InvalidJobError, load_job
from rlvr_operator.check_install import SAMPLE, WRONG, Right, main, needed, unwanted


def job(spec):
    return json.dumps({"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "sample"}, "spec": spec}).encode()


def test_the_sample_is_a_job_and_the_wrong_one_is_none():
    assert load_job(job(SAMPLE)).metadata.name == "sample"
    with pytest.raises(InvalidJobError):
        load_job(job(WRONG))


def test_every_verb_of_every_rule_is_asked_for_in_every_namespace():
    rules = [{"apiGroups": ["apps"], "resources": ["deployments", "statefulsets"], "verbs": ["get", "patch"]}]
    found = {str(right) for right in needed(rules, ["a", "b"], "system", "lease")}
    assert found == {
        *(f"{verb} {kind}.apps in {space}" for verb in ("get", "patch") for kind in ("deployments", "statefulsets") for space in "ab"),
        "create leases.coordination.k8s.io in system",
        "get leases.coordination.k8s.io lease in system",
        "update leases.coordination.k8s.io lease in system",
    }


def test_a_subresource_is_a_field_of_its_own_in_a_review():
    attributes = Right("patch", "rlvr.dev", "rlvrjobs/status", "a").review()["spec"]["resourceAttributes"]
    assert (attributes["resource"], attributes["subresource"], attributes["namespace"]) == ("rlvrjobs", "status", "a")


def test_secrets_are_never_to_be_read():
    assert Right("get", "", "secrets", "") in set(unwanted([""]))


def test_an_unknown_check_says_which_there_are(capsys):
    assert main(["everything"]) == 2
    assert "rights|sample" in capsys.readouterr().err
