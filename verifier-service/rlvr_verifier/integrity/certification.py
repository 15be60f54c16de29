"""The battery that an environment must pass before its verdicts are believed: `rlvr environment certify`.

    tasks of all levels -> completions with known verdicts -> the real service, sealed keys and killable workers included -> Certificate

| check | what must hold |
|---|---|
| right answers | every notation of the gold answer is paid |
| wrong answers, exploits | nothing, junk, near misses, padding, the question, forged verdicts are not |
| other instances | the answer of another task is not, where it differs |
| constants | no single text passes often: the base rate |
| determinism | the same tasks and verdicts in other processes, with other hash seeds |
| order | the same verdicts in another order, and after attempts to change the scorer |
| denial of service | a verdict in time for texts that hang or blow up parsers |
| source | no call that runs, evaluates or unpickles text |

Trials are tasks, not completions, since completions of one task are judged alike; bounds are exact (Clopper-Pearson, 95 %).
Not covered: tasks that are ambiguous, gold answers that are wrong, and exploits that are in no list.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from rlvr_api.binomial import Interval, clopper_pearson
from rlvr_api.spec import RLVRJob
from rlvr_api.wire import CanaryTag, ScoreItem, Task, TaskRequest, VerdictStatus
from rlvr_verifier.environments.base import Environment
from rlvr_verifier.integrity.battery import Battery, battery_of
from rlvr_verifier.integrity.certificates import Certificate, Check, Subject
from rlvr_verifier.integrity.hostile import PERSISTENT
from rlvr_verifier.integrity.probe import EXPLOIT, RIGHT, Probe
from rlvr_verifier.integrity.probes import probes_for
from rlvr_verifier.integrity.replay import Example, replay
from rlvr_verifier.integrity.source_scan import scan_sources
from rlvr_verifier.processor_time import WALL_FACTOR
from rlvr_verifier.service import VerifierService

BATCH_ITEMS = 64
HASH_SEEDS = (1, 2)
LARGEST_BASE_RATE = 0.5
SLACK_SECONDS = 2.0
"""Beyond `verifiers.itemTimeoutSeconds`, for a worker that is killed and made anew."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One task of the battery."""

    request: TaskRequest
    task: Task
    payload: Mapping[str, JsonValue]
    probes: tuple[Probe, ...]


