"""Whether an object is as it should be already, so that a settled job costs no write. Pure.

The API server adds defaults and other parties add fields, so what is wanted must be *contained* in what is there: mappings by key, lists of
named things by name, other lists item by item, amounts by value (`500m` is `0.5`).
"""

from collections.abc import Sequence
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from rlvr_operator.render import Object

LIST_KEYS = ("name", "mountPath", "containerPort", "key", "uid")
"""Fields that tell the items of a list apart, in order of preference."""


def is_as_wanted(observed: Object, wanted: Object) -> bool:
    """Whether `observed` holds everything that `wanted` says."""
    return _contains(observed, wanted)


def _contains(observed: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(observed, dict) and all(
            key in observed and _contains(observed[key], value) for key, value in wanted.items() if not _is_nothing(value)
        )
    if isinstance(wanted, list | tuple):
        return isinstance(observed, list | tuple) and _contains_list(observed, wanted)
    return bool(observed == wanted) or _same_amount(observed, wanted)


def _contains_list(observed: Sequence[Any], wanted: Sequence[Any]) -> bool:
    key = next((key for key in LIST_KEYS if wanted and all(isinstance(item, dict) and key in item for item in wanted)), None)
    if key is None:
        return len(observed) == len(wanted) and all(map(_contains, observed, wanted))
    by_key = {item[key]: item for item in observed if isinstance(item, dict) and key in item}
    return len(wanted) == len(by_key) and all(item[key] in by_key and _contains(by_key[item[key]], item) for item in wanted)


def _is_nothing(value: Any) -> bool:
    """Empty values are dropped or kept by the API server as it pleases."""
    return value is None or (isinstance(value, dict | list | tuple) and not value)


def _same_amount(observed: Any, wanted: Any) -> bool:
    if not isinstance(observed, (str, int, float)) or not isinstance(wanted, (str, int, float)) or isinstance(observed, bool):
        return False
    try:
        return bool(parse_quantity(str(observed)) == parse_quantity(str(wanted)))
    except ValueError:
        return False
