"""How the answer to each task of reasoning-gym 0.1.25 is judged, and which tasks are left out and why.

A task is judged in one of three ways:

- The library's scorer, where it checks right answers of any kind, and pays fully for nothing else. Where it looks for parts of an
  answer, all of the answer must match a `gate` first.
- `form`: the answer is the library's own, in a normal form. For one right answer, and a scorer that evaluates text, or pays for padding.
- `own`: a scorer of this package, for several right answers, or numbers, and a scorer of the library like that.

No text of a model is ever evaluated: of the nine scorers of the library that do so none is called.
"""

import json
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from rlvr_verifier.environments import puzzle_forms as forms
from rlvr_verifier.environments import reasoning_gym_scorers as scorers
from rlvr_verifier.environments.reasoning_gym_scorers import Entry, Scorer


@dataclass(frozen=True, slots=True)
class Rule:
    """How a task is judged and made."""

    form: Callable[[str], Hashable] | None = None
    own: Scorer | None = None
    gate: re.Pattern[str] | None = None
    reference: Callable[[Entry], str] = lambda entry: str(entry["answer"])
    """A right answer."""
    last_level: int | None = None
    """Below the curriculum's last: above it tasks are incomplete, cannot be made in time, or have answers that are too long."""
    slow: bool = False
    """Making a task takes milliseconds: fewer are held out, so that a service is soon up."""
    kept: bool = False
    """The library reads its data for each set of tasks: one set is kept for each level, and its n-th task is that of seed n."""


