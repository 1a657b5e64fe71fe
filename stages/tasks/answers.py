"""Is the answer of a response equal to the reference? Found by rule, read and compared by math-verify (sympy).

The last `\\boxed{...}` counts; without one, what math-verify finds at the end of the text. Sympy evaluates whatever it reads, however
long that takes, so this belongs in a worker with limits (`stages.tasks.verifier`). The bounds below spare the worker the texts that
models do produce: endless repetition and runaway brackets are no answer, at once.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

from stages.tasks.protocol import Verdict

_BOX = "\\boxed{"
_MAX_ANSWER_CHARACTERS = 500
_MAX_NESTING = 30
_NO_ANSWER = Verdict(correct=False, answer=None)

# It warns at every call that its own time limit is off; that one needs SIGALRM and the main thread, ours kills the process.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def judge(reference: str, response: str) -> Verdict:
    """Raises `ValueError` if the reference cannot be read, and what the comparison raises: both count as failures of the verifier."""
    expected = _read_reference(reference)
    text = _answer_text(response)
    if text is None:
        return _NO_ANSWER
    try:
        found = _read(text)
    except MemoryError:
        raise
    except Exception:  # sympy's and antlr's many ways to say: this is no mathematics
        return _NO_ANSWER
    if not found:
        return _NO_ANSWER
    return Verdict(correct=verify(expected, found, timeout_seconds=None, raise_on_error=True), answer=_canonical(found))


@lru_cache(maxsize=4096)
def _read_reference(reference: str) -> list[Any]:
    text = reference.strip()
    if _BOX not in text:
        text = f"{_BOX}{text.strip('$')}}}"
    expected = _read(text)
    if not expected:
        raise ValueError(f"the reference answer {reference!r} is no mathematics that math-verify can read")
    return expected


def _read(text: str) -> list[Any]:
    return parse(text, parsing_timeout=None, raise_on_error=True)


def _answer_text(response: str) -> str | None:
    """The part of a response to look at, or None if what it offers as an answer is cut short, too long or nested too deeply."""
    start = response.rfind(_BOX)
    if start < 0:
        text = response[-_MAX_ANSWER_CHARACTERS:]
    else:
        end = _closing_brace(response, start + len(_BOX))
        if end is None:
            return None
        text = response[start : end + 1]
    return text if _nesting(text) <= _MAX_NESTING else None


def _closing_brace(text: str, start: int) -> int | None:
    """Where the group that is open at `start` closes, if near enough; `\\{` and `\\}` are set brackets."""
    depth, at = 1, start
    while at < min(len(text), start + _MAX_ANSWER_CHARACTERS):
        if text[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
        at += 1
    return None


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(0, depth - 1)
    return deepest


def _canonical(found: list[Any]) -> str:
    """One text for answers written differently, so that they vote together; an integer too long to print votes as it was written."""
    try:
        return str(found[0])
    except ValueError:
        return str(found[-1])
