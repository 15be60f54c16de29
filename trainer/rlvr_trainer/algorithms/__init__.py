"""Algorithms, one file each; `ALGORITHMS` finds one by the member of `rlvr_api.algorithms.Algorithm` that is set."""

from collections.abc import Mapping
from typing import Any

from rlvr_api.algorithms import Algorithm
from rlvr_trainer.algorithms.base import AlgorithmBase, LossInputs, LossOutput
from rlvr_trainer.algorithms.dppo_tv import DppoTvAlgorithm
from rlvr_trainer.algorithms.grpo import GrpoAlgorithm

__all__ = ["ALGORITHMS", "AlgorithmBase", "LossInputs", "LossOutput", "make_algorithm"]

ALGORITHMS: Mapping[str, type[AlgorithmBase[Any]]] = {"grpo": GrpoAlgorithm, "dppo_tv": DppoTvAlgorithm}


def make_algorithm(algorithm: Algorithm) -> AlgorithmBase[Any]:
    """The algorithm that a stage asks for."""
    return ALGORITHMS[algorithm.kind](getattr(algorithm, algorithm.kind))