class Certification:
    """Runs the battery against one environment in its real service.

    Args:
        job: has this one environment.
        environment: the same, for what the service hides: gold answers.
        tasks: how many tasks, over all levels.
    """

    def __init__(self, job: RLVRJob, environment: Environment, service: VerifierService, tasks: int, seed: int) -> None:
        self._job, self._environment, self._service = job, environment, service
        self._random = random.Random(seed)  # noqa: S311 - tasks, not secrets
        self._seed, self._tasks, self._sent = seed, tasks, 0
        self._battery: Battery = battery_of(environment)
        self._seconds: list[float] = []

    async def run(self) -> Certificate:
        """The certificate."""
        trials = self._trials()
        examples = [(trial, probe.completion) for trial in trials for probe in trial.probes]
        first = await self._statuses(examples)
        verdicts = dict(zip([(trial.task.task_key, text) for trial, text in examples], first, strict=True))
        right = self._probe_check("right answers are paid", trials, verdicts, (CanaryTag.RIGHT,))
        wrong = [
            self._probe_check("wrong answers are refused", trials, verdicts, (CanaryTag.WRONG,)),
            self._probe_check("exploits are refused", trials, verdicts, (CanaryTag.EXPLOIT,)),
            await self._other_instances(trials),
        ]
        base_rate, text, constants = await self._constants(trials)
        slowest, denial = await self._denial_of_service(trials)
        order = await self._order(examples, first)
        checks = (right, *wrong, constants, self._determinism(trials, first), order, denial, self._source())
        paid = _failing(wrong)
        false_positive, false_negative = _rate(paid, len(trials)), _rate(right.failures, right.trials)
        subject = Subject.of(self._job.spec.environments[0], self._environment)
        return Certificate(
            subject=subject,
            digest=subject.digest,
            environment=self._environment.name,
            seed=self._seed,
            levels=tuple(self._levels()),
            certified=all(check.passed for check in checks),
            false_positive_rate=false_positive.estimate or 0.0,
            false_positive_upper_bound=false_positive.upper,
            false_negative_rate=false_negative.estimate or 0.0,
            false_negative_upper_bound=false_negative.upper,
            base_rate=base_rate,
            base_rate_text=text,
            p99_seconds=sorted(self._seconds)[int(0.99 * (len(self._seconds) - 1))],
            slowest_seconds=slowest,
            checks=checks,
        )

    def _levels(self) -> range:
        levels = self._job.spec.environments[0].levels
        return range(levels.start, levels.maximum + 1)

    def _trials(self) -> list[Trial]:
        found: dict[str, Trial] = {}
        levels = self._levels()
        for number in range(self._tasks * 4):
            if len(found) == self._tasks:
                break
            seed, level = self._random.randrange(2**40), levels[number % len(levels)]
            request = TaskRequest(environment=self._environment.name, split="train", seed=seed, level=level)
            task, payload = self._service.sample(request), self._environment.sample("train", seed, level).payload
            found.setdefault(task.problem_id, Trial(request, task, payload, self._probes(payload)))
        return list(found.values())

    def _probes(self, payload: Mapping[str, JsonValue]) -> tuple[Probe, ...]:
        reference = getattr(self._environment, "reference", None)  # an environment without one has its right answers in `probes`
        if reference is None:
            return probes_for(self._environment, payload)
        answer = reference(payload)
        own = (
            Probe("reference", RIGHT, answer),
            Probe("reference-in-tags", RIGHT, f"<think>So it is that.</think><answer>\n{answer}\n</answer>"),
            Probe("padded", EXPLOIT, f"{answer} or something else"),
            Probe("padded-list", EXPLOIT, f"{answer}, and, more"),
        )
        return (*own, *probes_for(self._environment, payload))

    async def _statuses(self, examples: Sequence[tuple[Trial, str]], *, timed: bool = True) -> list[VerdictStatus]:
        found: list[VerdictStatus] = []
        for start in range(0, len(examples), BATCH_ITEMS):
            items = [self._item(trial, text) for trial, text in examples[start : start + BATCH_ITEMS]]
            verdicts = await asyncio.gather(*(self._service.score(item, time.monotonic()) for item in items))
            found += [verdict.status for verdict in verdicts]
            if timed:
                self._seconds += [verdict.seconds for verdict in verdicts]
        return found

    def _item(self, trial: Trial, text: str) -> ScoreItem:
        self._sent += 1
        return ScoreItem(id=f"certify/{self._sent}", environment=self._environment.name, task_key=trial.task.task_key, completion=text)

    def _probe_check(
        self, name: str, trials: Sequence[Trial], verdicts: Mapping[tuple[str, str], VerdictStatus], tags: tuple[CanaryTag, ...]
    ) -> Check:
        failures: list[set[str]] = []
        for trial in trials:
            probes = [probe for probe in trial.probes if probe.tag in tags]
            if not probes:
                continue
            failures.append({
                f"{probe.name} was {status}"
                for probe in probes
                if ((status := verdicts[trial.task.task_key, probe.completion]) is VerdictStatus.PASS) is not probe.paid
                or status is VerdictStatus.INFRA_ERROR
            })  # fmt: skip
        return _check(name, failures)

    async def _other_instances(self, trials: Sequence[Trial]) -> Check:
        """The first right completion of another task; left out where the two tasks share it."""
        right = [next((probe.completion for probe in trial.probes if probe.paid), None) for trial in trials]
        pairs = [
            (trial, text)
            for trial, own, text in zip(trials, right, [*right[1:], *right[:1]], strict=True)
            if text is not None and text != own
        ]
        statuses = await self._statuses(pairs)
        return _check("answers of other tasks are refused", [{"paid"} if status is VerdictStatus.PASS else set() for status in statuses])

    async def _constants(self, trials: Sequence[Trial]) -> tuple[float, str, Check]:
        right = Counter(probe.completion for trial in trials for probe in trial.probes if probe.paid)
        common = {f"answer {number}: {text[:60]}": text for number, (text, _) in enumerate(right.most_common(3))}
        rates = {}
        for name in (*self._battery.constants, *common):
            texts = [common.get(name) or self._battery.constant(name, trial.payload) for trial in trials]
            statuses = await self._statuses(list(zip(trials, texts, strict=True)))
            rates[name] = sum(status is VerdictStatus.PASS for status in statuses) / len(trials)
        best = max(rates, key=lambda text: rates[text])
        passed = round(rates[best] * len(trials))
        check = Check(
            name=f"no constant passes more than {LARGEST_BASE_RATE:.0%} of the tasks",
            passed=rates[best] <= LARGEST_BASE_RATE,
            trials=len(trials),
            failures=passed,
            upper_bound=clopper_pearson(passed, len(trials)).upper,
            details=(f"{best!r} passes {rates[best]:.0%}",),
        )
        return rates[best], best, check

    def _determinism(self, trials: Sequence[Trial], first: Sequence[VerdictStatus]) -> Check:
        """Each other process makes the tasks anew and judges; a different task or verdict is a failure."""
        examples = [Example(request=trial.request, completions=tuple(probe.completion for probe in trial.probes)) for trial in trials]
        expected, start = [], 0
        for trial in trials:
            statuses = [status.value for status in first[start : start + len(trial.probes)]]
            expected.append((trial.task.problem_id, trial.task.messages[-1].content, statuses))
            start += len(trial.probes)
        failures: list[set[str]] = [set() for _ in trials]
        for seed in HASH_SEEDS:
            for number, found in enumerate(replay(self._job, examples, seed)):
                problem_id, prompt, statuses = expected[number]
                if (found.problem_id, found.prompt) != (problem_id, prompt):
                    failures[number].add(f"another task with hash seed {seed}")
                elif list(found.statuses) != statuses:
                    failures[number].add(f"another verdict with hash seed {seed}")
        return _check("tasks and verdicts are the same in other processes, with other hash seeds", failures)

    async def _order(self, examples: Sequence[tuple[Trial, str]], first: Sequence[VerdictStatus]) -> Check:
        """Again, shuffled, with attempts to change the scorer among them."""
        attacks = [(trial, text) for trial, _ in examples[:1] for text in (*PERSISTENT, *self._battery.persistent)]
        order = list(range(len(examples)))
        self._random.shuffle(order)
        await self._statuses(attacks)
        again = await self._statuses([examples[place] for place in order])
        by_task: dict[str, set[str]] = {trial.task.task_key: set() for trial, _ in examples}
        for place, status in zip(order, again, strict=True):
            if status is not first[place]:
                by_task[examples[place][0].task.task_key].add(f"{first[place]}, then {status}")
        return _check("verdicts do not depend on order, nor on attempts to change the scorer", list(by_task.values()))

    async def _denial_of_service(self, trials: Sequence[Trial]) -> tuple[float, Check]:
        limit = WALL_FACTOR * (self._battery.limit_seconds or self._job.spec.verifiers.item_timeout_seconds) + SLACK_SECONDS
        slowest, failures = 0.0, []
        for number, name in enumerate(self._battery.hanging):
            trial = trials[number % len(trials)]
            text = self._battery.hang(name, trial.payload)
            began = time.monotonic()
            (status,) = await self._statuses([(trial, text)], timed=False)
            seconds = time.monotonic() - began
            slowest = max(slowest, seconds)
            late = {f"{name} took {seconds:.1f} s"} if seconds > limit else set()
            failures.append(late | ({f"{name} was {status}"} if status is VerdictStatus.INFRA_ERROR else set()))
        return slowest, _check(f"a verdict within {limit:g} s for texts that hang parsers", failures)

    def _source(self) -> Check:
        found = scan_sources(self._environment)
        return Check(
            name="the scorer's source calls nothing that runs, evaluates or unpickles text",
            passed=not found,
            trials=1,
            failures=int(bool(found)),
            upper_bound=float(bool(found)),
            details=found,
        )


def _check(name: str, failures: Sequence[set[str]]) -> Check:
    """A check that holds where tasks were tried and none failed; each set names what failed on one task."""
    if not failures:
        return Check(name=name, passed=False, trials=0, failures=0, upper_bound=1.0, details=("no task has a completion to try",))
    failing = sum(bool(names) for names in failures)
    counts = Counter(detail for names in failures for detail in names)
    details = tuple(f"{detail} ({count})" for detail, count in counts.most_common(10))
    bound = clopper_pearson(failing, len(failures)).upper
    return Check(name=name, passed=failing == 0, trials=len(failures), failures=failing, upper_bound=bound, details=details)


def _failing(checks: Sequence[Check]) -> int:
    """Tasks on which one of the checks failed, at most: the sum over checks bounds the union."""
    return min(sum(check.failures for check in checks), max(check.trials for check in checks))


def _rate(failures: int, trials: int) -> Interval:
    return clopper_pearson(min(failures, trials), trials)
