"""Algorithms, one file each; `ALGORITHMS` finds one by the member of `rlvr_api.algorithms.Algorithm` that is set."""

from collections.abc import Mapping
from typing import Any

from rlvr_api.algorithms import Algorithm
from rlvr_trainer.algorithms.base import AlgorithmBase, LossInputs, LossOutput
from rlvr_trainer.algorithms.cispo import CispoAlgorithm
from rlvr_trainer.algorithms.dapo import DapoAlgorithm
from rlvr_trainer.algorithms.dppo_tv import DppoTvAlgorithm
from rlvr_trainer.algorithms.dr_grpo import DrGrpoAlgorithm
from rlvr_trainer.algorithms.grpo import GrpoAlgorithm
from rlvr_trainer.algorithms.gspo import GspoAlgorithm
from rlvr_trainer.algorithms.ppo import PpoAlgorithm
from rlvr_trainer.algorithms.reinforce_plus_plus import ReinforcePlusPlusAlgorithm
from rlvr_trainer.algorithms.rloo import RlooAlgorithm
from rlvr_trainer.algorithms.sapo import SapoAlgorithm

__all__ = ["ALGORITHMS", "AlgorithmBase", "LossInputs", "LossOutput", "make_algorithm"]

ALGORITHMS: Mapping[str, type[AlgorithmBase[Any]]] = {
    "grpo": GrpoAlgorithm,
    "dr_grpo": DrGrpoAlgorithm,
    "rloo": RlooAlgorithm,
    "reinforce_plus_plus": ReinforcePlusPlusAlgorithm,
    "dapo": DapoAlgorithm,
    "gspo": GspoAlgorithm,
    "cispo": CispoAlgorithm,
    "sapo": SapoAlgorithm,
    "dppo_tv": DppoTvAlgorithm,
    "ppo": PpoAlgorithm,
}


def make_algorithm(algorithm: Algorithm, max_tokens: int) -> AlgorithmBase[Any]:
    """The algorithm that a stage asks for, for completions of at most `max_tokens` tokens."""
    return ALGORITHMS[algorithm.kind](getattr(algorithm, algorithm.kind), max_tokens)