LIBRARY = Rule()
TEXT, FOLDED, COMPACT = Rule(form=forms.text), Rule(form=forms.folded), Rule(form=forms.compact)
INTEGER, NUMBER, TOKENS, GRID = (Rule(form=form) for form in (forms.integer, forms.number, forms.tokens, forms.grid))
_PRESSES = re.compile(r"[A-C](?: ?(?:→|->|,)? ?[A-C])*")
_DIGITS_OF_LETTERS = re.compile(r"[A-Z] ?= ?[0-9](?: ?, ?[A-Z] ?= ?[0-9])*")
_POUR = r'"(?:fill [A-Z]|empty [A-Z]|pour [A-Z]->[A-Z])"'
_POURS = re.compile(rf"\[ ?{_POUR}(?: ?, ?{_POUR})* ?\]")
_DISK = "Move disk [0-9]{1,2} from Peg [0-9]{1,2} to Peg [0-9]{1,2}"
_TURN = "[2-9]?[UDLRFB]w?'?[23]?"
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        (
            "base_conversion", "basic_arithmetic", "caesar_cipher", "calendar_arithmetic", "chain_sum", "count_bits",
            "count_primes", "decimal_chain_sum", "dice", "family_relationships", "gcd", "largest_island", "lcm", "leg_counting",
            "letter_counting", "needle_haystack", "number_filtering", "products", "sentence_reordering", "shortest_path",
            "simple_equations", "word_sequence_reversal", "path_star",
        ),
        LIBRARY,
    ),
    **dict.fromkeys(("ab", "emoji_mystery", "string_insertion", "string_manipulation", "time_intervals"), TEXT),
    **dict.fromkeys(
        ("acre", "color_cube_rotation", "course_schedule", "letter_jumble", "mahjong_puzzle", "spell_backward", "syllogism", "tsumego"),
        FOLDED,
    ),
    **dict.fromkeys(
        ("aiw", "binary_alternation", "circuit_logic", "maze", "rectangle_count", "rotten_oranges", "self_reference"), INTEGER,
    ),
    **dict.fromkeys(("gsm_symbolic", "number_format", "simple_geometry"), NUMBER),
    **dict.fromkeys(("arc_1d", "string_splitting", "string_synthesis", "word_sorting"), TOKENS),
    **dict.fromkeys(("manipulate_matrix", "mini_sudoku"), GRID),
    "advanced_geometry": Rule(own=scorers.measures, slow=True),
    "arc_agi": Rule(form=forms.grid, kept=True),
    "binary_matrix": Rule(form=forms.grid, last_level=2),
    "bitwise_arithmetic": Rule(form=forms.hexadecimal),
    "coin_flip": Rule(own=scorers.is_probability),
    "complex_arithmetic": Rule(gate=re.compile("[-+0-9.ij() ]+")),
    "countdown": Rule(own=scorers.makes_target, last_level=1, slow=True),
    "cryptarithm": Rule(gate=_DIGITS_OF_LETTERS),
    "decimal_arithmetic": Rule(own=scorers.rounds_decimal),
    "figlet_font": Rule(form=forms.folded, kept=True),
    "fraction_simplification": Rule(form=forms.fraction),
    "futoshiki": Rule(form=forms.grid_of_digits, last_level=1, slow=True),
    "game_of_life": Rule(form=forms.compact, last_level=1, slow=True),
    "game_of_life_halting": Rule(form=forms.folded, last_level=1),
    "graph_color": Rule(own=scorers.colors_graph, reference=lambda entry: json.dumps(entry["metadata"]["possible_answer"])),
    "group_anagrams": Rule(form=forms.groups, kept=True),
    "intermediate_integration": Rule(own=scorers.integrates, slow=True),
    "jugs": Rule(gate=_POURS, last_level=0, slow=True),
    "kakurasu": Rule(own=scorers.fills_kakurasu, slow=True),
    "knights_knaves": Rule(form=forms.roles),
    "modulo_grid": COMPACT,
    "n_queens": Rule(own=scorers.places_queens, last_level=2, slow=True),
    "number_sorting": Rule(form=forms.numbers),
    "palindrome_generation": Rule(gate=re.compile("[A-Za-z]+")),
    "palindrome_partitioning": Rule(form=forms.set_of_lists),
    "polynomial_equations": Rule(own=scorers.solves_equation, slow=True, reference=lambda entry: str(entry["answer"]) or '""'),
    "pool_matrix": Rule(own=scorers.pools),
    "power_function": Rule(own=scorers.rounds_power),
    "prime_factorization": Rule(form=forms.factors),
    "puzzle24": Rule(own=scorers.makes_target, slow=True),
    "quantum_lock": Rule(gate=_PRESSES),
    "rearc": Rule(form=forms.grid, slow=True),
    "rotate_matrix": Rule(form=forms.grid, last_level=2),
    "rubiks_cube": Rule(
        gate=re.compile(rf"{_TURN}(?: {_TURN})*"),
        reference=lambda entry: str(entry["metadata"]["example_correct_answer"]),
        last_level=0,
        slow=True,
    ),
    "simple_integration": Rule(own=scorers.integrates, slow=True),
    "spiral_matrix": Rule(form=forms.tokens, last_level=2),
    "sudoku": Rule(form=forms.grid, slow=True),
    "survo": Rule(own=scorers.fills_survo),
    "tower_of_hanoi": Rule(gate=re.compile(rf"{_DISK}(?:\n{_DISK})*"), last_level=2),
    "word_ladder": Rule(gate=re.compile("[A-Za-z]+(?: ?, ?[A-Za-z]+)+"), last_level=0, slow=True),
    "zebra_puzzles": Rule(form=forms.folded, last_level=1, slow=True),
}  # fmt: skip
"""By name of the task."""
SAFE_TASKS = frozenset(RULES)
LEFT_OUT: Mapping[str, str] = {
    "bf": "making a task writes to the standard output of the service, and takes seconds",
    "boxnet": "the library has no answer to it, so nothing shows that a right one is paid",
    "codeio": "it runs the programs of its data file in the service, and pays one of many right inputs",
    "composite": "it is a mixture of tasks; name several environments instead",
    "isomorphic_strings": "its tasks depend on the hash seed",
    "knight_swap": "the library refuses the first level of its own curriculum",
    "list_functions": "its tasks depend on the hash seed",
    "number_sequence": "making a task may not end",
    "polynomial_multiplication": "its tasks depend on the hash seed",
    "propositional_logic": "its scorer pays for a premise that is repeated",
    "ransom_note": "its tasks depend on the hash seed",
    "rush_hour": "the library has no answer to it, so nothing shows that a right one is paid",
    "sokoban": "making a task takes seconds",
}
"""Tasks of the library that are not offered: name -> reason."""
WITHOUT_CURRICULUM = frozenset({"acre", "gsm_symbolic"})
"""They have one level."""
