"""The governor closes the loop round asynchrony: what a step shows of its tokens decides how stale the next ones may be.

    StepReport -> Numbers -> govern(off_policy, state, numbers) -> state', actions          in_force(off_policy, state) -> OffPolicy

A ladder of notches leads from what the spec allows to the least it allows: each halves the staleness of admission and the distance of the
correction's cap from 1. A step beyond a bound goes one notch tighter. What was admitted before still comes in for as many steps as the
staleness was lowered by, so soft bounds are not looked at again before that: one cause tightens once. A step beyond `pauseKl`, or a bound
crossed at the last notch, pauses: synchronous, and whatever older weights sampled is dropped; the first step within its bounds ends that.
Between half a bound and the bound nothing changes, so it does not swing.

Everything here is pure. The state is a few numbers that records and checkpoints keep, so a resumed run is governed as an undisturbed one.
Not covered: a mismatch that fresh tokens show as well. That is no staleness but engines that compute something else, and the pause says so.
"""

from dataclasses import asdict, dataclass, replace
from typing import Literal

from pydantic import JsonValue

from rlvr_api.off_policy import Governor, OffPolicy
from rlvr_api.status import GovernorProgress

LAST_NOTCH = 4
"""A sixteenth: what is left then is for a pause."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a step showed of the tokens it trained."""

    kl: float
    """KL(sampler ‖ policy at the start of the step), k3, nats a token."""
    ess: float
    clip_fraction: float
    staleness: int
    """Optimizer steps of the oldest token of the batch."""


@dataclass(frozen=True, slots=True)
class GovernorState:
    """Where on the ladder it stands."""

    notch: int = 0
    """0: as the spec allows."""
    paused: bool = False
    calm: int = 0
    """Steps in a row at less than half of every bound."""
    settling: int = 0
    """Steps that may still consume what was admitted before the last tightening; in a pause 1 until fresh tokens were seen."""

    def to_json(self) -> dict[str, JsonValue]:
        """What records and checkpoints keep."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: JsonValue) -> "GovernorState":
        """The state that `to_json` gave; None is that of a stage's start.

        Raises:
            ValueError: it is something else.
        """
        if value is None:
            return cls()
        try:
            return cls(**value)  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError(f"{value!r} is no state of a governor: it is of another program version") from error


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that the governor did."""

    kind: Literal["tighten", "pause", "resume", "loosen"]
    reason: str
    max_staleness: int
    """From now on."""
    cap: float | None
    """From now on; None where there is no correction."""

    def __str__(self) -> str:
        cap = f", cap {self.cap:.4g}" if self.cap is not None else ""
        return f"{self.kind}: {self.reason}; maxStaleness is now {self.max_staleness}{cap}"


def govern(off_policy: OffPolicy, state: GovernorState, numbers: Numbers | None) -> tuple[GovernorState, tuple[Action, ...]]:
    """The state after a step, and what changed.

    Args:
        numbers: of the step; None where it trained nothing, which says nothing.
    """
    governor = off_policy.governor
    if governor is None or numbers is None:
        return state, ()
    excess = _excess(governor, numbers)
    if excess is None:
        return _relax(off_policy, state, calm=_is_calm(governor, numbers))
    top = _last_notch(off_policy)
    if state.paused or numbers.kl > governor.pause_kl or (state.notch == top and not state.settling):
        return _pause(off_policy, state, top, excess, fresh=numbers.staleness == 0)
    if state.settling:
        return replace(state, calm=0, settling=state.settling - 1), ()
    tightened = GovernorState(state.notch + 1)
    lowered = in_force(off_policy, state).max_staleness - in_force(off_policy, tightened).max_staleness
    tightened = replace(tightened, settling=lowered)
    return tightened, (_action(off_policy, "tighten", tightened, excess),)


