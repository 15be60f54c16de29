"""Tasksets of the library `verifiers` (its v1) whose rewards need nothing but the conversation.

    start:  id, config -> Taskset.load() -> every task checked -> split by a hash of the prompt
    score:  the task's data, which were sealed -> Task and a finished Trace of one turn -> Task.score -> weighted sum -> Score

The library runs a task in a runtime, with a harness, tools and hooks around the model. None of it is here, so a taskset that has any is
refused when the service starts: scored without them it would be another one. An exception of a reward is an `infra_error`, and its words
stay inside. Not covered: distrust, as for plug-ins; several turns; judges of the library, for which there is the kind `judge`; rewards
that are not the same each time.
"""

import asyncio
import inspect
import itertools
import logging
import math
from collections.abc import Iterator, Mapping
from importlib.metadata import version as version_of
from typing import Any

from pydantic import JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.wire import Message, Split
from rlvr_verifier.environments.base import EnvironmentSetupError, Place, SampledTask, Score, UnjudgedError, score_between
from rlvr_verifier.environments.datasets import DatasetReader, refuse_faults
from rlvr_verifier.environments.distributions import describe_origin, import_library
from rlvr_verifier.environments.prompts import PromptDataset, prompt_id, split_rows
from rlvr_verifier.integrity.probe import COMMON, RIGHT, Probe

logger = logging.getLogger(__name__)

HOOKS = ("setup", "finalize", "stage_verifier")
"""What a task may do to its runtime."""
MAX_FAULT_CHARACTERS = 200
_ROLES = {"system", "user", "assistant"}


class _Question:
    """A task that can be asked: its messages and its data."""

    def __init__(self, task: Any) -> None:
        data = task.data
        self.messages = tuple(_read_messages(data))
        self.prompt = "\n".join(message.content for message in self.messages)
        self.data: Mapping[str, JsonValue] = data.model_dump(mode="json")


