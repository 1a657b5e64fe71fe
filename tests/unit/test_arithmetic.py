"""Arithmetic: its chains, its worked steps, its splits, and a verifier that nothing can confuse."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.tasks import ArithmeticTask
from pipeline.errors import PriorlabError
from stages.tasks import Problem, Verdict, build_task
from stages.tasks.protocol import split_of

TASK = build_task(ArithmeticTask(operations=(2, 3, 4)))
PROBLEM = Problem("3+8*2-5", "3+8*2-5:", {"value": 14})


@pytest.mark.parametrize("response", ["14", "3+16-5=19-5=14", "19-5=14", "11*2=14"])
def test_the_last_number_decides(response: str) -> None:
    assert TASK.verify(PROBLEM, response) == Verdict(correct=True, answer="14")


@pytest.mark.parametrize(
    "response",
    [
        "", " ", "=", "14=", "=14", "3+16-5=19-5=", "014", "+14", "-14", "14.0", "14 ", "14\n", " 14", "1 4", "15", "3+16-5=19-5=15",
        "3+8*2-5", "19-5", "14=15", "x=14", "3+16-5==14", "１４", "1۴", "¹⁴", "14\x00", "__import__('os')=14", "9" * 1_000_000,
        "1+" * 500_000,
        "1=" * 500_000 + "14", "1+1=" * 2000 + "14", "(" * 100_000, "9**9**9=14 ",
    ],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_anything_else_scores_zero_without_being_computed(response: str) -> None:
    started = time.process_time()
    assert not TASK.verify(PROBLEM, response).correct
    assert time.process_time() - started < 0.05  # microseconds; to compute one of these takes minutes or for ever


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=80), st.text(alphabet=TASK.alphabet, max_size=300)))
def test_no_text_makes_the_verifier_raise(response: str) -> None:
    assert isinstance(TASK.verify(PROBLEM, response), Verdict)


def test_every_step_of_every_document_is_right_and_drops_one_operation() -> None:
    for document in TASK.documents("corpus", 500, seed=1):
        chain, response = document.prompt.removesuffix(":"), document.response
        steps = [chain, *response.split("=")]
        operations = [len(re.findall(r"[-+*]", step)) for step in steps]
        assert operations == list(range(operations[0], -1, -1)), document
        assert 2 <= operations[0] <= 4
        assert len({eval(step) for step in steps}) == 1, document
        assert all(0 <= int(number) <= 99 for number in re.findall(r"\d+", "".join(document)))
        assert TASK.verify(Problem("", "", {"value": eval(chain)}), response).correct
        assert set("".join(document)) <= set(TASK.alphabet)


def test_a_step_takes_the_leftmost_product_then_the_leftmost_sum() -> None:
    from stages.tasks.arithmetic import _render, _steps

    steps = [_render(step) for step in _steps([3, 8, 2, 5], ["+", "*", "-"])]
    assert steps == ["3+8*2-5", "3+16-5", "19-5", "14"]


def test_difficulty_follows_the_config() -> None:
    hard = build_task(ArithmeticTask(operations=(8,), largest_number=50, largest_value=9999, operators=("+", "-")))
    prompts = [problem.prompt for problem in hard.problems("rl", 50, seed=0)]
    assert {len(re.findall(r"[-+]", prompt)) for prompt in prompts} == {8}
    assert not any("*" in prompt for prompt in prompts)
    assert max(int(number) for prompt in prompts for number in re.findall(r"\d+", prompt)) > 40


def test_splits_never_share_a_problem() -> None:
    ids = {split: {p.id for p in TASK.problems(split, 100, seed=0)} for split in ("rl", "evaluate")}
    ids |= {
        split: {document.prompt.removesuffix(":") for document in TASK.documents(split, 2000, seed=0)}
        for split in ("corpus", "heldout")
    }
    for split, members in ids.items():
        assert {split_of(member) for member in members} == {split}
    assert sum(map(len, ids.values())) == len(set().union(*ids.values()))


def test_a_seed_repeats_and_another_differs() -> None:
    assert TASK.problems("rl", 20, seed=0) == TASK.problems("rl", 20, seed=0)
    assert TASK.problems("rl", 20, seed=0) != TASK.problems("rl", 20, seed=1)


def test_asking_for_more_problems_than_exist_says_how_many_there_are() -> None:
    tiny = build_task(ArithmeticTask(operations=(1,), largest_number=3))
    with pytest.raises(PriorlabError, match=r"only about \d+ distinct problems.*widen task.operations"):
        tiny.problems("evaluate", 500, seed=0)


def test_a_range_that_no_chain_keeps_is_named() -> None:
    impossible = build_task(ArithmeticTask(operations=(12,), largest_number=999_999, largest_value=1, operators=("*",)))
    with pytest.raises(PriorlabError, match=r"left 0\.\.1; raise task.largest_value"):
        impossible.problems("rl", 1, seed=0)
