import json
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from rlvr_api.stages import Sft
from rlvr_api.wire import Message
from rlvr_trainer.chat import ChatFormat
from rlvr_trainer.context import BadInputError
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.stages.sft import example_order
from rlvr_trainer.traces import TraceFile, read_traces


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("traces") / "tiny"
    write_tiny_model(place)
    return place


@pytest.fixture(scope="module")
def chat(folder):
    return ChatFormat(folder, None, 56)


@pytest.fixture
def read(tmp_path, chat):
    """Reads a file of these lines."""

    def read(*lines, max_model_len=64, **stage):
        file = tmp_path / "traces.jsonl"
        file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        spec = SimpleNamespace(model=SimpleNamespace(max_model_len=max_model_len), storage=SimpleNamespace(region="us-east-1"))
        context = SimpleNamespace(job=SimpleNamespace(spec=spec), s3_endpoint=None)
        return read_traces(context, Sft(traces=f"file://{file}", **stage), chat)

    return read


def text_of(chat, ids):
    return chat._tokenizer.decode(list(ids))


def test_a_prompt_is_what_an_engine_is_given_and_a_completion_what_it_would_say(read, chat):
    only = read({"prompt": "3+4=", "completion": "7", "source": "ignored"}).examples[0]
    assert only.prompt_ids == chat.render([Message(role="user", content="3+4=")])
    assert text_of(chat, only.prompt_ids) == "<u>3+4=<e><a>"
    assert text_of(chat, only.completion_ids) == "7<e>"


def test_each_turn_of_the_assistant_is_an_example_after_all_that_came_before(read, chat):
    roles = [("system", "be"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]
    found = read("", {"messages": [{"role": role, "content": content} for role, content in roles]}, "").examples
    assert [(text_of(chat, one.prompt_ids), text_of(chat, one.completion_ids)) for one in found] == [
        ("<s>be<e><u>1<e><a>", "2<e>"),
        ("<s>be<e><u>1<e><a>2<e><u>3<e><a>", "4<e>"),
    ]
    assert {one.name for one in found} == {"line 2"}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "line 1: "),
        ("[1]", "line 1: "),
        ({"prompt": "a"}, "line 1: .*either messages, or prompt and completion"),
        ({"prompt": "a", "completion": ""}, "line 1: completion"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "nothing to learn"),
        ({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}, "nothing to learn"),
        ({"messages": [{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}]}, "line 1: messages.0.role"),
        ({"prompt": "a", "completion": "b<e>c"}, "line 1: the assistant's words are not ended by one of <e>, or hold one"),
        ({"prompt": "a" * 80, "completion": "b"}, "1 of 1 examples have more tokens than model.maxModelLen 64, the longest 85"),
        ("", "has no line"),
    ],
)
def test_faults_of_the_file_are_said_with_their_line(read, line, fault):
    with pytest.raises(BadInputError, match=fault):
        read(line)


def test_all_faulty_lines_are_named_up_to_a_bound(read):
    with pytest.raises(BadInputError, match=r"line 1: .*; line 10: .*; and 3 more$"):
        read(*["{"] * 13)


def test_long_examples_are_left_out_or_refused_and_never_cut(read):
    lines = {"prompt": "a" * 80, "completion": "b"}, {"prompt": "a", "completion": "b"}
    found = read(*lines)
    assert (len(found.examples), found.too_long) == (1, 1)
    with pytest.raises(BadInputError, match="1 of 2 examples"):
        read(*lines, too_long="refuse")


def test_a_file_that_is_not_there_is_said(chat):
    spec = SimpleNamespace(model=SimpleNamespace(max_model_len=64), storage=SimpleNamespace(region="us-east-1"))
    context = SimpleNamespace(job=SimpleNamespace(spec=spec), s3_endpoint=None)
    with pytest.raises(BadInputError, match="cannot be read: No such file"):
        read_traces(context, Sft(traces="file:///nowhere/t.jsonl"), chat)


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}", "other tokens than it samples"),
        ("{% for m in messages %}<a>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}", "are not ended by"),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_refused(folder, template, fault):
    chat = ChatFormat(folder, template, 56)
    with pytest.raises(ValueError, match=fault):
        chat.answer([Message(role="user", content="a"), Message(role="assistant", content="b")])


def test_what_follows_the_end_token_in_a_template_is_left_out(folder):
    template = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}<e> \n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    chat = ChatFormat(folder, template, 56)
    _, completion = chat.answer([Message(role="user", content="a"), Message(role="assistant", content="b")])
    assert text_of(chat, completion) == "b<e>"


def test_each_epoch_has_every_example_once_in_an_order_of_its_own():
    order = example_order(50, 3, "0/cold-start")
    epochs = [order[start : start + 50] for start in (0, 50, 100)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order == example_order(50, 3, "0/cold-start") != example_order(50, 3, "1/cold-start")


@pytest.fixture
def read_table(tmp_path, chat):
    """Reads a Parquet file of these columns."""

    def read_table(**columns):
        file = tmp_path / "traces.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
        spec = SimpleNamespace(model=SimpleNamespace(max_model_len=64), storage=SimpleNamespace(region="us-east-1"))
        context = SimpleNamespace(job=SimpleNamespace(spec=spec), s3_endpoint=None)
        return read_traces(context, Sft(traces=f"file://{file}"), chat)

    return read_table


def test_parquet_says_the_same_as_lines(read, read_table):
    messages = [{"role": "user", "content": "3+4="}, {"role": "assistant", "content": "7"}]
    lines = read({"messages": messages}, {"prompt": "1+1=", "completion": "2"})
    mixed = read_table(
        messages=[messages, None], prompt=[None, "1+1="], completion=[None, "2"], source=["somebody", "else"], score=[0.5, None]
    )
    pairs = read_table(prompt=["1+1="], completion=["2"])
    assert [(one.prompt_ids, one.completion_ids) for one in mixed.examples] == [
        (one.prompt_ids, one.completion_ids) for one in lines.examples
    ]
    assert [one.name for one in mixed.examples] == ["row 1", "row 2"]
    assert pairs.examples[0].completion_ids == lines.examples[1].completion_ids


def test_faults_of_parquet_are_named_by_row(read_table):
    with pytest.raises(BadInputError, match=r"row 2: .*either messages, or prompt and completion"):
        read_table(prompt=["1", "1"], completion=["2", None])
    with pytest.raises(BadInputError, match="begin as a Parquet file, and are none"):
        tuple(TraceFile("file:///t.parquet", b"PAR1 and then something else").conversations())
