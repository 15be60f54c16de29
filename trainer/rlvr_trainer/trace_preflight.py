"""What the learner asks of traces before anything is trained: can they be read and rendered, and what of the held-out tasks is in them?

traces of all stages -> check_traces -> files
verifier service -> held_out_tasks -> prompts;   files + prompts + traces named by `against` -> find_contamination
"""

from collections.abc import Mapping, Sequence

from rlvr_api.provenance import Contamination as ContaminationSpec
from rlvr_api.spec import Evaluation, RLVRJobSpec
from rlvr_api.stages import Evaluate
from rlvr_api.wire import EnvironmentInfo, Task, TaskRequest
from rlvr_trainer.chat import ChatFormat
from rlvr_trainer.collector.verifiers import VerifierClient
from rlvr_trainer.contamination import Reference
from rlvr_trainer.context import RunContext
from rlvr_trainer.evaluation import plan_evaluation
from rlvr_trainer.provenance import scan
from rlvr_trainer.storage.lineage import Contamination
from rlvr_trainer.traces import TraceFile, make_examples, read_trace_file


def check_traces(context: RunContext, chat: ChatFormat) -> Mapping[str, TraceFile]:
    """Read the traces of all stages, so that a fault in the last one does not end a run after days.

    Returns:
        Files by URI.

    Raises:
        BadInputError: one is not there, has faults, or leaves no example.
    """
    files: dict[str, TraceFile] = {}
    for stage in context.job.spec.stages:
        if stage.sft is not None:
            files[stage.sft.traces] = file = read_trace_file(context, stage.sft.traces)
            make_examples(file, stage.sft, chat, context.job.spec.model.max_model_len)
    return files


async def held_out_tasks(verifiers: VerifierClient, spec: RLVRJobSpec, known: Sequence[EnvironmentInfo]) -> tuple[Task, ...]:
    """Every task that an evaluation of the job asks for."""
    plans: list[Evaluation | Evaluate] = [spec.evaluation, *(stage.evaluate for stage in spec.stages if stage.evaluate is not None)]
    requests = {
        TaskRequest(environment=task.environment, split="heldOut", seed=task.task_seed, level=task.level): None
        for plan in plans
        for task in plan_evaluation(plan, spec.environments, known).tasks
    }
    return await verifiers.sample_all(tuple(requests))


def find_references(context: RunContext, held_out: Sequence[Task]) -> tuple[Reference, ...]:
    """The prompts of held-out tasks, and the traces that must not be learned from; none when no stage learns from traces.

    Raises:
        BadInputError: a file of such traces cannot be read.
    """
    if not any(stage.uses_external_traces for stage in context.job.spec.stages):
        return ()
    references = [
        Reference(f"a held-out task of {task.environment}, level {task.level}, problem {task.problem_id}", task.messages[-1].content)
        for task in held_out
    ]
    for uri in context.job.spec.provenance.contamination.against:
        references += [
            Reference(f"{name} of {uri}", "\n".join(message.content for message in messages))
            for name, messages in read_trace_file(context, uri).conversations()
        ]
    return tuple(references)


def find_contamination(
    spec: ContaminationSpec, files: Mapping[str, TraceFile], references: Sequence[Reference]
) -> dict[str, Contamination]:
    """Look for the references in the traces of all stages.

    Returns:
        What was found, by URI.

    Raises:
        BadInputError: something was found, and the job is to fail then.
    """
    return {uri: scan(file.conversations(), references, spec, f"traces {uri}") for uri, file in files.items()}
