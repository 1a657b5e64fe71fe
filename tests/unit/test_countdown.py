"""Countdown: its problems, its splits, and a verifier that nothing can confuse."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.tasks import CountdownTask
from pipeline.errors import PriorlabError
from stages.tasks import Problem, Verdict, build_task
from stages.tasks.expression import MAX_CHARACTERS, Node, NotAnExpressionError, canonical, combine, parse, render
from stages.tasks.protocol import split_of

TASK = build_task(CountdownTask(numbers=(3, 4)))
PROBLEM = Problem("2,3,4=14", "4,2,3=14:", {"numbers": [4, 2, 3], "target": 14})

expressions = st.recursive(
    st.integers(0, 999).map(Node),
    lambda inner: st.builds(combine, st.sampled_from("+-*"), inner, inner),
    max_leaves=8,
)


def test_a_problem_is_the_same_in_every_order_of_its_numbers() -> None:
    others = TASK.rewordings(PROBLEM)
    assert {other.prompt for other in others} == {"2,3,4=14:", "2,4,3=14:", "3,2,4=14:", "3,4,2=14:", "4,3,2=14:"}
    assert {other.id for other in others} == {PROBLEM.id}
    assert all(TASK.verify(other, "2+3*4").correct for other in others)
    assert [other.prompt for other in TASK.rewordings(Problem("2,2=4", "2,2=4:", {"numbers": [2, 2], "target": 4}))] == []


@pytest.mark.parametrize("response", ["2+3*4", "4*3+2", "2+(3*4)", "(2)+((3)*(4))", "3*4+2"])
def test_every_correct_expression_scores(response: str) -> None:
    assert TASK.verify(PROBLEM, response).correct


@pytest.mark.parametrize(
    "response",
    [
        "", " ", "14", "2+3+4", "2*3*4", "2+3*4+0", "2+12", "2+3*4*1", "(2+3)*4", "2+3*4=14", "2 + 3 * 4", "02+3*4",
        "2+3*4)", "(2+3*4", "2++3*4", "-2+3*4", "2+3*", "*2+3", "()", "2+34", "2**3", "2+3×4", "２+3*4", "2+3*4\n", "\x00",
        "__import__('os').system('true')", "9**9**9**9", "1e3", "0x2+3*4", "2+3*4" + "+0" * 200, "(" * 100_000, "9" * 1_000_000,
        "²+3*4", "٢+3*4",
    ],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_anything_else_scores_zero_without_being_computed(response: str) -> None:
    started = time.process_time()
    assert not TASK.verify(PROBLEM, response).correct
    assert time.process_time() - started < 0.05  # microseconds; to compute one of these takes minutes or for ever


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=80), st.text(alphabet="0123456789+-*()", max_size=MAX_CHARACTERS + 10)))
def test_no_text_makes_the_verifier_raise(response: str) -> None:
    assert isinstance(TASK.verify(PROBLEM, response), Verdict)


@given(expressions)
def test_printing_and_parsing_keep_value_and_numbers(node: Node) -> None:
    again = parse(render(node))
    assert again.value == node.value
    assert again.numbers() == node.numbers()


@given(expressions)
def test_parsed_value_is_pythons(node: Node) -> None:
    assert parse(render(node)).value == eval(render(node))


@given(expressions, expressions, expressions)
def test_canonical_form_ignores_order_and_grouping(a: Node, b: Node, c: Node) -> None:
    for operator in "+*":
        left = combine(operator, combine(operator, a, b), c)
        right = combine(operator, c, combine(operator, b, a))
        assert canonical(left) == canonical(right)


def test_canonical_form_tells_different_expressions_apart() -> None:
    assert canonical(parse("2+3*4")) == canonical(parse("4*3+2"))
    assert canonical(parse("8-(3-2)")) == canonical(parse("8+2-3"))
    assert canonical(parse("2+3*4")) != canonical(parse("(2+3)*4"))


def test_deep_nesting_within_the_length_is_parsed() -> None:
    depth = (MAX_CHARACTERS - 1) // 2
    assert parse("(" * depth + "7" + ")" * depth).value == 7
    with pytest.raises(NotAnExpressionError):
        parse("(" * (depth + 1) + "7" + ")" * (depth + 1))


def test_splits_never_share_a_problem() -> None:
    ids = {split: {p.id for p in TASK.problems(split, 100, seed=0)} for split in ("rl", "evaluate")}
    ids |= {split: {_identity(document.prompt) for document in TASK.documents(split, 2000, seed=0)} for split in ("corpus", "heldout")}
    for split, members in ids.items():
        assert {split_of(member) for member in members} == {split}
    assert sum(map(len, ids.values())) == len(set().union(*ids.values()))


def _identity(prompt: str) -> str:
    numbers, _, rest = prompt.partition("=")
    return ",".join(sorted(numbers.split(","), key=int)) + "=" + rest.partition(":")[0]


def test_every_document_is_a_correct_solution() -> None:
    for document in TASK.documents("corpus", 500, seed=1):
        prompt, response = document
        numbers, _, target = prompt.removesuffix(":").partition("=")
        problem = Problem("", prompt, {"numbers": list(map(int, numbers.split(","))), "target": int(target)})
        assert TASK.verify(problem, response).correct, document
        assert set("".join(document)) <= set(TASK.alphabet)


@pytest.mark.parametrize(
    "task",
    [CountdownTask(numbers=(4,), operators=("+",), largest_target=3), CountdownTask(numbers=(3,), operators=("*",), largest_target=0)],
)
def test_a_task_without_a_solvable_problem_says_so(task: CountdownTask) -> None:
    with pytest.raises(PriorlabError, match=r"raise task\.largest_target, add to task\.operators, or lower task\.numbers"):
        build_task(task).problems("rl", 1, seed=0)


def test_a_seed_repeats_and_another_differs() -> None:
    assert TASK.problems("rl", 20, seed=0) == TASK.problems("rl", 20, seed=0)
    assert TASK.problems("rl", 20, seed=0) != TASK.problems("rl", 20, seed=1)


def test_asking_for_more_problems_than_exist_says_how_many_there_are() -> None:
    tiny = build_task(CountdownTask(numbers=(2,), largest_number=3, largest_target=6))
    with pytest.raises(PriorlabError, match=r"only about \d+ distinct problems.*widen task.numbers"):
        tiny.problems("evaluate", 500, seed=0)