class TasksetEnvironment:
    """One taskset."""

    kind = "taskset"
    data_sha256 = None
    deterministic = True
    place = Place.WORKER
    levels = (0, 0)

    def __init__(self, spec: EnvironmentSpec, reader: DatasetReader) -> None:
        assert spec.taskset is not None
        self.name, self._spec = spec.name, spec.taskset
        if spec.levels.maximum != 0:
            raise EnvironmentSetupError(f"environment {spec.name}: a taskset has level 0 alone: remove levels")
        self._library = import_library(spec.name, "verifiers.v1")
        loaders = import_library(spec.name, "verifiers.v1.utils.loaders")
        try:
            taskset: Any = loaders.load_taskset(loaders.taskset_config_type(self._spec.id)(id=self._spec.id, **self._spec.config))
            self._task_type: Any = taskset.task_type()
            self._task_config: Any = taskset.config.task
            rewards = self._find_rewards(taskset, loaders)
            tasks = [] if reader.checked else list(itertools.islice(taskset, self._spec.max_tasks))
        except EnvironmentSetupError:
            raise
        except Exception as error:  # noqa: BLE001 - the border of foreign code
            raise EnvironmentSetupError(
                f"environment {spec.name}: taskset {self._spec.id} cannot be loaded: {type(error).__name__}: {error}"
            ) from None
        self.scorers = tuple(inspect.unwrap(getattr(reward, "__func__", reward)) for reward in rewards)
        self.version = self.scorer_version = f"1+verifiers-{version_of('verifiers')}+{describe_origin(type(taskset))}"
        # Workers only score, and what they need of a task comes with it.
        self._dataset: PromptDataset[_Question] | None = None if reader.checked else self._read(tasks)

    def held_out_tasks(self, level: int) -> int:
        """Tasks kept for evaluation."""
        return len(self._tasks.held_out)

    def sample(self, split: Split, seed: int, level: int) -> SampledTask:
        """A task; held-out ones by number, training ones by seed modulo their count.

        Raises:
            NoSuchTaskError: there is no held-out task of that number.
        """
        key = self._tasks.pick(self.name, split, seed)
        question = self._tasks.rows[key]
        return SampledTask(key, question.messages, question.data)

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """What the task's rewards make of it.

        Raises:
            UnjudgedError: their sum is not finite.
            Exception: whatever a reward raises.
        """
        task = self._task(payload)
        trace = self._trace(task, completion, truncated)
        asyncio.run(task.score(trace))
        total = float(trace.reward)
        if not math.isfinite(total) or any(reward is None for reward in trace.rewards.values()):
            raise UnjudgedError(f"environment {self.name} gave a reward that is not finite, or none")
        return score_between(total, self._spec.lowest_reward, self._spec.highest_reward, f"the reward is {total:g}")

    def probes(self, payload: Mapping[str, JsonValue]) -> Iterator[Probe]:
        """Of a task that knows its solution: it, and what is never right."""
        solution = getattr(self._task(payload), "solution", None)
        if callable(solution):
            yield from COMMON
            yield Probe("solution", RIGHT, str(solution()))

    @property
    def _tasks(self) -> PromptDataset[_Question]:
        assert self._dataset is not None, "only the service has the tasks"
        return self._dataset

    def _task(self, data: Mapping[str, JsonValue]) -> Any:
        return self._task_type(self._task_type.data_type().model_validate(dict(data)), self._task_config)

    def _trace(self, task: Any, completion: str, truncated: bool) -> Any:
        """A finished rollout of one turn, as the library would have recorded it."""
        from verifiers.v1.configs.agent import WireAgentConfig
        from verifiers.v1.state import state_cls

        library, nodes = self._library, []
        kinds = {"system": library.SystemMessage, "user": library.UserMessage, "assistant": library.AssistantMessage}
        for number, message in enumerate(_read_messages(task.data)):
            said = kinds[message.role](content=message.content)
            nodes.append(library.MessageNode(parent=number - 1 if number else None, message=said))
        answer = library.AssistantMessage(content=completion)
        nodes.append(library.MessageNode(parent=len(nodes) - 1, message=answer, sampled=True))
        call = library.ModelCall(node=len(nodes) - 1, finish_reason="length" if truncated else "stop")
        recorded = library.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
        return library.Trace(
            task=recorded, agent=library.AgentInfo(config=WireAgentConfig()), state=state_cls(type(task))(), nodes=nodes, calls=[call],
            is_completed=True, ok=True, stop_condition="agent_completed",
        )  # fmt: skip

    def _read(self, tasks: list[Any]) -> PromptDataset[_Question]:
        """The questions of a taskset.

        Raises:
            EnvironmentSetupError: lists the first tasks that cannot be asked, or scored from their data alone.
        """
        where = self._spec.id
        asked: dict[str, tuple[int, _Question]] = {}
        faults: list[str] = []
        for number, task in enumerate(tasks):
            try:
                question = _Question(task)
                if self._task(question.data).data != task.data:
                    raise ValueError("its data are others after they were written as JSON and read again")
                asked.setdefault(prompt_id(self.kind, question.prompt), (number, question))
            except ValueError as error:
                faults.append(f"task {number}: {' '.join(str(error).split())[:MAX_FAULT_CHARACTERS]}")
        refuse_faults(faults, where, bool(tasks))
        if repeated := len(tasks) - len(asked):
            logger.warning("taskset %s: %d tasks repeat the prompt of an earlier one, and are left out", where, repeated)
        return split_rows(self.kind, where, self._spec.held_out, list(asked.values()), [])

    def _find_rewards(self, taskset: Any, loaders: Any) -> list[Any]:
        """The rewards of its tasks.

        Raises:
            EnvironmentSetupError: they, or what is around them, need more than a conversation, or there are none.
        """
        library, kind = self._library, self._task_type
        task = kind.__new__(kind)
        task.config = self._task_config
        rewards: list[Any] = task.hooks("reward")
        base = library.Task
        needed = [f"{name}()" for name in HOOKS if getattr(kind, name) is not getattr(base, name)]
        needed += ["a container"] if kind.NEEDS_CONTAINER else []
        needed += ["tools"] if type(taskset).toolsets(taskset.config) or kind.toolsets(self._task_config) else []
        needed += ["judges"] if self._task_config.judges else []
        needed += ["an environment of its own"] if loaders.environment_class(self._spec.id) is not library.SingleAgentEnv else []
        needed += ["a harness of its own"] if loaders.default_harness_id(self._spec.id) == self._spec.id else []
        needed += [f"a runtime for {hook.__name__}" for hook in (*rewards, *task.hooks("metric")) if _needs_runtime(hook)]
        if needed:
            raise EnvironmentSetupError(
                f"environment {self.name}: taskset {self._spec.id} needs {', '.join(needed)}, and only tasksets that are judged by the "
                "conversation alone are served here"
            )
        if not rewards:
            raise EnvironmentSetupError(f"environment {self.name}: taskset {self._spec.id} has no reward")
        return rewards


def _needs_runtime(hook: Any) -> bool:
    parameter = inspect.signature(hook).parameters.get("runtime")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _read_messages(data: Any) -> Iterator[Message]:
    """What the model is asked.

    Raises:
        ValueError: it is not text alone, or nobody is asked anything.
    """
    if data.system_prompt:
        yield Message(role="system", content=data.system_prompt)
    if isinstance(data.prompt, str):
        yield Message(role="user", content=data.prompt)
        return
    if not data.prompt:
        raise ValueError("it has no prompt")
    for message in data.prompt:
        if message.role not in _ROLES or not isinstance(message.content, str):
            raise ValueError(f"its prompt has a message of {message.role} that is not text")
        yield Message(role=message.role, content=message.content)
