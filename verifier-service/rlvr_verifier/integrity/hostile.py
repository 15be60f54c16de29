"""Texts that try to hang a verifier, to exhaust it, or to change it for the completions after them."""

HANGING = {
    "nested parentheses": "(" * 3_000 + "1" + ")" * 3_000,
    "boxed nested parentheses": "\\boxed{" + "(" * 200 + "1" + ")" * 200 + "}",
    "open inline maths": "\\(" * 20_000,
    "open boxes": "\\boxed{" * 5_000,
    "a tower of powers": "\\boxed{9^{9^{9^9}}}",
    "a power in Python": "9**9**9**9",
    "a large factorial": "\\boxed{(10^9)!}",
    "a large binomial": "\\boxed{\\binom{1000000000}{500000000}}",
    "a long sum": "\\boxed{\\sum_{i=1}^{10^9} i^{i}}",
    "a hard integral": "\\boxed{\\int_0^1 e^{\\sin(x^{\\cos x})} dx}",
    "digits": "7" * 60_000,
    "digits and spaces": "1 " * 30_000,
    "signs": "-" * 60_000,
    "operators": "1+" * 30_000,
    "repeated letters": "a" * 60_000 + "!",
    "letters for (a+)+$": "a" * 30 + "b",
    "spaces": " " * 60_000 + "x",
    "newlines": "\n" * 60_000,
    "braces": "{" * 30_000,
    "brackets of JSON": "[" * 60_000,
    "control characters": "".join(map(chr, range(32))) * 1_000,
    "combining marks": "a" + "\u0301" * 30_000,
    "right-to-left marks": "\u202e" * 20_000 + "7",
    "almost a fence": "~" * 60_000 + "`",
    "almost a fence of spaces": "~~~" + " " * 60_000 + "`",
    "almost a fence with a language": "```" + "a" * 60_000 + "`",
    "thinking without an end": "<think>" * 8_000,
}
"""By name; each is below the size that a service reads at all, for larger texts are refused unread."""

PERSISTENT = (
    "__import__('builtins').setattr(__import__('math'), 'isclose', lambda *a, **k: True)",
    "[setattr(c, 'score_answer', lambda *a, **k: 1.0) for c in object.__subclasses__()]",
    "().__class__.__base__.__subclasses__()",
    "\\boxed{__import__('os').environ.update(SCORE='1')}",
    '<answer>exec("import reasoning_gym; reasoning_gym.score_answer = lambda *a, **k: 1.0")</answer>',
    "globals().update(int=lambda *a: 7)",
)
"""Each would make later answers pass in a scorer that evaluates it."""
