"""An objective's knobs, as the loss takes them and as a config does: the same names, defaults and refusals."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.config.prior import Prior
from stages.objective.family import OBJECTIVES, objective_of

PRIOR: TypeAdapter[Any] = TypeAdapter(Prior)
GIVEN: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in OBJECTIVES),
    ("shaped", {"beta": 0.5, "form": "power"}),
    ("shaped", {"beta": -1.0, "lambda_head": 0.1, "lambda_tail": -0.2, "k": 3}),
    ("focal", {"gamma": 0.5, "z_loss": 1e-4}),
    ("entropy", {"alpha": -0.2, "gate": 0.9}),
    ("coverage", {"attempts": 64.0}),
]


def test_every_objective_is_a_kind_of_prior_and_the_other_way_round() -> None:
    union, *_ = get_args(Prior)
    assert {one.model_fields["kind"].default for one in get_args(union)} == OBJECTIVES.keys()


@pytest.mark.parametrize(("kind", "given"), GIVEN, ids=str)
def test_a_prior_and_an_objective_with_the_same_knobs_are_the_same(kind: str, given: dict[str, Any]) -> None:
    prior, objective = PRIOR.validate_python({"kind": kind, **given}), OBJECTIVES[kind](**given)
    assert objective_of(prior) == objective
    of_any = {"z_loss": objective.z_loss, "normalize": False}
    assert of_any | prior.knobs() == {"normalize": False} | dataclasses.asdict(objective)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("shaped", {"beta": -1.1}, "beta is -1.1; expected at least -1"),
        ("shaped", {"beta": float("nan")}, "beta is nan; expected a finite number"),
        ("shaped", {"lambda_tail": float("inf"), "k": 2}, "lambda_tail is inf"),
        ("shaped", {"lambda_head": 0.1}, "k is 0, .* need at least 1"),
        ("shaped", {"k": -1}, "k is -1, .* at least 0"),
        ("shaped", {"form": "sum"}, "form is 'sum'; expected one of 'product', 'power'"),
        ("shaped", {"z_loss": -0.1}, "z_loss is -0.1; expected at least 0"),
        ("focal", {"gamma": -0.1}, "gamma is -0.1; expected at least 0"),
        ("deformed", {"alpha": -0.1}, "alpha is -0.1; expected at least 0"),
        ("gem", {"tau": 0}, "tau is 0; expected 0.01 to 100"),
        ("gem", {"tau": 101.0}, "tau is 101; expected 0.01 to 100"),
        ("entropy", {"alpha": -1.1}, "alpha is -1.1; expected at least -1"),
        ("entropy", {"gate": 1.1}, "gate is 1.1; expected 0 to 1"),
        ("smoothing", {"epsilon": 1.1}, "epsilon is 1.1; expected 0 to 1"),
        ("coverage", {"attempts": 0.5}, "attempts is 0.5; expected 1 to 1e\\+06"),
    ],
)
def test_knobs_that_make_no_sense_are_refused_by_both(kind: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OBJECTIVES[kind](**given)
    with pytest.raises(ValidationError, match=next(iter(given))):
        PRIOR.validate_python({"kind": kind, **given})
