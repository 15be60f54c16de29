"""Environments of several turns: the model acts, is told something, and acts again.

    task, actions so far -> play -> what the model is told after each; a verdict once the episode has ended
    /v1/step:  transcript -> play -> the newest observation, or the end
    /v1/score: transcript -> play -> verdict

`play` is a pure function of the task and the actions, so nothing is kept between requests: any replica goes on with any episode, a request
that comes again acts only once, and a stored transcript is judged again years later. The price is that each step plays all before it again,
so turns are few. A transcript names the digest of what the model was told; where playing gives something else, the episode is an
`infra_error`: the environment is not the one that the model acted in. Not covered: environments whose state cannot be made again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pydantic import JsonValue

from rlvr_api.wire import MAX_COMPLETION_BYTES, StepResult, Transcript, digest_observations
from rlvr_verifier.environments.base import Score, UnjudgedError, invalid

MAX_OBSERVATION_CHARACTERS = 8_192
"""Longest observation; an environment that says more is at fault."""


@dataclass(frozen=True, slots=True)
class Play:
    """An episode as far as its actions go."""

    observations: tuple[str, ...]
    """What the model is told after each action; one fewer than actions where the last has ended the episode."""
    score: Score | None
    """The verdict; None: the episode goes on."""


@runtime_checkable
class Interactive(Protocol):
    """What an environment has besides, to be of several turns."""

    name: str
    max_turns: int
    """Most actions of an episode, at least 2: at the last one it ends, whatever it was."""

    def play(self, payload: Mapping[str, JsonValue], actions: Sequence[str]) -> Play:
        """The episode of these actions. An action after its end makes it `invalid`."""
        ...


def turns_of(environment: object) -> int:
    """Most turns of an episode; 1 for an environment that is not interactive."""
    return environment.max_turns if isinstance(environment, Interactive) else 1


def judge(environment: Interactive, payload: Mapping[str, JsonValue], completion: str) -> Score:
    """The verdict on a transcript, or on a text that is the only action of its episode.

    Raises:
        UnjudgedError: the model was told something else than playing gives.
    """
    transcript = Transcript.of(completion)
    play = _play(environment, payload, transcript)
    return play.score or invalid(f"the episode was left after {len(transcript.actions)} turns, before its end")


def step(environment: Interactive, payload: Mapping[str, JsonValue], transcript: Transcript) -> StepResult:
    """What follows the newest action.

    Raises:
        UnjudgedError: as `judge`.
    """
    if len(transcript.completion.encode(errors="replace")) > MAX_COMPLETION_BYTES:
        return StepResult(done=True)
    play = _play(environment, payload, transcript)
    return StepResult(done=True) if play.score is not None else StepResult(observation=play.observations[-1], done=False)


def _play(environment: Interactive, payload: Mapping[str, JsonValue], transcript: Transcript) -> Play:
    actions = transcript.actions
    if len(actions) > environment.max_turns:
        return Play((), invalid(f"{len(actions)} turns, and at most {environment.max_turns} are allowed"))
    play = environment.play(payload, actions)
    if play.score is None and len(play.observations) != len(actions):
        raise UnjudgedError(f"environment {environment.name} gave {len(play.observations)} observations for {len(actions)} actions")
    if any(len(observation) > MAX_OBSERVATION_CHARACTERS for observation in play.observations):
        raise UnjudgedError(f"environment {environment.name} gave an observation of more than {MAX_OBSERVATION_CHARACTERS} characters")
    told = play.observations[: len(actions) - 1]
    if transcript.observed and transcript.observed != digest_observations(told):
        raise UnjudgedError(
            f"environment {environment.name}, played again, gives other observations than the model was told: it is not deterministic, or "
            "is another version"
        )
    return play
