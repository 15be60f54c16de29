"""A package that registers Gymnasium environments, as somebody else would write it."""

from pathlib import Path

SOURCE = '''
import random

import gymnasium
from gymnasium.spaces import Box, Text


class NumberHunt(gymnasium.Env):
    """A number from 1 to 15; guesses are answered with higher or lower."""

    version = "hunt-2"
    observation_space = Text(64)
    action_space = Text(8, charset="0123456789-abcdefgh;")

    def __init__(self, drifts=False, render_mode=None):
        self.drifts = drifts

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number = int(self.np_random.integers(1, 16))
        return "guess from 1 to 15", {}

    def step(self, action):
        if action == "a":
            raise RuntimeError(f"the number is {self.number}")
        guess = int(action) if action.isdigit() else 0
        word = "higher" if guess < self.number else "lower"
        told = f"{word} {random.random()}" if self.drifts else word
        return told, float(guess == self.number), guess == self.number, False, {}

    def solve(self):
        return [str(self.number)]


class Code(gymnasium.Env):
    """A code of eight digits, to be guessed at once; whoever says something else is told off in words that hold it."""

    observation_space = Text(64)
    action_space = Text(8, charset="0123456789")

    def __init__(self, render_mode=None):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.code = str(self.np_random.integers(10_000_000, 100_000_000))
        return "guess the code", {}

    def step(self, action):
        if len(action) != 8:
            raise ValueError(f"{action} is shorter than {self.code}")
        return "no", float(action == self.code), True, False, {}


class Picture(NumberHunt):
    observation_space = Box(0, 1)


gymnasium.registry.pop("NumberHunt-v0", None)
gymnasium.register("NumberHunt-v0", entry_point=NumberHunt)
gymnasium.registry.pop("Code-v0", None)
gymnasium.register("Code-v0", entry_point=Code)
gymnasium.registry.pop("Picture-v0", None)
gymnasium.register("Picture-v0", entry_point=Picture)
'''


def write_package(folder: Path, module: str = "hunting") -> Path:
    """Write the package; returns the folder that `sys.path` needs."""
    site = folder / "site"
    site.mkdir()
    (site / f"{module}.py").write_text(SOURCE)
    return site
