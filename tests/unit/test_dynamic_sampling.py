"""Drawing groups until the batch is full of those that teach, and what the preflight says about a base policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.rl.dynamic_sampling import Draw, Group, draw_groups
from stages.rl.preflight import preflight

SAMPLES = 4
END = 1


def group(problem: int, right: int, ended: int = SAMPLES) -> Group:
    """A group with `right` of its responses paid 1."""
    rewards = torch.tensor([1.0] * right + [0.0] * (SAMPLES - right))
    ids = [[5, END]] * ended + [[5, 5]] * (SAMPLES - ended)
    return Group(problem, [[2]] * SAMPLES, ids, [[-0.1, -0.2]] * SAMPLES, rewards)


def draw(
    right: list[list[int]], budget: float, largest: int = 0, others: tuple[int, int] = (0, 0)
) -> tuple[Draw, list[tuple[int, int]]]:
    """Rounds whose groups have these numbers of right responses; returns the draw and the calls for more.

    Other ranks lack at most `largest` groups, and `others` counts their groups that teach and all their groups.
    """
    asked: list[tuple[int, int]] = []
    answers = iter(right)

    def sample(problems: list[int]) -> list[Group]:
        numbers = next(answers)
        return [group(problem, numbers[i % len(numbers)]) for i, problem in enumerate(problems)]

    def more(round_: int, groups: int) -> list[int]:
        asked.append((round_, groups))
        return [100 * round_ + number for number in range(groups)]

    drawn = draw_groups(
        list(range(len(right[0]))), sample, more, has_signal=lambda group: group.mixed, budget=budget,
        sum_over_ranks=lambda own: [number + other for number, other in zip(own, others, strict=True)],
        largest_of_ranks=lambda own: max(own, largest),
    )  # fmt: skip
    return drawn, asked


def test_groups_that_teach_nothing_are_replaced_until_the_batch_is_full() -> None:
    """Two of four have a signal, so four are asked for where two are missing; of those one has, and 3/8 in all: 3 more for the last."""
    drawn, asked = draw([[0, 2, 4, 1], [0, 3, 4, 4], [0, 1]], budget=5)
    assert asked == [(1, 4), (2, 3)]
    assert [int(g.rewards.sum()) for g in drawn.groups] == [2, 1, 3, 1]
    assert [g.problem for g in drawn.groups] == [1, 3, 101, 201]
    assert drawn.counted == [True] * 4
    assert (drawn.fillers, drawn.rounds, drawn.generated) == ([], 3, 11)


def test_where_none_has_taught_as_many_again_are_asked_for() -> None:
    _, asked = draw([[0, 4], [0], [1]], budget=20)
    assert asked == [(1, 2), (2, 4)]


def test_at_the_cap_on_rollouts_dropped_groups_fill_up_and_do_not_count() -> None:
    drawn, asked = draw([[0, 2, 4], [0, 4]], budget=1.7)
    assert asked == [(1, 2)]
    assert drawn.generated == 5
    assert [int(g.rewards.sum()) for g in drawn.kept] == [2]
    assert [int(g.rewards.sum()) for g in drawn.fillers] == [0, 4]
    assert not drawn.fillers_count
    assert drawn.counted == [True, False, False]


def test_a_batch_without_any_signal_counts_so_that_the_mean_over_tokens_exists() -> None:
    drawn, _ = draw([[0, 4], [0, 0]], budget=2)
    assert drawn.kept == []
    assert drawn.fillers_count
    assert drawn.counted == [True, True]


def test_a_budget_of_one_batch_keeps_every_group() -> None:
    drawn, asked = draw([[0, 2, 4]], budget=1)
    assert asked == []
    assert [int(g.rewards.sum()) for g in drawn.kept] == [0, 2, 4]


def test_a_full_rank_samples_along_with_one_that_lacks_groups() -> None:
    drawn, asked = draw([[1, 2], [3], [3]], budget=3, largest=1, others=(1, 2))
    assert asked == [(1, 2), (2, 2)]
    assert len(drawn.kept) == 2
    assert drawn.generated == 6


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_the_batch_is_full_whatever_the_share_that_teaches_as_long_as_the_budget_allows(share: float) -> None:
    """Rounds of replacements one for one, up to four, left .9, .24 and .01 of the places empty."""
    rng = np.random.default_rng(0)
    filled, generated = [], []
    for _ in range(50):
        drawn = draw_groups(
            list(range(128)),
            lambda problems: [group(problem, int(rng.random() < share)) for problem in problems],
            lambda _, groups: [0] * groups,
            has_signal=lambda group: group.mixed, budget=2 / share, sum_over_ranks=lambda own: own, largest_of_ranks=lambda own: own,
        )  # fmt: skip
        filled.append(len(drawn.kept) / 128)
        generated.append(drawn.generated)
    assert min(filled) == 1
    assert np.mean(generated) < 1.15 * 128 / share  # little is sampled in vain


@given(right=st.lists(st.lists(st.integers(0, SAMPLES), min_size=1, max_size=6), min_size=1, max_size=6), budget=st.floats(1.1, 9))
def test_the_batch_keeps_its_size_learns_from_mixed_groups_only_and_stays_within_its_budget(
    right: list[list[int]], budget: float
) -> None:
    drawn, _ = draw([*right, *[[2]] * 100], budget=budget)
    assert len(drawn.groups) == len(right[0])
    assert drawn.generated <= max(len(right[0]), round(budget * len(right[0])))
    assert all(g.mixed for g in drawn.kept)
    assert not any(g.mixed for g in drawn.fillers)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([group(0, 0), group(1, 0)], "too hard"),
        ([group(0, 4), group(1, 4)], "too easy"),
        ([group(0, 4), group(1, 0)], "always or never solved"),
        ([group(0, 0, ended=1), group(1, 0, ended=0)], "raise rl.max_response_tokens"),
    ],
)
def test_without_a_signal_the_advice_names_the_cause(groups: list[Group], message: str) -> None:
    found = preflight(groups, {END}, lambda numbers: numbers)
    assert found.mixed == 0
    assert message in found.advice(SAMPLES)


def test_preflight_measures_shares_over_all_ranks() -> None:
    found = preflight([group(0, 1), group(1, 4), group(2, 0, ended=2)], {END}, lambda numbers: [2 * n for n in numbers])
    assert found.problems == 6
    assert found.mixed == pytest.approx(1 / 3)
    assert found.pass_at_1 == pytest.approx(5 / 12)
    assert found.pass_at_group == pytest.approx(2 / 3)
    assert found.ended == pytest.approx(10 / 12)
