import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_trainer.storage.layout import CheckpointKey, CheckpointPlace, StageKeys, attempt_key, attempt_of

STAGE = StageKeys(3, "climb")
STEPS = st.integers(0, 10**8 - 1)
ATTEMPTS = st.integers(0, 10**6 - 1)


def test_keys_are_as_documented():
    assert STAGE.rollouts(12, 2, 1) == "03-climb/rollouts/00000012/000002-00001.parquet"
    assert STAGE.record(12) == "03-climb/records/00000012.json"
    assert STAGE.checkpoint_blob(12, 2, "00000.safetensors") == "03-climb/checkpoints/00000012/000002/00000.safetensors"
    assert STAGE.manifest(12) == "03-climb/checkpoints/00000012/MANIFEST.json"
    assert STAGE.evaluation(0) == "03-climb/evaluations/00000000.json"
    assert STAGE.evaluation_rollouts(0, 1) == "03-climb/evaluations/00000000/000001-00000.parquet"
    assert STAGE.model_manifest == "03-climb/model/MANIFEST.json"


@given(STEPS, STEPS, ATTEMPTS)
def test_order_of_keys_is_order_of_steps_and_parsing_inverts(one, other, attempt):
    assert (STAGE.record(one) < STAGE.record(other)) is (one < other)
    assert STAGE.record_step(STAGE.record(one)) == one
    assert STAGE.checkpoint_key(STAGE.manifest(one)) == CheckpointKey(one, None)
    assert STAGE.checkpoint_key(STAGE.checkpoint_blob(one, attempt, "a/b")) == CheckpointKey(one, attempt)
    assert attempt_of(attempt_key(attempt)) == attempt
    assert StageKeys.parse(STAGE.record(one)) == STAGE


def test_a_branch_has_a_folder_of_its_own_that_sorts_after_the_one_before():
    branch = StageKeys(3, "climb", 2)
    assert branch.rollback == "03-climb_02/ROLLBACK.json"
    assert branch.record(1) == "03-climb_02/records/00000001.json"
    assert StageKeys.parse(branch.record(1)) == branch
    assert branch.trunk == STAGE
    assert STAGE.record(99) < branch.record(1) < StageKeys(4, "a").record(1)
    assert STAGE < branch < StageKeys(4, "a")
    assert branch.model == STAGE.model
    assert STAGE.record_step(branch.record(1)) is None
    assert StageKeys.parse("03-climb_1/records/00000001.json") is None


@pytest.mark.parametrize(
    "key", ["03-climb/records/12.json", "04-climb/records/00000012.json", "03-climb/records/00000012.json.bak", "records/00000012.json"]
)
def test_foreign_keys_are_nobodys_records(key):
    assert STAGE.record_step(key) is None


def test_condemned_manifests_are_no_manifests():
    assert STAGE.checkpoint_key(f"{STAGE.checkpoint(3)}CONDEMNED.json") is None
    assert StageKeys.parse(attempt_key(1)) is None


def test_numbers_that_would_break_the_order_are_refused():
    for step in (-1, 10**8):
        with pytest.raises(ValueError, match="no key"):
            STAGE.record(step)


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("s3://runs/a/job", ("s3://runs/a/job", None, None)),
        ("s3://runs/job/", ("s3://runs/job", None, None)),
        ("s3://runs/job/01-climb", ("s3://runs/job", StageKeys(1, "climb"), None)),
        ("s3://runs/a/job/01-climb/checkpoints/00000020", ("s3://runs/a/job", StageKeys(1, "climb"), 20)),
        ("s3://runs/checkpoints/00000020", ("s3://runs/checkpoints/00000020", None, None)),
    ],
)
def test_an_address_means_a_job_a_stage_or_a_checkpoint(uri, found):
    place = CheckpointPlace.parse(uri)
    assert (place.job, place.stage, place.step) == found
