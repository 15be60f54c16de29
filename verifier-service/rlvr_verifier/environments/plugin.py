"""Environments of other distributions, found by the entry point group `rlvr.environments`.

    [project.entry-points."rlvr.environments"]
    reversal = "my_package.environments:open_reversal"

    open_reversal(name, options, read) -> an object with `version`, `levels`, `held_out_tasks`, `sample` and `score`, as
    `rlvr_verifier.environments.base.Environment` has them; `probes` or `reference` besides, to be certified

`name` is that of the environment in the job, `options` what the job gives, `read` the bytes of a `file://` or `s3://` dataset. Unknown or
wrong options are a ValueError, whose words a person sees. It is called in the service and in each worker. `sample` runs in the service,
`score` in killable workers, and what they return is checked. Not covered: distrust. Whoever installs a distribution into the verifier's
image trusts it with all answers of the job.
"""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.wire import Split, VerdictStatus
from rlvr_verifier.environments.base import EnvironmentSetupError, NoSuchTaskError, Place, SampledTask, Score
from rlvr_verifier.environments.datasets import DatasetReader
from rlvr_verifier.faults import fault

GROUP = "rlvr.environments"
OPTIONAL = ("probes", "reference", "answers", "reviewed_calls")
"""What certification and audits look for besides."""
_PROBLEM_ID = re.compile(r"[0-9a-f]{16}")


class PluginError(TypeError):
    """The plug-in returned what no environment may return."""


class PluginEnvironment:
    """One such environment, whose every answer is checked."""

    kind = "plugin"
    data_sha256: str | None = None
    place = Place.WORKER

    def __init__(self, spec: EnvironmentSpec, reader: DatasetReader) -> None:
        assert spec.plugin is not None
        self.name = spec.name
        entry = find_entry_point(spec.name, spec.plugin.name)
        self._inner = _open(spec.name, entry, spec.plugin.options, reader.read)
        self.levels: tuple[int, int] = _checked(spec.name, entry, self._inner)
        self.deterministic = bool(getattr(self._inner, "deterministic", True))
        distribution = entry.dist
        origin = "unknown" if distribution is None else f"{distribution.name}-{distribution.version}"
        self.version = self.scorer_version = f"{self._inner.version}+{origin}"
        low, high = self.levels
        if not low <= spec.levels.start <= spec.levels.maximum <= high:
            raise EnvironmentSetupError(
                f"environment {spec.name}: levels {spec.levels.start} to {spec.levels.maximum} are not within {low} to {high}, those of "
                f"plug-in {entry.name}"
            )
        self.scorers = (type(self._inner).score, *getattr(self._inner, "scorers", ()))
        for name in OPTIONAL:
            if hasattr(self._inner, name):
                setattr(self, name, getattr(self._inner, name))

    def held_out_tasks(self, level: int) -> int:
        """What the plug-in says."""
        return int(self._inner.held_out_tasks(level))

    def sample(self, split: Split, seed: int, level: int) -> SampledTask:
        """A task of the plug-in.

        Raises:
            NoSuchTaskError: the plug-in has no such task.
            EnvironmentSetupError: it raised something else, or returned what is no task.
        """
        try:
            task = self._inner.sample(split, seed, level)
        except NoSuchTaskError:
            raise
        except Exception as error:  # noqa: BLE001 - the border of foreign code; its words may quote an answer
            raise EnvironmentSetupError(f"environment {self.name}: its plug-in failed to make a task: {fault(error)}") from None
        if not isinstance(task, SampledTask) or not task.messages or _PROBLEM_ID.fullmatch(str(task.problem_id)) is None:
            raise EnvironmentSetupError(
                f"environment {self.name}: its plug-in made no SampledTask with messages and a problem_id of 16 hexadecimal digits"
            )
        return task

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """The plug-in's verdict.

        Raises:
            PluginError: it is none.
        """
        found = self._inner.score(payload, completion, truncated)
        if not isinstance(found, Score) or not isinstance(found.status, VerdictStatus) or found.status is VerdictStatus.INFRA_ERROR:
            raise PluginError("score must return a Score that is no infra_error; raise an exception where nothing can be said")
        if not 0.0 <= found.score <= 1.0 or (found.score > 0) is not (found.status is VerdictStatus.PASS):
            raise PluginError("a Score is above 0, and at most 1, where its status is pass, and 0 elsewhere")
        return found


def find_entry_point(environment: str, name: str) -> EntryPoint:
    """The one entry point of a name.

    Raises:
        EnvironmentSetupError: there is none, or there are several.
    """
    found = list(entry_points(group=GROUP))
    named = [entry for entry in found if entry.name == name]
    if len(named) > 1:
        owners = ", ".join(sorted(str(entry.dist and entry.dist.name) for entry in named))
        raise EnvironmentSetupError(
            f"environment {environment}: plug-in {name} is in several distributions ({owners}): uninstall all but one"
        )
    if not named:
        there = ", ".join(sorted({entry.name for entry in found})) or "none"
        raise EnvironmentSetupError(
            f"environment {environment}: no plug-in {name!r} is installed here (there is: {there}); install the distribution whose entry "
            f"points of group {GROUP} have it into the verifier's image or environment"
        )
    return named[0]


def _open(environment: str, entry: EntryPoint, options: Mapping[str, JsonValue], read: Callable[[str], bytes]) -> Any:
    where = f"environment {environment}: plug-in {entry.name} ({entry.value})"
    try:
        factory = entry.load()
    except Exception as error:  # noqa: BLE001 - importing foreign code
        raise EnvironmentSetupError(f"{where} cannot be imported: {type(error).__name__}: {error}") from None
    try:
        return factory(environment, dict(options), read)
    except ValueError as error:
        raise EnvironmentSetupError(f"{where} refuses its options: {error}") from None
    except Exception as error:  # noqa: BLE001 - the border of foreign code
        raise EnvironmentSetupError(f"{where} cannot be opened: {type(error).__name__}: {error}") from None


def _checked(environment: str, entry: EntryPoint, inner: Any) -> tuple[int, int]:
    """The levels of an object that has all that an environment needs."""
    missing = [name for name in ("held_out_tasks", "sample", "score") if not callable(getattr(inner, name, None))]
    missing += ["version"] if not isinstance(getattr(inner, "version", None), str) else []
    levels = getattr(inner, "levels", None)
    if not isinstance(levels, tuple) or len(levels) != 2 or not all(isinstance(level, int) for level in levels):
        missing.append("levels")
    if missing:
        raise EnvironmentSetupError(f"environment {environment}: plug-in {entry.name} has no proper {', '.join(missing)}")
    return (int(levels[0]), int(levels[1])) if isinstance(levels, tuple) else (0, 0)
