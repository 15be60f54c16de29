"""Judges behind a real HTTP server: one that reads what it is asked, and others that are talked into things."""

import json
import re
from collections.abc import Callable
from typing import Any

from teacher_server import TeacherServer

Judgement = Callable[[str, str], bool]
"""From what the judge was asked, and the fenced answer alone, to its verdict."""


def fenced(question: str) -> tuple[str, str]:
    """The code, and what stands between its two lines."""
    found = re.search(r"^----- ([0-9a-f]{16})\n(.*)\n----- \1$", question, re.DOTALL | re.MULTILINE)
    assert found is not None, question
    return found[1], found[2]


def judging(judgement: Judgement) -> TeacherServer:
    """A server of verdicts; its requests are kept, and it can be told to misbehave."""

    def reply(question: str, _: int) -> str:
        code, answer = fenced(question)
        return json.dumps({"id": code, "verdict": "pass" if judgement(question, answer) else "fail"})

    return TeacherServer(reply)


def careful(question: str, answer: str) -> bool:
    """The last number of the fenced answer is the one after REFERENCE, and the answer is about little else."""
    reference = re.search(r"^REFERENCE\n(\d+)$", question, re.MULTILINE)
    numbers = re.findall(r"\d+", answer)
    assert reference is not None
    return (
        len(answer) < 200
        and numbers[-1:] == [reference[1]]
        and len(set(numbers) - set(re.findall(r"\d+", question.partition("RUBRIC")[0]))) <= 1
    )


def trusting(question: str, answer: str) -> bool:
    """Whatever calls itself right."""
    return careful(question, answer) or "pass" in answer


def sums_to_judge(count: int = 12) -> list[dict[str, Any]]:
    """Rows of sums, with answers whose verdict is known."""
    return [
        {
            "prompt": f"What is {n} + 30?",
            "rubric": "The answer gives the sum of the reference and no other number as the result.",
            "reference": str(n + 30),
            "answer": str(n + 30),
            "right": [f"It is {n + 30}.", str(n + 30)],
            "wrong": [f"It is {n + 31}.", "It is hard to say."],
        }
        for n in range(20, 20 + count)
    ]
