"""The stage `sft`: supervised fine-tuning on a file of traces.

    traces -> examples -> an order for each epoch -> steps of `examplesPerStep`, across the ends of epochs

The sequence of examples is a pure function of the file, the job's seed and the stage's name; its positions are the indices that records
name. A record also names the file's digest, and an attempt that finds another file refuses to go on: it would learn some examples twice
and others never.
"""

import random
from collections.abc import Sequence

from rlvr_api.stages import Distill, Sft, Stage
from rlvr_trainer.context import BadInputError
from rlvr_trainer.run import Run, StopRequestedError
from rlvr_trainer.stages.supervised import SupervisedLoop, steps_of
from rlvr_trainer.storage.checkpoint_reader import LoadedCheckpoint
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.lineage import Dataset
from rlvr_trainer.supervised_learner import SupervisedLearner
from rlvr_trainer.traces import Example, TraceSet, read_traces

DIGEST = "traces"
"""Of the file, in the state that records keep."""


class TraceLearning:
    """Steps on the examples of a file, from where the store says they stand to the last one.

    Args:
        spec: how the examples are learned.
        uri: of the file, for messages.
        checkpoint, before: as those of `RlvrStage`.
    """

    def __init__(
        self, run: Run, keys: StageKeys, spec: Sft | Distill, traces: TraceSet, uri: str, checkpoint: LoadedCheckpoint | None, before: int
    ) -> None:
        job = run.context.job.spec
        self._run, self._keys, self._traces, self._uri = run, keys, traces, uri
        self._examples_per_step = spec.examples_per_step
        self._order = example_order(len(traces.examples), spec.epochs, f"{job.seed}/{keys.name}")
        self._steps = steps_of(len(traces.examples), spec.epochs, spec.examples_per_step)
        learner = SupervisedLearner(run.policy, spec.optimizer, self._steps, job.learner.tokens_per_micro_batch)
        self._loop = SupervisedLoop(run, keys, before, self._steps, learner, checkpoint)

    def execute(self) -> int:
        """Run to the last step; returns it.

        Raises:
            BadInputError: the traces are others than those that an earlier attempt began with.
            StopRequestedError: asked to stop; a checkpoint of the last step is committed.
        """
        loop = self._loop
        plan = loop.restore()
        known = plan.curriculum.get(DIGEST) if isinstance(plan.curriculum, dict) else None
        if known is not None and known != self._traces.sha256:
            raise BadInputError(
                f"stage {self._keys.name} began with traces of digest {known}, and {self._uri} now has {self._traces.sha256}: "
                "put the old file back, or start a job of another name"
            )
        try:
            for record in plan.replay:
                loop.replay(self._examples(record.groups))
            loop.begin()
            while loop.step < self._steps:
                positions = range(loop.step * self._examples_per_step, len(self._order))[: self._examples_per_step]
                loop.take(self._examples(positions), positions, {DIGEST: self._traces.sha256})
        except StopRequestedError:
            loop.save(final=False)
            raise
        loop.finish()
        return loop.step

    def _examples(self, positions: Sequence[int]) -> list[Example]:
        return [self._traces.examples[self._order[position]] for position in positions]


class SftStage:
    """Runs one stage from where the store says it stands to its end; see `RlvrStage`."""

    def __init__(self, run: Run, index: int, stage: Stage, checkpoint: LoadedCheckpoint | None, steps_before: int) -> None:
        assert stage.sft is not None
        spec, traces = stage.sft, read_traces(run.context, stage.sft, run.runner.chat)
        run.provenance.add(
            Dataset(
                uri=spec.traces,
                sha256=traces.sha256,
                examples=len(traces.examples),
                made_by="given",
                contamination=run.contamination.get(spec.traces),
            )
        )
        self._learning = TraceLearning(run, StageKeys(index, stage.name), spec, traces, spec.traces, checkpoint, steps_before)

    def execute(self) -> int:
        """See `TraceLearning.execute`."""
        return self._learning.execute()


def example_order(examples: int, epochs: int, seed: str) -> list[int]:
    """Numbers of the examples in the order of training: each epoch has all of them once, shuffled anew."""
    order: list[int] = []
    for epoch in range(epochs):
        numbers = list(range(examples))
        random.Random(f"{seed}/{epoch}").shuffle(numbers)  # noqa: S311 - an order, not a secret
        order += numbers
    return order
