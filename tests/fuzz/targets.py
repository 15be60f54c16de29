"""All targets by name."""

from tests.fuzz import answers, borders, documents, sandbox
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {**sandbox.TARGETS, **answers.TARGETS, **documents.TARGETS, **borders.TARGETS}
