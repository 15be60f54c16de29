"""A taskset of the library `verifiers`, as somebody else would write it."""

import sys
from pathlib import Path

LIBRARY = Path(sys.prefix) / "tasksets"
"""Where the library is installed: it asks for older clients of language models than vLLM's."""
SOURCE = '''
import itertools

import verifiers.v1 as vf


class WordConfig(vf.TasksetConfig):
    words: tuple[str, ...] = tuple("stone river cloud lemon tiger violin window garden pepper rocket saddle timber".split())
    endless: bool = False


class WordData(vf.TaskData):
    word: str


class Reverse(vf.Task[WordData]):
    """Pays one for the word written backwards, and one hundredth for each of its letters, up to five."""

    @vf.reward
    async def backwards(self, task, trace) -> float:
        if trace.last_reply == "crash":
            raise RuntimeError(f"the word is {task.word[::-1]}")
        return float(trace.last_reply == task.word[::-1])

    @vf.reward(weight=0.01)
    async def letters(self, task, trace) -> dict[str, float]:
        return {"letters": float(min(5, sum(letter in trace.last_reply for letter in set(task.word))))}

    @vf.metric
    async def turns(self, trace, runtime=None) -> float:
        assert [message.role for message in trace.messages] == ["system", "user", "assistant"]
        return float(trace.num_turns)

    def solution(self):
        return self.data.word[::-1]


class Words(vf.Taskset[Reverse, WordConfig]):
    def load(self):
        words = itertools.cycle(self.config.words) if self.config.endless else self.config.words
        for number, word in enumerate(words):
            shown = f"{word} {number}" if self.config.endless else word
            prompt = [{"role": "user", "content": f"Write backwards: {shown}"}] if word else None
            yield Reverse(WordData(prompt=prompt, system_prompt="Be brief.", word=word), self.config.task)


__all__ = ["Words"]
'''
NEEDY = """
import verifiers.v1 as vf

from backwards import Reverse, WordConfig, WordData


class Boxed(Reverse):
    NEEDS_CONTAINER = True

    async def setup(self, trace, runtime):
        await runtime.run(["true"])

    @vf.reward
    async def built(self, runtime) -> float:
        return 1.0


class Boxes(vf.Taskset[Boxed, WordConfig]):
    def load(self):
        return [Boxed(WordData(prompt="Build it.", word="it"), self.config.task)]


__all__ = ["Boxes"]
"""


def write_package(folder: Path) -> Path:
    """Write the packages `backwards` and `boxes`; returns the folder that `sys.path` needs."""
    site = folder / "site"
    site.mkdir()
    (site / "backwards.py").write_text(SOURCE)
    (site / "boxes.py").write_text(NEEDY)
    return site
