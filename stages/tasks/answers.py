"""Does a response's answer equal the reference? Found by rule, read and compared by math-verify (sympy), with `notation` around it.

The last `\\boxed{...}` counts; without one, what math-verify finds at the end of the text. Sympy evaluates whatever it reads, however
long that takes, so this belongs in a worker with limits (`stages.tasks.verifier`). The bounds below reject at once what models do
produce: endless repetition and runaway brackets.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Eq, Expr, FiniteSet, Float, Integer, Interval, MatrixBase, Mul, Rational, Symbol, Tuple, UnevaluatedExpr

from stages.tasks.notation import as_text, choice_of, drops, fraction_of, plain, split_unit, text_of
from stages.tasks.protocol import Verdict

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\S)")
_STATED = re.compile(r"(?:answer(?: is)?|####)\s*:?\s*(\S[^\n]*)", re.IGNORECASE)
_BRACKETS = re.compile(r"([(\[])[^()\[\]]*([)\]])")
_MAX_ANSWER_CHARACTERS = 500
_MAX_NESTING = 30
_ANYWHERE = [LatexExtractionConfig(), ExprExtractionConfig()]
# Its list of units has t, h, c and s, which it also takes off `2 s t`.
_NO_UNITS = [
    LatexExtractionConfig(normalization_config=replace(LatexExtractionConfig().normalization_config, units=False)),
    ExprExtractionConfig(),
]
_NO_ANSWER = Verdict(correct=False, answer=None)
# Relative differences: at most this between a decimal and its own digits, and more than this between numbers that differ. In between
# math-verify decides, by six decimal places.
_SAME, _OTHER = 1e-14, 1e-4
_ZERO = 1e-100
_PERCENT = UnevaluatedExpr(Rational(1, 100))

# It warns on every call that its own time limit is off; its limit needs SIGALRM and the main thread, ours kills the process.
logging.getLogger("math_verify").setLevel(logging.ERROR)


@dataclass(frozen=True)
class _Reference:
    """Compared as `text` if it has one, else by `value`; as a `choice`, if it is one, before either."""

    notation: str
    choice: str | None
    text: str | None
    value: list[Any]
    unit: str


def judge(reference: str, response: str) -> Verdict:
    """Whether they are equal, by the rules of docs/tasks.md. Raises `ValueError` if there is nothing in the reference to compare."""
    expected = _read_reference(reference)
    start, boxed = _last_box(response, max(_MAX_ANSWER_CHARACTERS, 2 * len(reference)))
    if start is not None and (boxed is None or _nesting(boxed) > _MAX_NESTING):
        return _NO_ANSWER
    end = response[-_MAX_ANSWER_CHARACTERS:]
    if boxed is None and (expected.text is None and expected.choice is None):
        return _NO_ANSWER if _nesting(end) > _MAX_NESTING else _judge_value(expected, end)
    stated = [boxed] if boxed is not None else _STATED.findall(end)
    answer = plain(stated[-1]) if stated else ""
    if expected.choice is not None and (choice := choice_of(answer)) is not None:
        return Verdict(correct=choice == expected.choice, answer=choice)
    if expected.text is not None:
        return _judge_text(expected, answer)
    return _judge_notation(expected, answer)


def check_reference(reference: str) -> None:
    """Raises `ValueError` if there is nothing in a reference to compare."""
    if _inside(reference) in ("", "nan", "NaN"):
        raise ValueError(f"the reference answer {reference!r} holds nothing, or is not a number (NaN)")


@lru_cache(maxsize=4096)
def _read_reference(reference: str) -> _Reference:
    check_reference(reference)
    notation = _inside(reference)
    value, unit = split_unit(notation)
    found: list[Any] = []
    text = None if text_of(value) is None else as_text(notation)
    if text is None:
        found = _read(_boxed(value))
        if not found or isinstance(found[0], str) or not _equal(found, found):
            text = as_text(notation)
    return _Reference(notation, choice_of(notation), text, found, unit)


def _inside(reference: str) -> str:
    """A reference may be boxed too."""
    _, boxed = _last_box(reference, len(reference))
    return plain(reference if boxed is None else boxed)


def _judge_text(expected: _Reference, answer: str) -> Verdict:
    text = as_text(answer)
    as_fraction = fraction_of(expected.notation)
    if text and text != expected.text and as_fraction != expected.notation and text_of(answer) is None:
        return _judge_value(_read_reference(as_fraction), _boxed(answer))
    without_base = re.sub(r"_\d+$", "", expected.text or "")
    return Verdict(correct=text in (expected.text, without_base), answer=text or None)


def _judge_notation(expected: _Reference, answer: str) -> Verdict:
    if re.search(r"frac|/", expected.notation):
        answer = fraction_of(answer)
    answer = re.sub(r"(?<=\d)_\s*\{?\s*10\s*\}?$", "", answer)
    value, unit = split_unit(answer, one_letter=_number(expected.value[0], {}) is not None)
    side = value if "=" in expected.notation else _answering_side(value)
    brackets = {"".join(found.groups()) for text in (expected.notation, value) if (found := _BRACKETS.fullmatch(text))}
    if (unit and expected.unit and unit != expected.unit) or drops(side) or len(brackets) > 1 or _contradicts_itself(value):
        return Verdict(correct=False, answer=as_text(answer) or None)
    return _judge_value(expected, _boxed(side))


def _answering_side(equation: str) -> str:
    """The last, unless it is the variable: 7 of `x = 7`, of `7 = x` and of `3+4 = 7`. Several equations stay as they are."""
    first, equals, last = equation.rpartition("=")
    if not equals or re.search(r",|;|\b(?:and|or)\b", equation):
        return equation
    return first if re.fullmatch(r"\s*[A-Za-z]\s*", last) and "=" not in first else last


def _contradicts_itself(chain: str) -> bool:
    """Whether there are unequal numbers between equals signs, as in `8 = 7`."""
    parts = re.split(r"(?<![<>!:\\])=", chain)
    read = [_read(_boxed(part)) for part in parts] if len(parts) > 1 else []
    numbers = [value for one in read if one and (value := _number(one[0], {})) is not None]
    return any(abs(first - second) > _OTHER * max(abs(first), abs(second)) for first, second in pairwise(numbers))


def _judge_value(expected: _Reference, text: str) -> Verdict:
    found = _read(text)
    if not found:
        return _NO_ANSWER
    gold, answer = expected.value[0], found[0]
    correct = not _differ(gold, answer) if _equal(expected.value, found) else _same_decimal(gold, answer)
    return Verdict(correct=correct or (not expected.unit and _same_but_for_percent(gold, answer)), answer=_canonical(found))


def _same_but_for_percent(gold: Any, answer: Any) -> bool:
    """`4.5` and `4.5\\%`, one of which has the sign; math-verify sees it for whole numbers. One below 1 may be a probability."""
    if _is_percentage(answer) and _distance(gold, Integer(0))[1] < 1:
        return False
    bare = [Mul(*(factor for factor in one.args if factor != _PERCENT)) if _is_percentage(one) else one for one in (gold, answer)]
    return _is_percentage(gold) != _is_percentage(answer) and _equal(bare[:1], bare[1:]) and not _differ(*bare)


def _is_percentage(one: Any) -> bool:
    return isinstance(one, Mul) and _PERCENT in one.args


def _equal(gold: list[Any], answer: list[Any]) -> bool:
    """By math-verify alone. What it cannot compare is not equal."""
    try:
        return bool(verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True))
    except MemoryError:
        raise
    except Exception:  # sympy's many ways to say: not comparable with such
        return False


def _differ(gold: Any, answer: Any) -> bool:
    """Whether numbers that math-verify takes for equal, by places after the point, differ by their size; sets and points too."""
    gold, answer = _solved(gold), _solved(answer)
    if isinstance(gold, FiniteSet) and isinstance(answer, Interval):
        return True
    if isinstance(gold, Interval) and isinstance(answer, Interval):
        return _differ(gold.start, answer.start) or _differ(gold.end, answer.end)
    several = [list(one.args) if isinstance(one, (FiniteSet, Tuple)) else one.flat() for one in (gold, answer) if _has_parts(one)]
    if len(several) == 2:
        if isinstance(gold, FiniteSet):
            several = [sorted(parts, key=_order) for parts in several]
        return len(several[0]) == len(several[1]) and any(map(_differ, *several))
    distance, size = _distance(gold, answer)
    return bool(distance > _OTHER * size) or _differ_exactly(gold, answer)


def _differ_exactly(gold: Any, answer: Any) -> bool:
    """Whether both are fractions of whole numbers, and not the same: `1` and `1 - 10^-30`."""
    if gold == answer or not all(isinstance(one, Expr) and not one.has(Float, UnevaluatedExpr) for one in (gold, answer)):
        return False
    gold, answer = gold.doit(), answer.doit()
    return bool(gold.is_Rational and answer.is_Rational and gold != answer)


def _has_parts(one: Any) -> bool:
    return isinstance(one, (FiniteSet, Tuple, MatrixBase))


def _solved(one: Any) -> Any:
    """7 of `x = 7`."""
    return one.rhs if isinstance(one, Eq) and isinstance(one.lhs, Symbol) else one


def _order(part: Any) -> tuple[float, float]:
    """Where a member of a set stands: by real and imaginary part, to ten digits, beyond which equal numbers may differ."""
    number = _number(_solved(part), {})
    value = 0j if number is None else complex(number)
    return float(f"{value.real:.10g}"), float(f"{value.imag:.10g}")


def _same_decimal(gold: Any, answer: Any) -> bool:
    """`6.02 * 10^23` and `602 * 10^21`: the same digits, of which a float keeps fewer."""
    both = [one for one in (gold, answer) if isinstance(one, Expr) and not one.free_symbols]
    if len(both) < 2 or not any(one.has(Float) for one in both):
        return False
    distance, size = _distance(gold, answer)
    return bool(size > 0 and distance <= _SAME * size)


def _distance(gold: Any, answer: Any) -> tuple[float, float]:
    """How far apart two expressions are, and the larger's size, at one point if they have variables; zeros if unknown."""
    if not isinstance(gold, Expr) or not isinstance(answer, Expr) or gold.has(UnevaluatedExpr) or answer.has(UnevaluatedExpr):
        return 0.0, 0.0  # the last two: percentages, which may stand for the number before the sign
    names = sorted({symbol.name for symbol in gold.free_symbols | answer.free_symbols})
    at = {name: Rational(138 + 37 * number, 100) for number, name in enumerate(names)}
    first, second = _number(gold, at), _number(answer, at)
    if first is None or second is None:
        return 0.0, 0.0
    return abs(first - second), max(abs(first), abs(second))


