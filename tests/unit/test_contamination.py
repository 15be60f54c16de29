"""What counts as training on the test, and what does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_trainer.contamination import ContaminationIndex, MatchKind, Reference, words

SUMS = [Reference(f"sum {a}", f"What is {a} + {a + 7}? Reply with only the number.") for a in range(30)]
STORY = (
    "A farmer has seventeen sheep and buys twice as many goats as he has sheep. How many animals does the farmer own in the end? "
    "Put your final answer in a box."
)
OTHER = (
    "A train leaves at noon and travels ninety miles in two hours. What is its mean speed in miles an hour? Put your final answer in a box."
)


def index(*texts, n=13, similarity=0.8):
    return ContaminationIndex([*SUMS, *(Reference(text[:8], text) for text in texts)], n, similarity)


def find(built, prompt, completion=""):
    return built.find(prompt, f"{prompt} {completion}")


def test_a_held_out_prompt_is_found_whatever_its_case_and_spaces():
    match = find(index(), "WHAT  is 3 + 10? reply with only the number.")
    assert (match.kind, match.reference.name) == (MatchKind.NGRAM, "sum 3")


def test_another_problem_in_the_same_words_is_not():
    assert find(index(), "What is 3 + 11? Reply with only the number.") is None
    assert find(index(STORY, OTHER), "How old is the captain? Put your final answer in a box.") is None


def test_thirteen_words_of_a_prompt_within_a_completion_are_found():
    match = find(index(STORY, OTHER), "Tell me a story", f"Once upon a time: {STORY[:80]} ...")
    assert match.kind is MatchKind.NGRAM
    assert match.reference.text == STORY
    assert find(index(STORY, OTHER), "Tell me a story", f"Once upon a time: {STORY[:45]} ...") is None


def test_words_that_held_out_prompts_share_are_no_evidence():
    shared = "Read the following problem with care, think step by step, and reply with only one number at the very end: "
    built = ContaminationIndex([Reference(str(n), f"{shared} problem {n}") for n in range(5)], 13, 0.8)
    assert find(built, f"{shared} quite another") is None
    assert find(built, f"{shared} problem 3").reference.name == "3"


def test_a_problem_that_was_reworded_here_and_there_is_a_near_duplicate():
    changed = STORY.replace("seventeen", "seventeen white").replace("box", "frame")
    match = find(index(STORY, OTHER, n=40), changed)
    assert (match.kind, match.reference.text) == (MatchKind.NEAR_DUPLICATE, STORY)
    assert find(index(STORY, OTHER, n=40, similarity=1.0), changed) is None


def test_a_tiny_prompt_counts_only_as_a_whole():
    built = ContaminationIndex([Reference("tiny", "go on")], 13, 0.8)
    assert find(built, "Please go on with it") is None
    assert find(built, "Go on").reference.name == "tiny"


def test_no_reference_finds_nothing():
    assert find(ContaminationIndex([], 13, 0.8), "") is None


@given(st.lists(st.text("abc +?", min_size=1, max_size=60), min_size=1, max_size=8), st.text("xyz ", max_size=30))
def test_every_reference_is_found_by_itself_and_text_of_other_words_by_none(texts, other):
    built = ContaminationIndex([Reference(text, text) for text in texts], 5, 0.8)
    for text in texts:
        assert built.find(text, text) is not None
    if words(other) not in map(words, texts):
        assert built.find(other, other) is None


@pytest.mark.parametrize(("text", "found"), [("3+4=", ("3", "+", "4", "=")), ("Straße ﬁn", ("strasse", "fin")), ("", ())])
def test_words(text, found):
    assert words(text) == found
