import inspect
import typing

import pytest

from rlvr_api import algorithms as contract
from rlvr_trainer.algorithms import ALGORITHMS, AlgorithmBase, make_algorithm
from rlvr_trainer.correction import CORRECTIONS

REQUIRED = {"dr_grpo": {"normalizer_tokens": 8}}
"""Settings without a default."""


def test_every_algorithm_of_the_contract_is_built_and_no_other():
    assert tuple(ALGORITHMS) == contract.ALGORITHM_KINDS
    assert set(contract.Algorithm.model_fields) == set(contract.ALGORITHM_KINDS)


def test_every_correction_of_the_contract_is_built_and_no_other():
    assert tuple(CORRECTIONS) == contract.CORRECTION_KINDS
    assert set(contract.Correction.model_fields) == set(contract.CORRECTION_KINDS)


@pytest.mark.parametrize("kind", contract.ALGORITHM_KINDS)
def test_an_algorithm_is_made_with_its_own_settings_and_lives_in_its_own_file(kind):
    settings = typing.get_args(contract.Algorithm.model_fields[kind].annotation)[0](**REQUIRED.get(kind, {}))
    made = make_algorithm(contract.Algorithm(**{kind: settings}), 8)
    assert isinstance(made, AlgorithmBase)
    assert made.settings is settings or made.settings == settings
    assert inspect.getmodule(type(made)).__name__ == f"rlvr_trainer.algorithms.{kind}"
