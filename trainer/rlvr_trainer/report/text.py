"""Text of models and tasks, made safe to show: what a terminal or browser would obey becomes something to see.

A completion may hold escape sequences that repaint a terminal, and direction marks that reorder what is read. Escaping HTML is left to
the template.
"""

import unicodedata

CONTROL_PICTURES = 0x2400
"""U+2400 ␀ is the picture of U+0000, and so on up to U+2420."""


def visible(text: str) -> str:
    """`text` with control characters as pictures (␛) and format characters as their code points; line feed and tab stay."""
    return "".join(map(_visible_character, text))


def shortened(text: str, limit_characters: int) -> str:
    """`text`, or its first and last parts and how much is between them."""
    if len(text) <= limit_characters:
        return text
    tail = limit_characters // 4
    head = limit_characters - tail
    return f"{text[:head]}\n… {len(text) - limit_characters:,} characters left out …\n{text[-tail:]}"


def _visible_character(character: str) -> str:
    if character in "\n\t" or character.isprintable():
        return character
    code = ord(character)
    if code < 0x20:
        return chr(CONTROL_PICTURES + code)
    if code == 0x7F:
        return "␡"
    # Format characters reorder or hide text, and lone surrogates cannot be encoded at all; spaces of all kinds are harmless.
    return character if unicodedata.category(character) == "Zs" else f"⟨U+{code:04X}⟩"
