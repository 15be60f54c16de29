"""Effective number of environments: the Vendi score (arXiv 2210.02410) of what a batch was asked.

    VS = exp(−Σ λ log λ),   λ the eigenvalues of K_ij · √(p_i p_j)

with the shares p of the environments in the batch and the cosine K of their word counts. Environments that ask the same in the same words
count as one; n that share no word and are drawn alike count as n. It says nothing of how different the answers are.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from rlvr_trainer.contamination import words
from rlvr_trainer.rollout import RolloutGroup


def vendi_score(shares: Sequence[float], similarity: Sequence[Sequence[float]]) -> float:
    """Effective number of kinds.

    Args:
        shares: p, positive, 1 together.
        similarity: K, symmetric and positive semi-definite, with ones on its diagonal.
    """
    root = torch.tensor(shares, dtype=torch.float64).sqrt()
    kernel = torch.tensor(similarity, dtype=torch.float64) * root[:, None] * root[None, :]
    values = [value for value in torch.linalg.eigvalsh(kernel).tolist() if value > 1e-12]
    return math.exp(-math.fsum(value * math.log(value) for value in values))


def effective_environments(groups: Sequence[RolloutGroup]) -> float:
    """Vendi score of a batch's environments, at least 1."""
    counts: dict[str, Counter[str]] = {}
    for group in groups:
        counts.setdefault(group.admission.environment, Counter()).update(words(group.prompt))
    shares = environment_shares(groups)
    names = sorted(counts)
    similarity = [[_cosine(counts[one], counts[other]) if one != other else 1.0 for other in names] for one in names]
    return max(1.0, vendi_score([shares[name] for name in names], similarity))


def environment_shares(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Share of the groups by environment."""
    found = Counter(group.admission.environment for group in groups)
    return {name: count / len(groups) for name, count in sorted(found.items())}


def _cosine(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    product = math.fsum(count * other.get(word, 0) for word, count in one.items())
    lengths = math.hypot(*one.values()) * math.hypot(*other.values())
    return product / lengths if lengths else 0.0
