"""Every field of a job is read by some part: a setting that nothing reads would be ignored in silence."""

import re
import typing
from pathlib import Path

from pydantic import BaseModel

from rlvr_api.algorithms import ALGORITHM_KINDS, CORRECTION_KINDS
from rlvr_api.environments import AUDIT_KINDS, ENVIRONMENT_KINDS
from rlvr_api.spec import RLVRJobSpec
from rlvr_api.stages import STAGE_KINDS

ROOT = Path(__file__).parents[2]
BY_NAME = {*ALGORITHM_KINDS, *AUDIT_KINDS, *CORRECTION_KINDS, *ENVIRONMENT_KINDS, *STAGE_KINDS}
"""Members of which one is set: registries look them up by the kind's name."""


def models_below(annotation, found):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in found:
        found.add(annotation)
        for field in annotation.model_fields.values():
            models_below(field.annotation, found)
    for argument in typing.get_args(annotation):
        models_below(argument, found)
    return found


def test_every_field_is_read_by_a_part():
    folders = ("operator", "trainer", "verifier-service")
    sources = "\n".join(file.read_text() for folder in folders for file in sorted((ROOT / folder).rglob("*.py")))
    unread = sorted(
        f"{model.__name__}.{name}"
        for model in models_below(RLVRJobSpec, set())
        for name in model.model_fields
        if name not in BY_NAME and not re.search(rf"\.{name}\b", sources)
    )
    assert unread == []
