"""Where an answer may stand in a completion: after the thinking, if there is any."""

from rlvr_verifier.environments.base import Score, invalid


def after_thinking(completion: str) -> str | Score:
    """What follows the last `</think>`; all of a completion without one. A `Score` says that the thinking never ended."""
    _, _, answer = completion.rpartition("</think>")
    if "<think>" in answer:
        return invalid("the thinking does not end: no </think> after the last <think>")
    return answer
