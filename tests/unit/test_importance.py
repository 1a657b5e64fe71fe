"""How far the engine is from the trainer: statistics by hand, and what each correction does to noise."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.config.algorithm import Correction
from scripts.figures import importance as figures
from stages.rl.importance import describe, effective_share, weights

LOG_RATIOS = torch.tensor([[0.1, -0.2, 9.0], [math.log(4), 0.0, 0.3], [9.0, 9.0, 9.0]])
COUNTED = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])


@pytest.mark.parametrize(
    ("mode", "first", "second"),
    [
        ("none", [1, 1], [1, 1, 1]),
        ("token_truncate", [math.exp(0.1), math.exp(-0.2)], [3, 1, math.exp(0.3)]),
        ("token_mask", [math.exp(0.1), math.exp(-0.2)], [0, 1, math.exp(0.3)]),
        ("sequence_truncate", [math.exp(-0.1)] * 2, [3] * 3),
        ("sequence_mask", [math.exp(-0.1)] * 2, [0] * 3),
    ],
)
def test_weights_by_hand(mode: Correction, first: list[float], second: list[float]) -> None:
    found = weights(LOG_RATIOS, COUNTED, mode, cap=3.0)
    torch.testing.assert_close(found, torch.tensor([[*first, 0], second, [0, 0, 0]], dtype=torch.float32))


def described(mode: Correction) -> dict[str, float]:
    return describe(LOG_RATIOS, COUNTED, mode, 3.0, sum_over_ranks=lambda own: own, gather=lambda own: own)


def test_ratios_are_described_before_anything_is_capped() -> None:
    found = described("token_truncate")
    logs = torch.tensor([0.1, -0.2, math.log(4), 0.0, 0.3], dtype=torch.float64)
    assert found["token_log_ratio_mean"] == pytest.approx(logs.mean().item())
    assert found["token_log_ratio_sd"] == pytest.approx(logs.std(correction=0).item())
    assert found["token_log_ratio_q50"] == pytest.approx(0.1)
    assert found["token_ess"] == pytest.approx((logs.exp().sum() ** 2 / (5 * logs.exp().square().sum())).item())
    assert found["response_log_ratio_mean"] == pytest.approx((-0.1 + math.log(4) + 0.3) / 2)
    assert {name: value for name, value in described("none").items() if "ratio" in name or "ess" in name}.items() <= found.items()


def test_what_a_correction_touches_is_told_by_the_length_of_responses() -> None:
    token, sequence = described("token_mask"), described("sequence_mask")
    assert token["above_cap"] == 1 / 5
    assert sequence["above_cap"] == 1 / 2
    assert sequence["kept_weight_shorter"] == pytest.approx(math.exp(-0.1))
    assert sequence["kept_weight_longer"] == 0
    assert sequence["kept_weight"] == pytest.approx(2 * math.exp(-0.1) / 5)
    assert described("none")["kept_weight"] == 1


def test_ranks_add_up() -> None:
    """Two ranks of the same responses are described as one of them; their sums are twice as large."""

    def double(own: list[float]) -> list[float]:
        return [2 * number for number in own]

    twice = describe(LOG_RATIOS, COUNTED, "token_mask", 3.0, sum_over_ranks=double, gather=lambda own: own * 2)
    assert twice == pytest.approx(described("token_mask"))


def test_nothing_is_said_where_no_token_counts() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert describe(torch.zeros(2, 3), nothing, "none", 3.0, sum_over_ranks=lambda own: own, gather=lambda own: own) == {}


def test_effective_share_is_1_for_equal_weights_and_1_over_n_for_one_that_has_all() -> None:
    assert effective_share(torch.full((8,), -700.0)) == pytest.approx(1)
    assert effective_share(torch.tensor([0.0, *[-math.inf] * 7])) == pytest.approx(1 / 8)


def test_only_corrections_by_token_survive_8000_tokens_of_noise() -> None:
    for noise in figures.NOISE:
        for mode in figures.MODES:
            long, short = figures.simulated(mode, noise, 8000), figures.simulated(mode, noise, 16)
            assert min(short) > 0.95
            if mode.startswith("sequence"):
                assert max(long) < 0.35
            else:
                assert long == pytest.approx((1, 1), abs=0.01)
