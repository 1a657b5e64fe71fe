"""Drawing groups until their rewards differ, and what the preflight says about a base policy."""

from __future__ import annotations

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


def draw(right: list[list[int]], rounds: int, largest: int | None = None) -> tuple[Draw, list[tuple[int, int]]]:
    """Rounds whose groups have these numbers of right responses; returns the draw and the calls for more."""
    asked: list[tuple[int, int]] = []
    answers = iter(right)

    def sample(problems: list[int]) -> list[Group]:
        numbers = next(answers)
        return [group(problem, numbers[i % len(numbers)]) for i, problem in enumerate(problems)]

    def more(round_: int, groups: int) -> list[int]:
        asked.append((round_, groups))
        return [100 * round_ + number for number in range(groups)]

    first = list(range(len(right[0])))
    return draw_groups(first, sample, more, rounds=rounds, largest_of_ranks=lambda own: max(own, largest or 0)), asked


def test_groups_of_equal_rewards_are_replaced_until_the_batch_is_full() -> None:
    drawn, asked = draw([[0, 2, 4, 1], [0, 3], [1]], rounds=5)
    assert asked == [(1, 2), (2, 1)]
    assert [int(g.rewards.sum()) for g in drawn.groups] == [2, 1, 3, 1]
    assert [g.problem for g in drawn.groups] == [1, 3, 101, 200]
    assert drawn.counted == [True] * 4
    assert (drawn.fillers, drawn.rounds, drawn.generated) == ([], 3, 7)


def test_when_rounds_run_out_dropped_groups_fill_up_and_do_not_count() -> None:
    drawn, _ = draw([[0, 2, 4], [0, 4]], rounds=2)
    assert [int(g.rewards.sum()) for g in drawn.kept] == [2]
    assert [int(g.rewards.sum()) for g in drawn.fillers] == [0, 4]
    assert not drawn.fillers_count
    assert drawn.counted == [True, False, False]


def test_a_batch_without_any_signal_counts_so_that_the_mean_over_tokens_exists() -> None:
    drawn, _ = draw([[0, 4], [0, 0]], rounds=2)
    assert drawn.kept == []
    assert drawn.fillers_count
    assert drawn.counted == [True, True]


def test_one_round_keeps_every_group() -> None:
    drawn, asked = draw([[0, 2, 4]], rounds=1)
    assert asked == []
    assert [int(g.rewards.sum()) for g in drawn.kept] == [0, 2, 4]


def test_a_full_rank_samples_along_with_one_that_lacks_groups() -> None:
    drawn, asked = draw([[1, 2], [3], [3]], rounds=3, largest=1)
    assert asked == [(1, 1), (2, 1)]
    assert len(drawn.kept) == 2
    assert drawn.generated == 4


@given(right=st.lists(st.lists(st.integers(0, SAMPLES), min_size=1, max_size=6), min_size=1, max_size=6), extra=st.integers(0, 3))
def test_the_batch_keeps_its_size_and_learns_from_mixed_groups_only(right: list[list[int]], extra: int) -> None:
    drawn, _ = draw([*right, [extra]], rounds=len(right) + 1)
    assert len(drawn.groups) == len(right[0])
    assert all(g.mixed for g in drawn.kept)
    assert not any(g.mixed for g in drawn.fillers)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([group(0, 0), group(1, 0)], "too hard"),
        ([group(0, 4), group(1, 4)], "too easy"),
        ([group(0, 4), group(1, 0)], "solved always or never"),
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
