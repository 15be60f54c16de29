"""Prompts become token ids once, and completions become text once; nothing is ever tokenized again.

The end tokens are the union of the model's generation config, the tokenizer and the token that ends a turn in the chat template:
a chat model often stops with another token than its configuration names.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlvr_api.wire import Message

_MARKER = "7"
"""Words of which no template makes something else."""


class PromptTooLongError(ValueError):
    """A prompt that leaves no room for a completion."""


class ChatFormat:
    """Renders prompts and decodes completions with the model's tokenizer.

    Args:
        folder: Hugging Face folder of the model.
        template: Jinja chat template; None takes the tokenizer's.
        max_prompt_tokens: longest prompt, in tokens.

    Raises:
        ValueError: there is no chat template at all.
    """

    def __init__(self, folder: Path, template: str | None, max_prompt_tokens: int) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._max_prompt_tokens = max_prompt_tokens
        if template is not None:
            self._tokenizer.chat_template = template
        if self._tokenizer.chat_template is None:
            raise ValueError(f"the tokenizer of {folder} has no chat template: set spec.model.chatTemplate")
        self.end_token_ids = self._find_end_tokens(folder)

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of the prompt, the assistant's opening included.

        Raises:
            PromptTooLongError: it has more than `max_prompt_tokens` tokens.
        """
        chat = [{"role": message.role, "content": message.content} for message in messages]
        ids = tuple(self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
        if len(ids) > self._max_prompt_tokens:
            raise PromptTooLongError(
                f"a prompt has {len(ids)} tokens, and model.maxModelLen less sampling.maxTokens leaves {self._max_prompt_tokens}: "
                f"raise maxModelLen or lower maxTokens (the prompt begins {messages[-1].content[:60]!r})"
            )
        return ids

    def answer(self, messages: Sequence[Message]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids of a conversation that ends with the assistant's words: the prompt as `render` gives it, and what a model that says
        these words would generate after it, the end token included. What the template puts after the end token is left out.

        Raises:
            ValueError: the template does not go on from its own prompt, or the words hold an end token or are not ended by one.
        """
        chat = [{"role": message.role, "content": message.content} for message in messages]
        prompt = self._tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=False)
        whole = self._tokenizer.apply_chat_template(chat, tokenize=False)
        if not whole.startswith(prompt):
            raise ValueError(
                f"the chat template does not write the assistant's words after its own generation prompt ({prompt[-40:]!r}), so it "
                "would learn other tokens than it samples: set spec.model.chatTemplate to one that does"
            )
        ids: list[int] = self._tokenizer.encode(whole[len(prompt) :], add_special_tokens=False)
        end = next((place for place, token in enumerate(ids) if token in self.end_token_ids), None)
        if end is None or self.decode(ids[end + 1 :]).strip():
            names = ", ".join(self._tokenizer.convert_ids_to_tokens(list(self.end_token_ids)))
            raise ValueError(
                f"the assistant's words are not ended by one of {names}, or hold one: take it out of them, or set spec.model.chatTemplate "
                "to one that ends the turn"
            )
        rendered = self._tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, return_dict=False)
        return tuple(rendered), tuple(ids[: end + 1])

    def continuation(self, observation: str, last_token_id: int) -> tuple[int, ...]:
        """Token ids between the assistant's turn and its next one: the observation as a message of the user.

        They are the difference that the message makes to a rendered chat, so what was sampled before is never tokenized again. The token
        that ends the assistant's turn is among them only where the model has not sampled it.

        Args:
            last_token_id: of the turn.

        Raises:
            ValueError: the template writes what was said before otherwise once there is more.
        """
        chat = [{"role": "user", "content": _MARKER}, {"role": "assistant", "content": _MARKER}]
        before = self._tokenizer.apply_chat_template(chat, tokenize=False)
        place = before.rindex(_MARKER) + len(_MARKER)
        chat.append({"role": "user", "content": observation})
        whole = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        if whole[:place] != before[:place]:
            raise ValueError("the chat template rewrites earlier turns, so turns cannot be added: set spec.model.chatTemplate to another")
        ids: list[int] = self._tokenizer.encode(whole[place:], add_special_tokens=False)
        ended = last_token_id in self.end_token_ids and bool(ids) and ids[0] in self.end_token_ids
        return tuple(ids[1:] if ended else ids)

    def fits(self, tokens: int) -> bool:
        """Whether so many tokens leave room for a turn of `sampling.maxTokens`."""
        return tokens <= self._max_prompt_tokens

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion without special tokens; bytes that are not UTF-8 are U+FFFD."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _find_end_tokens(self, folder: Path) -> tuple[int, ...]:
        found: set[int] = set()
        config = folder / "generation_config.json"
        if config.is_file():
            value = json.loads(config.read_text()).get("eos_token_id")
            found.update(value if isinstance(value, list) else [] if value is None else [value])
        if self._tokenizer.eos_token_id is not None:
            found.add(self._tokenizer.eos_token_id)
        found.update(self._turn_end())
        if not found:
            raise ValueError(f"neither the generation config nor the tokenizer of {folder} names an end token: add eos_token_id to one")
        return tuple(sorted(found))

    def _turn_end(self) -> set[int]:
        """The first special token after the assistant's words, as the template writes them."""
        chat = [{"role": "user", "content": _MARKER}, {"role": "assistant", "content": _MARKER}]
        rendered = self._tokenizer.apply_chat_template(chat, tokenize=False)
        after = rendered[rendered.rindex(_MARKER) + len(_MARKER) :]
        ids = self._tokenizer.encode(after, add_special_tokens=False)
        return set(ids[:1]) & set(self._tokenizer.all_special_ids)
