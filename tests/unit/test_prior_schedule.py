"""A prior over time: its value at each point, what it may not change, its identity, and that following it recompiles nothing."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from pipeline.config.prior import Prior
from pipeline.config.recipe import RecipeConfig
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import Cell, load_recipe, load_sweep
from pipeline.experiment.graph import build_graph
from stages.objective.fused import fused_loss_and_statistics
from stages.objective.reference import shaped_loss
from stages.objective.row_step import EAGER, Passes

DIVERSITY_THEN = "prior={use: diversity, schedule: [{at: 0.5, use: precision}, {at: 0.75, use: tail}]"


def recipe(*overrides: str) -> RecipeConfig:
    (cell,) = load_recipe("quickstart", overrides).cells()
    return cell.recipe


def scheduled(*waypoints: dict[str, float], **settings: object) -> Prior:
    return Prior.model_validate({"schedule": waypoints} | settings)


def rewards(prior: Prior, share: float) -> tuple[float, float]:
    now = prior.at(share)
    assert (now.schedule, now.k, now.form) == ((), prior.k, prior.form)
    return now.beta, now.lambda_tail


def test_steps_apply_from_their_share_on() -> None:
    prior = recipe(DIVERSITY_THEN + "}").prior
    values = [rewards(prior, step / 8) for step in range(8)]
    assert values == [(0.5, 0)] * 4 + [(-0.25, 0)] * 2 + [(0, -0.1)] * 2


def test_a_linear_schedule_interpolates_between_waypoints_and_then_stays_constant() -> None:
    prior = recipe(DIVERSITY_THEN + ", interpolation: linear}").prior
    shares = (0.0, 0.25, 0.5, 0.625, 0.75, 0.9, 1.0)
    expected = [(0.5, 0), (0.125, 0), (-0.25, 0), (-0.125, -0.05), (0, -0.1), (0, -0.1), (0, -0.1)]
    for share, values in zip(shares, expected, strict=True):
        assert rewards(prior, share) == pytest.approx(values), share


def test_a_constant_prior_is_the_same_at_any_time() -> None:
    prior = Prior(beta=0.5)
    assert prior.at(0.0) is prior.at(0.7) is prior


def test_the_prior_keeps_its_k_when_a_named_waypoint_has_a_different_one() -> None:
    assert recipe("prior={use: ce, k: 5, schedule: [{at: 0.5, use: tail}]}").prior.at(0.5).k == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prior={use: ce, k: 5, schedule: [{at: 0.5, use: tail, k: 7}]}", "schedule.0.k is 7, but k is 5 at the start"),
        ("prior={beta: 0.5, schedule: [{at: 0.5, beta: 0.1, form: power}]}", "schedule.0.form is power, but form is product"),
        ("prior={k: 0, schedule: [{at: 0.5, lambda_tail: -0.1}]}", "k is 0, but lambda_head=0 and lambda_tail=-0.1 reward tokens"),
        (
            "prior={schedule: [{at: 0.5, beta: 0.1}, {at: 0.25, beta: 0.2}]}",
            r"schedule has at \[0.5, 0.25\]; the shares of the token budget must increase",
        ),
        ("prior={schedule: [{at: 1, beta: 0.1}]}", "a waypoint at 1, where training ends"),
        ("prior={schedule: [{at: 50, beta: 0.1}]}", "prior.schedule.0.at is 50: input should be less than or equal to 1"),
        ("prior={schedule: [{at: 0.5, use: presicion}]}", "there is no prior 'presicion'; did you mean 'precision'?"),
        ("prior={schedule: [{at: 0.5, bta: 0.1}]}", "prior.schedule.0 has no key 'bta'; did you mean 'beta'?"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(override: str, message: str) -> None:
    with pytest.raises(PriorlabError, match=message):
        recipe(override)


def test_a_schedule_is_identity_and_its_inert_parts_are_not() -> None:
    assert Prior(interpolation="linear").identity() == Prior().identity()
    later = {"at": 0.5, "beta": 0.5}
    step, linear = (scheduled(later, interpolation=how) for how in ("step", "linear"))
    assert len({str(prior.identity()) for prior in (Prior(), step, linear, scheduled(later | {"at": 0.6}))}) == 4
    assert "k" not in step.identity()
    assert step.identity()["form"] == "product"  # it matters later


def test_a_temperature_holds_for_the_whole_schedule_and_for_midtraining_that_inherits_the_prior() -> None:
    cooled = recipe("prior={use: ce, temperature: 0.5, schedule: [{at: 0.5, beta: 0.5}]}", "midtrain=countdown")
    assert (cooled.prior.at(0.7).temperature, cooled.midtrain_prior.temperature) == (0.5, 0.5)
    own = recipe("prior={use: ce, temperature: 0.5}", "midtrain=countdown", "midtrain.prior=ce")
    assert own.midtrain_prior.temperature == 1
    graph = build_graph([Cell("cell", {}, cooled)])
    assert graph.cells[0].chain["midtrain"].config.checkpoint_temperature == 0.5  # type: ignore[attr-defined]


def test_schedules_show_in_cell_names() -> None:
    axis = "axes.prior=[ce, {use: ce, schedule: [{at: 0.5, use: tail}]}, {use: ce, schedule: [{at: 0.5, beta: 0.5}]}]"
    names = [cell.recipe.prior.name for cell in load_sweep("quickstart", [axis]).cells()]
    assert names == ["ce", "ce,schedule=tail@0.5", "ce,schedule=beta=0.5@0.5"]


def test_a_loss_refuses_a_prior_with_a_schedule() -> None:
    prior = scheduled({"at": 0.5, "beta": 0.5})
    with pytest.raises(ValueError, match="give the loss its setting at one moment"):
        shaped_loss(torch.randn(2, 5), torch.tensor([0, 1]), prior)
    with pytest.raises(ValueError, match="give the loss its setting at one moment"):
        fused_loss_and_statistics(torch.randn(2, 4), torch.randn(5, 4), torch.tensor([0, 1]), prior, head_k=0)


def test_following_a_schedule_recompiles_nothing() -> None:
    """Except once, where rewards become rank-aware: the second pass then gets a head.

    Recompilation is decided before any code is generated, so the fast eager backend shows it too.
    """
    vocab, width = 50, 8
    compiler = partial(torch.compile, dynamic=True, backend="eager")
    passes = Passes(compiler(EAGER.row_sums), compiler(EAGER.write_gradient_))
    hidden, weight = torch.randn(4, width), torch.randn(vocab, width)
    targets = torch.arange(4)
    waypoints = ({"at": 0.5, "beta": 0.5}, {"at": 1.0, "beta": -0.25, "lambda_head": 0.1, "lambda_tail": -0.1})
    prior = scheduled(*waypoints, k=20, interpolation="linear")
    before, compiled = counters["stats"]["unique_graphs"], []
    for share in (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        loss, _ = fused_loss_and_statistics(hidden, weight, targets, prior.at(share), head_k=20, passes=passes)
        torch.testing.assert_close(loss, shaped_loss(hidden @ weight.T, targets, prior.at(share), reduction="sum"))
        compiled.append(counters["stats"]["unique_graphs"])
    start, peak, *later = compiled
    assert start == peak > before
    assert set(later) == {peak + 1}
