"""A teacher that is a plain vLLM server: what it says of tokens is what the model says, and chat answers are understood."""

import asyncio

import httpx
import pytest
import torch
from torch.nn.functional import log_softmax
from vllm_server import serving_model

from rlvr_api.stages import Teacher
from rlvr_api.wire import Message
from rlvr_trainer.chat import ChatFormat
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.teacher import TeacherClient, UnusableAnswerError

TOLERANCE = 1e-4

pytestmark = pytest.mark.timeout(400)  # for a busy machine


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    write_tiny_model(folder / "tiny", 1)
    arguments = ("--dtype", "float32", "--max-model-len", "64", "--block-size", "32", "--no-enable-chunked-prefill")
    with serving_model(folder / "tiny", folder / "log", "sage", *arguments) as endpoint:
        yield folder / "tiny", Teacher(endpoint=endpoint, model="sage", max_tokens=4, temperature=0.0)


def ask(settings, call):
    async def run():
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            return await call(TeacherClient(settings, None, http, 60.0))

    return asyncio.run(run())


def test_log_probs_are_those_of_the_model(server):
    from transformers import AutoModelForCausalLM

    folder, settings = server
    prompt, completion = (4, 9, 12, 3), (20, 31, 7, 1)
    found = ask(settings, lambda client: client.logprobs(prompt, completion))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        scores = log_softmax(model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0], -1)
    wanted = [float(scores[len(prompt) - 1 + place, token]) for place, token in enumerate(completion)]
    assert found == pytest.approx(wanted, abs=TOLERANCE)


def test_a_chat_answer_has_an_end_and_a_count(server):
    folder, settings = server
    messages = (Message(role="user", content="3 + 4="),)
    answer = ask(settings, lambda client: client.ask(settings, messages, 7))
    prompt = ChatFormat(folder, None, 60).render(messages)
    assert (answer.complete, answer.tokens) == (False, len(prompt) + 4), "a random model goes on to the limit"


def test_more_than_it_can_hold_is_unusable(server):
    _, settings = server
    with pytest.raises(UnusableAnswerError, match="status 400"):
        ask(settings, lambda client: client.logprobs((4,) * 60, (9,) * 20))
