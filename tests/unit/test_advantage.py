"""Advantages by hand and by brute force, and the protocol that the trainer knows."""

from __future__ import annotations

from itertools import combinations
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.algorithm import (
    Advantage,
    GroupAdvantage,
    MaxRLAdvantage,
    NegativeAdvantage,
    PassAtKAdvantage,
    RandomAdvantage,
)
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe
from pipeline.experiment.config_files import available, read_config
from stages.rl.advantage import build_advantage
from stages.rl.dynamic_sampling import Group

SAMPLES = 8


def group(rewards: list[float], problem: int = 0) -> Group:
    count = len(rewards)
    return Group(problem, [[0]] * count, [[1]] * count, [None] * count, torch.tensor(rewards))


def advantages(config: Advantage, rewards: list[float]) -> torch.Tensor:
    found = build_advantage(config, seed=0).advantages(torch.tensor(rewards))
    assert found is not None
    return found


def with_right(right: int) -> list[float]:
    return [1.0] * right + [0.0] * (SAMPLES - right)


def test_every_kind_has_a_config_a_module_and_a_yaml_file_of_its_defaults() -> None:
    configs = get_args(get_args(Advantage)[0])
    assert sorted(config.model_fields["kind"].default for config in configs) == available("advantage")
    for config in configs:
        build_advantage(config(), seed=0)
        assert config.model_validate(read_config("advantage", config().kind)) == config()


def test_group_is_left_to_trl() -> None:
    assert build_advantage(GroupAdvantage(), seed=0).advantages(torch.tensor(with_right(2))) is None


def test_maxrl_divides_by_the_mean() -> None:
    torch.testing.assert_close(advantages(MaxRLAdvantage(), [1.0, 0, 0, 0]), torch.tensor([3.0, -1.0, -1.0, -1.0]))
    assert advantages(MaxRLAdvantage(), [0.0, 0, 0]).tolist() == advantages(MaxRLAdvantage(), [1.0, 1, 1]).tolist() == [0, 0, 0]
    torch.testing.assert_close(advantages(MaxRLAdvantage(), [1.5, 0.5]), torch.tensor([0.5, -0.5]))  # with exploration's bonus


def test_maxrl_estimates_the_gradient_of_maximum_likelihood() -> None:
    """Over all groups of n responses, the gradient expected is that of p times the first n - 1 terms of the series of 1 / p."""
    p, n = 0.3, 8
    expected = 0.0  # in units of the gradient of p; the score of a response is then (r - p) / (p (1 - p))
    for pattern in range(2**n):
        rewards = torch.tensor([float(pattern >> bit & 1) for bit in range(n)])
        likelihood = p ** rewards.sum() * (1 - p) ** (n - rewards.sum())
        scores = (rewards - p) / (p * (1 - p))
        expected += float(likelihood * (advantages(MaxRLAdvantage(), rewards.tolist()) * scores).mean())
    assert expected == pytest.approx(sum((1 - p) ** i for i in range(n - 1)), abs=1e-5)


def test_negative_weighs_right_responses_down_and_learns_from_groups_that_are_all_wrong() -> None:
    torch.testing.assert_close(advantages(NegativeAdvantage(), [1.0, 0, 0]), torch.tensor([0.1, -1.0, -1.0]))
    only_wrong = build_advantage(NegativeAdvantage(positive_weight=0), seed=0)
    assert only_wrong.has_signal(group([0, 0]), step=0)
    assert not only_wrong.has_signal(group([1, 1]), step=0)


def by_brute_force(rewards: list[float], k: int) -> list[float]:
    """Pay each set of k its best response, normalise over all sets, and average over the sets that a response is in."""
    sets = list(combinations(range(len(rewards)), k))
    paid = np.array([max(rewards[i] for i in chosen) for chosen in sets])
    if paid.std() == 0:
        return [0.0] * len(rewards)
    normalised = (paid - paid.mean()) / paid.std()
    return [float(np.mean([value for chosen, value in zip(sets, normalised, strict=True) if i in chosen])) for i in range(len(rewards))]


@given(right=st.integers(0, SAMPLES), k=st.integers(1, SAMPLES))
def test_pass_at_k_is_the_average_over_all_sets_of_k(right: int, k: int) -> None:
    rewards = with_right(right)
    np.testing.assert_allclose(advantages(PassAtKAdvantage(k=k), rewards).tolist(), by_brute_force(rewards, k), atol=1e-6)


def test_pass_at_k_learns_nothing_once_fewer_than_k_are_wrong() -> None:
    advantage = build_advantage(PassAtKAdvantage(k=4), seed=0)
    assert [advantage.has_signal(group(with_right(right)), step=0) for right in range(9)] == [False, *[True] * 4, *[False] * 4]


def test_random_ignores_the_response_and_the_order_of_problems_but_not_the_seed_and_the_step() -> None:
    def flips(seed: int, step: int, problem: int, rewards: list[float]) -> list[float]:
        return build_advantage(RandomAdvantage(), seed).rewards(group(rewards, problem), step).tolist()

    once = flips(0, 3, 5, with_right(8))
    assert flips(0, 3, 5, with_right(0)) == once
    others = [flips(1, 3, 5, with_right(0)), flips(0, 4, 5, with_right(0)), flips(0, 3, 6, with_right(0))]
    assert once not in others
    many = [build_advantage(RandomAdvantage(share=0.2), 0).rewards(group(with_right(0), problem), 0) for problem in range(500)]
    assert float(torch.stack(many).mean()) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("config", [GroupAdvantage(), MaxRLAdvantage()], ids=lambda config: config.kind)
def test_a_group_teaches_if_its_rewards_differ(config: Any) -> None:
    advantage = build_advantage(config, seed=0)
    assert [advantage.has_signal(group(with_right(right)), step=0) for right in (0, 3, 8)] == [False, True, False]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rl.advantage=pass_at_k", "rl.advantage.k=9"], "advantage.k is 9, but a group has 8 responses"),
        (["rl.advantage=negative", "rl.exploration=distinct"], "choose advantage group or maxrl"),
        (["rl.advantage=random", "rl.exploration=diversity"], "choose exploration none"),
        (["rl.advantage=lucky"], "there is no advantage 'lucky'"),
        (["rl.sampling_rounds=4"], "rl has no key 'sampling_rounds'"),
        (["rl.loss=vespo", "rl.importance.mode=sequence_mask"], "choose token_truncate or token_mask"),
        (["rl.entropy={coefficient: 2, target: 1}"], "coefficient is 2, above largest"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_way_out(overrides: list[str], message: str) -> None:
    with pytest.raises(PriorlabError, match=message):
        list(load_recipe("quickstart", overrides).cells())
