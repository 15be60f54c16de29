"""Text of models and tasks, made safe to show: what a terminal or browser would obey becomes something to see.

A completion may hold escape sequences that repaint a terminal, and direction marks that reorder what is read. Escaping HTML is left to
the template.
"""

import unicodedata


def visible(text: str) -> str:
    """`text` with control and format characters as their code points, for example ⟨U+001B⟩; line feed and tab stay."""
    return "".join(map(_visible_character, text))


def shortened(text: str, limit_characters: int) -> str:
    """`text`, or its first and last parts and how much is between them."""
    if len(text) <= limit_characters:
        return text
    tail = limit_characters // 4
    head = limit_characters - tail
    return f"{text[:head]}\n… {len(text) - limit_characters:,} characters left out …\n{text[-tail:]}"


def counted(count: int, thing: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _visible_character(character: str) -> str:
    if character in "\n\t" or character.isprintable():
        return character
    # Format characters reorder or hide text, and lone surrogates cannot be encoded at all; spaces of all kinds are harmless.
    return character if unicodedata.category(character) == "Zs" else f"⟨U+{ord(character):04X}⟩"
