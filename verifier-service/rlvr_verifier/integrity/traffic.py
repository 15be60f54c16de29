"""Audits and canaries among the items that a service scores.

    verdict -> drawn? -> first verifier once more, second verifier -> Verdict.audit
    item    -> drawn? -> a canary for the same task through the same scorer -> CanaryVerdict

What is drawn follows from a secret that is derived from the seal's key and from the item's id: the same id is drawn or not at every try and
on every replica, and nobody outside can tell which. An audit that fails makes the verdict an `infra_error`, since leaving it out would
make the probability of an audit another one than the verdict says.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from pydantic import JsonValue

from rlvr_api.integrity import Integrity
from rlvr_api.wire import AuditVerdict, CanaryVerdict, ScoreItem, Verdict, VerdictStatus
from rlvr_verifier.environments.base import Environment, Score
from rlvr_verifier.faults import fault
from rlvr_verifier.integrity.auditors import Auditor
from rlvr_verifier.integrity.probe import Probe
from rlvr_verifier.integrity.probes import probes_for
from rlvr_verifier.pool import PoolBusyError, ScorerTimeoutError
from rlvr_verifier.seal import Seal

logger = logging.getLogger(__name__)

Scorer = Callable[[Environment, Mapping[str, JsonValue], str, bool], Awaitable[Score]]


class IntegrityTraffic:
    """Draws audits and canaries, and judges them.

    Args:
        auditors: second verifiers by name of the environment.
        score: how the service scores a completion, in the worker pool or not.
    """

    def __init__(self, integrity: Integrity, auditors: Mapping[str, Auditor], seal: Seal, score: Scorer) -> None:
        self._integrity = integrity
        self._auditors = auditors
        self._seal = seal
        self._score = score

    async def audited(self, item: ScoreItem, verdict: Verdict, environment: Environment) -> Verdict:
        """The verdict with its audit, where it is drawn for one.

        Raises:
            PoolBusyError: the first verifier cannot be asked again now.
        """
        probability = self._probability(item, verdict)
        if probability <= 0 or self._seal.draw(f"audit/{item.id}") >= probability:
            return verdict
        payload = self._seal.open(item.task_key, item.environment, environment.version)
        auditor = self._auditors[item.environment]
        try:
            found = auditor.judge(payload, item.completion)
            again = await self._status(environment, payload, item)
        except PoolBusyError:
            raise
        except Exception as error:  # noqa: BLE001 - the border of the second verifier: what it did is not the candidate's doing
            logger.error("the audit of %s of %s failed: %s", item.id, item.environment, fault(error))
            reason = f"the audit failed with {type(error).__name__}"
            return verdict.model_copy(update={"status": VerdictStatus.INFRA_ERROR, "score": None, "reason": reason})
        audit = AuditVerdict(
            probability=probability,
            score=found.score,
            verifier=auditor.name,
            verifier_version=auditor.version,
            flaky=again is not verdict.status,
            reason=found.reason[:500],
        )
        return verdict.model_copy(update={"audit": audit})

    async def canaries(self, items: Sequence[ScoreItem], environments: Mapping[str, Environment]) -> tuple[CanaryVerdict, ...]:
        """Verdicts on the canaries that are drawn beside these items. One that cannot be judged now is left out."""
        drawn = [item for item in items if self._seal.draw(f"canary/{item.id}") < self._integrity.canary_rate]
        found = await asyncio.gather(*(self._canary(item, environments[item.environment]) for item in drawn))
        return tuple(verdict for verdict in found if verdict is not None)

    async def _canary(self, item: ScoreItem, environment: Environment) -> CanaryVerdict | None:
        payload = self._seal.open(item.task_key, item.environment, environment.version)
        probes = probes_for(environment, payload)
        if not probes:
            return None
        probe: Probe = probes[int(self._seal.draw(f"probe/{item.id}") * len(probes))]
        try:
            score = (await self._score(environment, payload, probe.completion, False)).score
        except ScorerTimeoutError:
            score = 0.0
        except Exception as error:  # noqa: BLE001 - a canary must never cost the items beside it their verdicts
            logger.warning("canary %s of %s was not judged: %s", probe.name, item.environment, fault(error))
            return None
        return CanaryVerdict(environment=item.environment, tag=probe.tag, probe=probe.name, kept=(score > 0) is probe.paid)

    def _probability(self, item: ScoreItem, verdict: Verdict) -> float:
        audit = self._integrity.audit
        if audit is None or item.environment not in self._auditors or verdict.status is VerdictStatus.INFRA_ERROR:
            return 0.0
        if item.audited:
            return 1.0
        return audit.positive_rate if verdict.status is VerdictStatus.PASS else audit.negative_rate

    async def _status(self, environment: Environment, payload: Mapping[str, JsonValue], item: ScoreItem) -> VerdictStatus:
        try:
            return (await self._score(environment, payload, item.completion, item.truncated)).status
        except ScorerTimeoutError:
            return VerdictStatus.TIMEOUT