def _number(expression: Any, at: dict[str, Rational]) -> Any:
    """The value where variables have these values; None if it has none. What cannot be told from 0 is 0."""
    try:
        value = expression.doit().xreplace({symbol: at[symbol.name] for symbol in expression.free_symbols}).evalf(30)
        if not value.is_number or not value.is_finite:
            return None
        return value if abs(value) > _ZERO else Integer(0)
    except Exception:  # no expression, a function without a definition, a variable without a value
        return None


def _read(text: str) -> list[Any]:
    """Empty if it is not mathematics."""
    try:
        return parse(text, _NO_UNITS if "\\boxed" in text else _ANYWHERE, parsing_timeout=None, raise_on_error=True)
    except MemoryError:
        raise
    except Exception:  # sympy's and antlr's many ways to say so
        return []


def _boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def _last_box(text: str, limit: int) -> tuple[int | None, str | None]:
    """Where the last box stands, and what is in it, if it is closed within `limit` characters."""
    boxes = list(_BOX.finditer(text)) if "\\boxed" in text or "\\fbox" in text else []
    if not boxes:
        return None, None
    start = boxes[-1].end()
    if text[start] != "{":
        return boxes[-1].start(), re.split(r"[\s$]", text[start : start + limit], maxsplit=1)[0]
    end = _closing_brace(text, start + 1, limit)
    return boxes[-1].start(), None if end is None else text[start + 1 : end]


def _closing_brace(text: str, start: int, limit: int) -> int | None:
    """Where the group open at `start` closes, if near enough; `\\{` and `\\}` are set brackets."""
    depth, at = 1, start
    while at < min(len(text), start + limit):
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
    """One text for equal answers written differently, so that they vote together; an integer too long to print votes as written."""
    try:
        return str(found[0])
    except ValueError:
        return str(found[-1])
