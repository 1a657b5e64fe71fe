"""What math-verify misses in answers: typography that it does not know, notation that it drops, and words that it multiplies.

`plain` rewrites an answer as math-verify reads it right. `text_of` finds what is not mathematics and is compared as text instead:
words, times, ratios, sequences with dots, numbers of another base, congruences. `split_unit` takes off the unit, which may be left out
but must not differ. docs/tasks.md says what counts as equal; tests/unit/answers.jsonl is the table of cases.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal

# ruff: noqa: RUF001 (signs that look like others are what this is about)
_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "√": r"\sqrt ", "π": r"\pi ",
        "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\neq ", "°": r"^\circ ", "∅": r"\emptyset ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "²": "^{2}", "³": "^{3}", "…": r"\ldots ", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    }
)  # fmt: skip
_FONT = r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf|tt|normal)|mbox|emph|operatorname|boldsymbol|bm|underline|fbox|boxed)"
_SIZE = (
    r"\\(?:displaystyle|textstyle|tiny|small|normalsize|[lL]arge|LARGE|[hH]uge|bf(?:series)?|rm|it|[bB]ig+[lr]?|left|right)(?![A-Za-z])"
)
_REWRITTEN: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\*\*|`|\\(?:checkmark|blacksquare|square|qed)(?![A-Za-z])|\\\\\s*$|(?<!\\)\$", ""),
    (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
    (r"(?<=\d),\\!\s*(?=\d{3}(?!\d))", ","),  # MATH's thousands
    (r"(?<!\\)\\(?:[,;:!> ]|q?quad(?![A-Za-z])|thinspace|hspace\{[^{}]*\})|~", " "),
    (_SIZE, " "),
    (r"(?<![A-Za-z])\{([,:])\}", r"\1"),
    (r"\^\s*\{?\s*\\prime\s*\}?", "'"),
    (r"\\colon(?![A-Za-z])", ":"),
    (r"\\(?:l|c|v)?dots[bcimo]?(?![A-Za-z])|\.\.\.", r"\\ldots "),
    (r"\\(?:nice|s|c|t|d)frac", r"\\frac"),
    (r"\\varnothing|\\\{\s*\\\}", r"\\emptyset "),
    (r"\\(le|ge)q?(?:slant)?(?![A-Za-z])", r"\\\1 "),
    (r"\\ne(?![A-Za-z])|\\not\s*=|(?<![\d)}!\s])\s*!=", r"\\neq "),  # but `5!=120` is a factorial
    (r"<=|=<(?![^<>]*>)", r"\\le "),  # but `v=<1,2>` is a vector
    (r">=", r"\\ge "),
    (r"\{?(\w+)\s*\\choose\s*(\w+)\}?", r"\\binom{\1}{\2}"),
    (r"\\log_\s*\{?\s*e\s*\}?", r"\\ln "),
    (r"\\[dt]?binom\s*(\{[^{}]*\}|\w)\s*(\{[^{}]*\}|\w)", lambda m: rf"\binom{{{m[1].strip('{}')}}}{{{m[2].strip('{}')}}}"),
    (r"\\sqrt\s*(\[[^\]]*\])\s*(\w)", r"\\sqrt\1{\2}"),
    (r"\\[pb]?mod\s*\{?(\d+)\}?", r"\\pmod{\1}"),
    (r"(?<![\\A-Za-z])infinity(?![A-Za-z])", r"\\infty "),
    (r"(?<![\\A-Za-z])(ln|log|sin|cos|tan|gcd|pi)(?![A-Za-z])", r"\\\1"),
    (r"(?<![\w.\\])(\d+\.?\d*)[eE]([+-]?\d{1,3})(?!\w)", lambda m: _decimal(m[1], int(m[2]))),
    (r"(?<![\d.,])(\d{1,3}(?: \d{3})+)(?![\d,])", lambda m: m[1].replace(" ", "")),
    (r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?", lambda m: _fraction(m[1], m[2], m[3])),
    (r"(?<![\d.])(\d*)\.()\((\d+)\)", lambda m: _fraction(m[1], m[2], m[3])),
    (r"(?<![\d.])(\d*)\.(\d{0,9}?)(\d{1,9}?)\3{2,}\\ldots ", lambda m: _fraction(m[1], m[2], m[3])),
    (r"^\s*(-?\d+)\s+(\d+)/(\d+)\s*$", r"\1\\frac{\2}{\3}"),
]
_REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in _REWRITTEN]
_SEVERAL_CHOICES = re.compile(r"\(?[A-Z]\)(?:\s*(?:[,;&\s]|\band\b|\bor\b)+\s*\(?[A-Z]\))+")
# After a letter: no content of a choice, such as `P(A)` or "both (A) and (B)", but another letter, which an "and" connects.
_FURTHER_CHOICE = re.compile(r"(?:[^()]*(?:[,;&]|\b(?:and|or)\b))?\s*\(\s*[A-Z]\s*\)")
_GROUP = re.compile(rf"{_FONT}\s*\{{([^{{}}]*)\}}")

# Notation that math-verify reads as something else, or passes over.
_DROPPED = re.compile(
    r"\d\s*:\s*\d|\d[A-F]*[)}]?_|'|!!|\\frac\s*\{d\w\}\s*\{d\w\}"
    r"|\\(?:ldots|pmod|equiv|neq|angle|triangle|overline|(?:wide)?hat|vec|bar)(?![A-Za-z])"
    r"|^\s*(?:\\(?:[gl]e(?:q|qslant)?|[gl]t|(?:not)?in|su[bp]set(?:eq)?|n?mid|l?not|neg)(?![A-Za-z])|[≥≤≠∈∉⊂⊆¬])"  # of what?
)
_RUN = re.compile(r"(?<![\\A-Za-z])(?<!begin\{)(?<!end\{)(?<!array\}\{)[A-Za-z]{2,}")
_VARIABLE = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])")
_CONNECTING = {"and", "or", "in"}
_QUALIFYING = {"and", "or", "more", "less", "fewer", "not", "if"}
_NO_PRODUCTS = {"no", "on", "up"}
_BASES = dict(zip(["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], map(str, range(2, 11)), strict=True))

_UNITS = {
    spelled: unit
    for unit, names in {
        "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "m": "m meter metre", "km": "km kilometer kilometre",
        "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile", "g": "g gram", "kg": "kg kilogram",
        "mg": "mg milligram", "lb": "lb pound", "oz": "oz ounce", "s": "s sec second", "min": "min minute", "h": "h hr hour",
        "day": "day", "week": "week", "month": "month", "year": "yr year",
        "l": "l L liter litre", "ml": "ml milliliter millilitre", "mi/h": "mph",
        "km/h": "kph kmh", "dollar": "dollar", "cent": "cent", "euro": "euro", "newton": "N newton",
        "joule": "J joule", "watt": "W watt", "volt": "V volt", "degree": "degree",
    }.items()
    for name in names.split()
    for spelled in (name, f"{name}s")
}  # fmt: skip
_MONEY = {"$": "dollar", "€": "euro", "£": "pound sterling"}
_SUFFIX = re.compile(
    r"(?P<value>.*(?:[\d)}]|\\pi(?=\s)))(?P<gap>\s*)"
    r"(?P<unit>[A-Za-z][A-Za-z .]*(?:/\s*[A-Za-z]+)?)(?:\s*\^\s*\{?(?P<power>[23])\}?)?\s*"
)


def plain(answer: str) -> str:
    """An answer, or a reference, in the notation that math-verify reads; "" if nothing but decoration is in it."""
    text = "".join(map(_vulgar, answer)).translate(_SIGNS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    while (group := _GROUP.search(text)) is not None:  # words stand apart; e and i are the numbers, whatever their font
        inside = group[1] if re.fullmatch(r"[ei]|[^A-Za-z]*", group[1]) else f" {group[1]} "
        text = text[: group.start()] + inside + text[group.end() :]
    text = re.sub(r"(?<=\d)i(?![A-Za-z])", " i", text)  # else math-verify may take it for a variable
    text = re.sub(r"^\s*(?:the )?(?:final )?answer(?: is)?\b\s*", "", text, flags=re.IGNORECASE)
    text = re.sub(r"\s+", " ", text).rstrip(" .,;:\\").lstrip(" ,;:")
    if _SEVERAL_CHOICES.fullmatch(text):
        return ", ".join(re.findall("[A-Z]", text))
    unwrapped = re.fullmatch(r"\{([^{}]*)\}", text)
    return text if unwrapped is None else unwrapped[1].strip()


def _vulgar(character: str) -> str:
    above, slash, below = unicodedata.normalize("NFKC", character).partition("\u2044") if character > "\x7f" else (character, "", "")
    return rf"\frac{{{above}}}{{{below}}}" if slash else character


def _decimal(digits: str, exponent: int) -> str:
    """A large number is written out, since as a product with a float it would be known to sixteen digits only."""
    return f"{Decimal(digits).scaleb(exponent):f}" if exponent > 0 else rf"{digits}\times 10^{{{exponent}}}"


def _fraction(whole: str, fixed: str, repeated: str) -> str:
    """Of a repeating decimal."""
    ones = int("9" * len(repeated) + "0" * len(fixed))
    return rf"\frac{{{int(f'{whole}{fixed}{repeated}') - int(f'0{whole}{fixed}')}}}{{{ones}}}"


def text_of(answer: str) -> str | None:
    """The canonical text of a plain answer that is not mathematics to math-verify; None if it is."""
    runs = _RUN.findall(answer)
    phrase = re.fullmatch(r"[A-Za-z\s,;.&()-]*", answer) is not None and any(map(_is_word, runs))
    long_word = any(re.fullmatch("[A-Z]?[a-z]{3,}", run) and _is_word(run) for run in runs)
    return as_text(answer) if phrase or long_word or drops(answer) else None


def drops(answer: str) -> bool:
    """Whether a plain answer has notation that math-verify would pass over."""
    return _DROPPED.search(answer) is not None


def as_text(answer: str) -> str:
    """Case, spaces, quotes, braces around one sign, and the order of what commas or "and" connect do not count."""
    text = re.sub(r"_\s*\{?\s*\(?([A-Za-z]+)\)?\s*\}?", lambda m: f"_{_BASES.get(m[1].lower(), m[1])}", answer)
    text = re.sub(r"(?<=[ap])\.\s*m\.?", "m", text.casefold())
    text = re.sub(r"\{(\w+|\(\d+\))\}", r"\1", text).replace('"', "")
    text = re.sub(r"\((\w+)\)_", r"\1_", re.sub(r"_\((\d+)\)", r"_\1", text))
    if r"\ldots" not in text and not re.search(r"[(\[{]", text):
        return ",".join(sorted(re.sub(r"\s", "", part) for part in re.split(r"[,;]|\band\b", text) if part.strip()))
    return re.sub(r"\s", "", text)


def _is_word(run: str) -> bool:
    """Whether letters in a row are a word, and no product of variables: `xyz`, `ab` and `mnk` are products, `CAB` and `listen` not."""
    if run in _CONNECTING:
        return False
    if run.lower() in _NO_PRODUCTS or run.isupper() or (run.istitle() and len(run) > 2):
        return True
    in_a_row = max(map(ord, run)) - min(map(ord, run)) == len(run) - 1 == len(set(run)) - 1
    return len(run) > 2 and not in_a_row and run.islower() and bool(set(run) & set("aeiouy"))


def split_unit(answer: str, *, one_letter: bool | None = None) -> tuple[str, str]:
    """A plain answer without its unit, and the unit if it is a measure: units of different measures make different answers.

    A letter after a number is a unit or a variable, as `one_letter` says; if it is None, a unit where there is a space between. After
    variables it is always one of them.
    """
    money = re.fullmatch(r"(-?)\s*\\?([$€£])\s*(.*)", answer)
    if money is not None:
        return money[1] + money[3], _MONEY[money[2]]
    degrees = re.fullmatch(r"([-\d.,\s]+)\^\s*\{?\s*\\circ\s*\}?", answer)
    if degrees is not None:
        return degrees[1].strip(), "degree"
    found = _SUFFIX.fullmatch(answer)
    if found is None:
        return answer, ""
    name = found["unit"].strip(" .")
    is_unit = bool(found["gap"]) if one_letter is None else one_letter
    if len(name) == 1 and (_VARIABLE.search(found["value"]) or not is_unit):
        return answer, ""
    power, name = found["power"] or "", name if len(name) == 1 else name.casefold()
    for word, raised in (("square ", "2"), ("sq ", "2"), ("cubic ", "3")):
        if name.startswith(word):
            power, name = raised, name.removeprefix(word)
    measures = [_UNITS.get(part.strip()) for part in name.replace(" per ", "/").split("/")]
    if None not in measures:
        return found["value"], "/".join(map(str, measures)) + power
    words = name.split()
    counted = bool(found["gap"]) and any(map(_is_word, words)) and all(len(word) > 1 for word in words) and not _QUALIFYING & set(words)
    return (found["value"], "") if counted else (answer, "")


def choice_of(answer: str) -> str | None:
    """The letter of a multiple choice, with or without what it stands for."""
    answer = re.sub(r"^(?:option|choice)\s+", "", answer, flags=re.IGNORECASE)
    found = re.match(r"\(\s*([A-Z])\s*\)|([A-Z])(?=\s*[.:)]|$)|([a-z])$", answer)
    if found is None or _FURTHER_CHOICE.match(answer[found.end() :]):
        return None
    return (found[1] or found[2] or found[3]).upper()


def fraction_of(answer: str) -> str:
    """A ratio as the fraction it is; not what may be a time."""
    ratio = re.fullmatch(r"(\d+)\s*:\s*(\d+)", answer)
    return answer if ratio is None or len(ratio[2]) == 2 else rf"\frac{{{ratio[1]}}}{{{ratio[2]}}}"
