"""Verdicts against a careful reader's: `answers.jsonl` has references with answers that are right and wrong, by kind.

A line marked `later` was written once the code was done, to see how it does on pairs that it was not made with.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from stages.tasks.answers import check_reference, judge
from tests.conftest import ROOT

TABLE = [json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
DISAGREE = {
    ("(-\\infty,2)\\cup(3,\\infty)", "x<2\\text{ or }x>3"),
    ("\\{(1,2)\\}", "(1,2)"),
    ("e^{i\\pi}", "-1"),
    ("1 < x < 2", "2>x>1"),
    ("kT", "kt"),
    ("\\sqrt{-1}", "i"),
    ("a=b", "b=a"),
    ("7", "7\\text{ (seven)}"),
    ("x=2,y=3", "(2,3)"),
    ("1.414", "\\sqrt2\\approx1.414"),
}
"""Where the reader says otherwise still; docs/tasks.md counts them."""


def pairs(row: dict[str, Any]) -> list[tuple[str, bool]]:
    return [(answer, True) for answer in row["right"]] + [(answer, False) for answer in row["wrong"]]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row['kind']}-{row['reference']}")
def test_verdicts_are_those_of_a_careful_reader(row: dict[str, Any]) -> None:
    for answer, right in pairs(row):
        verdict = judge(row["reference"], f"So the answer is $\\boxed{{{answer}}}$.")
        assert verdict.correct is (right is not ((row["reference"], answer) in DISAGREE)), answer


def test_the_page_counts_what_the_table_holds() -> None:
    page = " ".join((ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").split())
    counted = {
        False: "of the {:,} pairs it was made with, {:,} get",
        True: "Of {:,} more, written afterwards, 906 agreed at first sight, where math-verify by itself agreed on 758; {:,} do now",
    }
    for later, words in counted.items():
        rows = [row for row in TABLE if row.get("later", False) is later]
        found = [(row["reference"], answer) for row in rows for answer, _ in pairs(row)]
        assert words.format(len(found), len(found) - len(DISAGREE & set(found))) in page


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("So it is \\boxed {7}", True), ("First \\boxed{5}, corrected: \\boxed {7}", True),
        ("First \\boxed {7}, corrected: \\boxed{5}", False),
        ("\\boxed\n{7}", True), ("\\boxed 7", True), ("$\\boxed7$", True), ("\\fbox{7}", True), ("\\boxed{\\boxed{7}}", True),
        ("\\boxed{5} \\fbox{7}", True), ("\\boxed{7} \\boxed", True), ("\\boxed{7} and \\boxed {5", False), ("\\boxed {}", False),
    ],
)  # fmt: skip
def test_the_last_box_counts_however_it_is_spaced(response: str, right: bool) -> None:
    assert judge("7", response).correct is right


@pytest.mark.parametrize(
    ("reference", "response", "right"),
    [
        ("Evelyn", "So the answer is Evelyn.", True), ("Evelyn", "The answer: Bob", False), ("2:30", "#### 2:30", True),
        ("C", "The answer is (C).", True), ("C", "The answer is C: the third one", True), ("C", "Answer: B", False),
        ("Evelyn", "Evelyn thinks so.", False), ("Nan", "The answer is Nan.", True),
    ],
)  # fmt: skip
def test_words_are_found_without_a_box_where_the_answer_is_stated(reference: str, response: str, right: bool) -> None:
    assert judge(reference, response).correct is right


@pytest.mark.parametrize("relation", [r"\ge", r"\leqslant", "≥", r"\gt", r"\in", r"\subset", r"\nmid", r"\neg"])
def test_a_relation_is_no_number(relation: str) -> None:
    assert not judge("5", rf"\boxed{{{relation} 5}}").correct
    assert judge(f"{relation} 5", rf"\boxed{{{relation} 5}}").correct


@pytest.mark.parametrize("reference", ["$$", "", " ", "\\boxed{}", "\\text{ }", ".", "NaN", "nan"])
def test_a_reference_without_anything_to_compare_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match=f"the reference answer {re.escape(repr(reference))} holds nothing"):
        check_reference(reference)
    with pytest.raises(ValueError, match="holds nothing"):
        judge(reference, "\\boxed{}")


@pytest.mark.parametrize(
    "reference",
    ["3:00", "x\\neq 3", "\\frac{1}{0}", "0^0", "\\infty - \\infty", "\\tan 90^\\circ", "\\frac{0}{0}", "1/0", "\\log 0", "\\left(",
        "^2",
     "\\frac{1}", "a & b", "\\begin{cases} 1", "x" * 2000, "?", "\u2603", "日本"],
    ids=lambda text: ascii(text[:20]),
)  # fmt: skip
def test_every_reference_can_be_compared_and_equals_itself_only(reference: str) -> None:
    """What math-verify cannot read, or raises at, is text; a verifier that raises ends a stage once it does for 1% of responses."""
    assert judge(reference, f"\\boxed{{{reference}}}").correct
    assert not judge(reference, "\\boxed{7}").correct
    assert not judge(reference, "\\boxed{\\frac{1}{0}0}").correct


def test_answers_that_cannot_be_compared_are_wrong_and_no_failure() -> None:
    for answer in ("\\frac{1}{0}", "x\\neq 3", "3:00", "\\tan 90^\\circ", "0^{-1}"):
        assert not judge("7", f"\\boxed{{{answer}}}").correct
