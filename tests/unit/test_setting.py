"""The loss's own class of settings: what it refuses, and that it and a prior of the configs are one thing to the loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from pipeline.config.prior import Prior
from stages.objective.fused import fused_linear_shaped_loss
from stages.objective.reference import shaped_loss
from stages.objective.setting import Shape

GIVEN: list[dict[str, Any]] = [
    {},
    {"beta": -0.25},
    {"beta": 0.5, "form": "power"},
    {"beta": -1.0, "lambda_head": 0.1, "lambda_tail": -0.2, "k": 3},
]


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_a_shape_and_a_prior_with_the_same_numbers_give_the_same_loss(given: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(7, 8, generator=generator), torch.randn(11, 8, generator=generator)
    targets = torch.arange(7)
    shape, prior = Shape(**given), Prior(**given)
    assert torch.equal(shaped_loss(hidden @ weight.T, targets, shape), shaped_loss(hidden @ weight.T, targets, prior))
    assert torch.equal(*(fused_linear_shaped_loss(hidden, weight, targets, setting) for setting in (shape, prior)))


def test_a_shape_has_the_defaults_of_a_prior() -> None:
    assert dataclasses.asdict(Shape()) == Prior().model_dump(include={field.name for field in dataclasses.fields(Shape)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": -1.1}, "beta is -1.1; expected at least -1"),
        ({"beta": float("nan")}, "beta is nan; expected a finite number"),
        ({"lambda_tail": float("inf"), "k": 2}, "lambda_tail is inf"),
        ({"lambda_head": 0.1}, "k is 0, .* need at least 1"),
        ({"k": -1}, "k is -1, .* at least 0"),
        ({"form": "sum"}, "form is 'sum'; expected one of 'product', 'power'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shape(**given)
    with pytest.raises(ValueError, match=next(iter(given))):
        Prior(**given)
