"""A prior over time: its value at each point, what it may not change, its identity, and that following it recompiles nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from pipeline.config.prior import ShapedPrior
from pipeline.config.recipe import RecipeConfig
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import Cell, load_recipe, load_sweep
from pipeline.experiment.graph import build_graph
from stages.objective.deformed import Deformed
from stages.objective.family import objective_of
from stages.objective.fused import fused_loss_and_statistics
from stages.objective.gem import Gem
from stages.objective.reference import objective_loss
from stages.objective.row_step import EAGER, Passes
from stages.objective.shaped import Shaped

DIVERSITY_THEN = "prior={use: diversity, schedule: [{at: 0.5, use: precision}, {at: 0.75, use: tail}]"


def recipe(*overrides: str) -> RecipeConfig:
    (cell,) = load_recipe("quickstart", overrides).cells()
    return cell.recipe


def scheduled(*waypoints: dict[str, float], **settings: object) -> ShapedPrior:
    return ShapedPrior.model_validate({"schedule": waypoints} | settings)


def rewards(prior: Any, share: float) -> tuple[float, float]:
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
    prior = ShapedPrior(beta=0.5)
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
        ("prior={use: gem, schedule: [{at: 0.5, beta: 0.1}]}", "schedule.0 has no key 'beta'; it has at, k, kind, name, tau, z_loss"),
        (
            "prior={use: gem, interpolation: linear, schedule: [{at: 0.5, use: ce}]}",
            "schedule.0.kind is shaped, but kind is gem at the start; linear interpolation stays within one kind",
        ),
        (
            "prior={use: gem, k: 0, schedule: [{at: 0.5, kind: shaped, lambda_tail: -0.1}]}",
            "k is 0, but lambda_head=0 and lambda_tail=-0.1 reward tokens",
        ),
        ("prior={kind: gems}", "prior.kind is gems; prior needs one of coverage, deformed, entropy, focal, gem, shaped, smoothing"),
        ("prior=coverage", "prior is coverage, .* the text of pre-training does not mark them; use it in fine-tuning"),
        ("prior={schedule: [{at: 0.5, use: coverage}]}", "prior is .*coverage@0.5, .* does not mark them"),
        ("midtrain={use: countdown, prior: coverage}", "midtrain.prior is coverage, .* the text of mid-training does not"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(override: str, message: str) -> None:
    with pytest.raises(PriorlabError, match=message):
        recipe(override)


def test_a_schedule_is_identity_and_its_inert_parts_are_not() -> None:
    assert ShapedPrior(interpolation="linear").identity() == ShapedPrior().identity()
    later = {"at": 0.5, "beta": 0.5}
    step, linear = (scheduled(later, interpolation=how) for how in ("step", "linear"))
    assert len({str(prior.identity()) for prior in (ShapedPrior(), step, linear, scheduled(later | {"at": 0.6}))}) == 4
    assert "k" not in step.identity()
    assert step.identity()["form"] == "product"  # it matters later


def test_a_temperature_holds_for_the_whole_schedule_and_for_midtraining_that_inherits_the_prior() -> None:
    cooled = recipe("prior={use: ce, temperature: 0.5, schedule: [{at: 0.5, beta: 0.5}]}", "midtrain=countdown")
    assert (cooled.prior.at(0.7).temperature, cooled.midtrain_prior.temperature) == (0.5, 0.5)
    own = recipe("prior={use: ce, temperature: 0.5}", "midtrain=countdown", "midtrain.prior=ce")
    assert own.midtrain_prior.temperature == 1
    graph = build_graph([Cell("cell", {}, cooled)])
    assert graph.cells[0].chain["midtrain"].config.checkpoint_temperature == 0.5  # type: ignore[attr-defined]


def test_a_schedule_may_change_the_objective() -> None:
    prior = recipe("prior={use: ce, k: 7, schedule: [{at: 0.5, use: dft}, {at: 0.75, use: tail}]}").prior
    found = [objective_of(prior.at(share)) for share in (0.0, 0.5, 0.9)]
    assert found == [Shaped(k=7), Deformed(alpha=1.0), Shaped(lambda_tail=-0.1, k=7)]
    assert prior.identity()["schedule"][0] == {"at": 0.5, "kind": "deformed", "alpha": 1.0}


def test_what_only_a_waypoint_uses_is_identity() -> None:
    def after_gem(waypoint: str, k: int = 5) -> Any:
        return recipe(f"prior={{use: gem, k: {k}, schedule: [{{at: 0.5, kind: shaped, {waypoint}}}]}}").prior

    assert after_gem("lambda_tail: -0.1").at(0.5).k == 5
    assert after_gem("lambda_tail: -0.1").identity() != after_gem("lambda_tail: -0.1", k=6).identity()
    assert after_gem("beta: 0.5").identity() == after_gem("beta: 0.5", k=6).identity()
    assert after_gem("beta: 0.5").identity() != after_gem("beta: 0.5, form: power").identity()
    assert after_gem("beta: 0.5, form: power").at(0.5).form == "power"


def test_a_linear_schedule_moves_any_objectives_knobs() -> None:
    prior = recipe("prior={use: gem, interpolation: linear, schedule: [{at: 0.5, tau: 1, z_loss: 0.1}]}").prior
    halfway = objective_of(prior.at(0.25))
    assert isinstance(halfway, Gem)
    assert (halfway.tau, halfway.z_loss) == pytest.approx((0.85, 0.05))


def test_schedules_show_in_cell_names() -> None:
    axis = "axes.prior=[ce, {use: ce, schedule: [{at: 0.5, use: tail}]}, {use: ce, schedule: [{at: 0.5, beta: 0.5}]}]"
    names = [cell.recipe.prior.name for cell in load_sweep("quickstart", [axis]).cells()]
    assert names == ["ce", "ce,schedule=tail@0.5", "ce,schedule=beta=0.5@0.5"]


def test_a_prior_with_a_schedule_is_no_single_objective() -> None:
    with pytest.raises(ValueError, match="take its setting at one moment"):
        objective_of(scheduled({"at": 0.5, "beta": 0.5}))


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
        objective = objective_of(prior.at(share))
        loss, _ = fused_loss_and_statistics(hidden, weight, targets, objective, head_k=20, passes=passes)
        torch.testing.assert_close(loss, objective_loss(hidden @ weight.T, targets, objective, reduction="sum"))
        compiled.append(counters["stats"]["unique_graphs"])
    start, peak, *later = compiled
    assert start == peak > before
    assert set(later) == {peak + 1}