def _pause(
    off_policy: OffPolicy, state: GovernorState, notch: int, excess: str, *, fresh: bool
) -> tuple[GovernorState, tuple[Action, ...]]:
    """Begins a pause, or goes on with one, which says once that even fresh tokens are beyond a bound."""
    begun = GovernorState(notch, paused=True, settling=1)
    if not state.paused:
        return begun, (_action(off_policy, "pause", begun, excess),)
    if not fresh or not state.settling:
        return state, ()
    told = replace(begun, settling=0)
    excess += ", although its tokens are fresh: engines and learner compute different things, look at precision and probes"
    return told, (_action(off_policy, "pause", told, excess),)


def in_force(off_policy: OffPolicy, state: GovernorState) -> OffPolicy:
    """The settings that hold in a state."""
    governor = off_policy.governor
    if governor is None or (state.notch == 0 and not state.paused):
        return off_policy
    staleness, cap = max(governor.min_staleness, off_policy.max_staleness >> state.notch), off_policy.correction.cap
    if cap is None:
        correction = off_policy.correction
    else:
        correction = off_policy.correction.with_cap(max(governor.min_cap, 1.0 + (cap - 1.0) / 2**state.notch))
    changes = {"max_staleness": 0, "drop_beyond": 0} if state.paused else {"max_staleness": staleness}
    return off_policy.model_copy(update={**changes, "correction": correction})


def describe(off_policy: OffPolicy, state: GovernorState) -> GovernorProgress:
    """For the status; without the last action."""
    now = in_force(off_policy, state)
    mode: Literal["open", "tightened", "paused"] = "paused" if state.paused else "tightened" if state.notch else "open"
    return GovernorProgress(mode=mode, max_staleness=now.max_staleness, cap=now.correction.cap)


def _relax(off_policy: OffPolicy, state: GovernorState, *, calm: bool) -> tuple[GovernorState, tuple[Action, ...]]:
    assert off_policy.governor is not None
    settling = max(0, state.settling - 1)
    if state.paused:
        resumed = GovernorState(state.notch)
        return resumed, (_action(off_policy, "resume", resumed, "a step was within its bounds"),)
    steps = min(off_policy.governor.healthy_steps, state.calm + 1) if calm else 0
    if state.notch == 0 or steps < off_policy.governor.healthy_steps:
        return replace(state, calm=steps, settling=settling), ()
    loosened = GovernorState(state.notch - 1, settling=settling)
    return loosened, (_action(off_policy, "loosen", loosened, f"{steps} steps in a row were at less than half of every bound"),)


def _excess(governor: Governor, numbers: Numbers) -> str | None:
    """The first bound that is crossed, in words."""
    if numbers.kl > governor.max_kl:
        return f"KL {numbers.kl:.3g} is above maxKl {governor.max_kl}"
    if numbers.ess < governor.min_ess:
        return f"effective sample size {numbers.ess:.3g} is below minEss {governor.min_ess}"
    if numbers.clip_fraction > governor.max_clip_fraction:
        return f"clip fraction {numbers.clip_fraction:.3g} is above maxClipFraction {governor.max_clip_fraction}"
    return None


def _is_calm(governor: Governor, numbers: Numbers) -> bool:
    return (
        numbers.kl <= governor.max_kl / 2
        and 1 - numbers.ess <= (1 - governor.min_ess) / 2
        and numbers.clip_fraction <= governor.max_clip_fraction / 2
    )


def _last_notch(off_policy: OffPolicy) -> int:
    """The first notch behind which nothing gets tighter."""
    rungs = [in_force(off_policy, GovernorState(notch)) for notch in range(LAST_NOTCH + 1)]
    return next(notch for notch, rung in enumerate(rungs) if rung == rungs[-1])


def _action(off_policy: OffPolicy, kind: Literal["tighten", "pause", "resume", "loosen"], state: GovernorState, reason: str) -> Action:
    now = in_force(off_policy, state)
    return Action(kind, reason, now.max_staleness, now.correction.cap)
