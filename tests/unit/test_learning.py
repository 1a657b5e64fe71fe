"""Learning curves: differences while RL runs, paired, at equal steps, rollouts and seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.learning import LearningCurve
from pipeline.compare.summary import summary
from pipeline.compare.validations import BUDGETS, Budget, Validation, load_validation
from pipeline.config.tracking import TrackingConfig
from pipeline.report.figures import figures
from pipeline.store.folders import Home
from pipeline.tracking.comparison import log_comparison
from tests.unit.test_compare import NOWHERE, found_in
from tests.unit.test_statistics import measured

PROBLEMS, SAMPLES = 40, 16
STEPS = (0.0, 10.0, 20.0)


def validation(rates: Sequence[float], *, seed: int, per_step: float = 10.0, steps: Sequence[float] = STEPS) -> Validation:
    """Problems whose samples are correct at these rates, validation by validation, give or take some luck."""
    rng = np.random.default_rng(seed)
    solved = np.stack([rng.binomial(SAMPLES, rate, PROBLEMS) for rate in rates])
    spent: dict[Budget, np.ndarray] = {"steps": np.array(steps), "rollouts": per_step * np.array(steps), "seconds": 2 * np.array(steps)}
    return Validation([f"v{at}" for at in range(PROBLEMS)], SAMPLES, solved, spent)


def sweep(curves: Mapping[str, Validation | None], seeds: int = 1) -> list[Evaluation]:
    """A finished sweep over these priors, each of whose seeds validated alike."""
    found = measured(dict.fromkeys(curves, 0.1), "rl.validation.every=10", seeds=seeds)
    return [replace(one, validation=curves[one.plan.cell.recipe.prior.name]) if one.after == "rl" else one for one in found]


def curves(evaluations: list[Evaluation], budget: Budget, k: int = 1) -> list[LearningCurve]:
    return [one for one in found_in(evaluations).learning if (one.budget, one.k) == (budget, k)]


def test_at_equal_steps_a_point_is_the_paired_difference_of_that_validation() -> None:
    ce, tail = validation([0.1, 0.3, 0.5], seed=0), validation([0.1, 0.5, 0.6], seed=1)
    (found,) = curves(sweep({"ce": ce, "tail": tail}), "steps")
    assert (found.axis, found.setting, found.reference) == ("prior", "tail", "ce")
    assert [at for at, _ in found.points] == list(STEPS)
    for (_, difference), ours, theirs in zip(found.points, tail.solved, ce.solved, strict=True):
        assert difference.interval.value == pytest.approx((ours - theirs).mean() / SAMPLES)
        assert difference.interval.low < difference.interval.value < difference.interval.high
    assert [one.interval.shown for _, one in found.points] == [False, True, True]
    assert {one.family for _, one in found.points} == {6}  # three points at each of two k


def test_at_equal_rollouts_one_that_samples_more_per_step_is_compared_where_it_has_sampled_as_many() -> None:
    """`tail` samples twice as many a step: after 200 rollouts, all that `ce` takes, it is at its step 10."""
    ce, tail = validation([0.1, 0.3, 0.5], seed=0), validation([0.1, 0.3, 0.9], seed=1, per_step=20)
    (found,) = curves(sweep({"ce": ce, "tail": tail}), "rollouts")
    assert [at for at, _ in found.points] == [0, 100, 200]
    between = (tail.solved[0] + tail.solved[1]) / 2
    assert found.points[1][1].interval.value == pytest.approx((between - ce.solved[1]).mean() / SAMPLES)
    assert found.points[2][1].interval.value == pytest.approx((tail.solved[1] - ce.solved[2]).mean() / SAMPLES)


def test_settings_that_validate_at_different_steps_are_compared_where_the_rarer_one_does() -> None:
    often = validation([0.1, 0.2, 0.3, 0.4, 0.5], seed=0, steps=(0, 5, 10, 15, 20))
    rarely = validation([0.1, 0.4], seed=1, steps=(0, 20))
    (found,) = curves(sweep({"ce": often, "tail": rarely}), "steps")
    assert [at for at, _ in found.points] == [0, 20]
    assert found.points[1][1].interval.value == pytest.approx((rarely.solved[1] - often.solved[4]).mean() / SAMPLES)


def test_the_bands_of_all_settings_hold_jointly() -> None:
    """More curves along an axis make each band wider."""
    ce, tail = validation([0.1, 0.3, 0.5], seed=0), validation([0.1, 0.5, 0.6], seed=1)
    two = curves(sweep({"ce": ce, "tail": tail}, seeds=2), "steps")
    more = curves(sweep({"ce": ce, "tail": tail, "head": validation([0.2, 0.3, 0.4], seed=2)}, seeds=2), "steps")
    assert [one.setting for one in more] == ["tail", "head"]
    for (_, narrow), (_, wide) in zip(two[0].points, more[0].points, strict=True):
        assert (narrow.family, wide.family) == (6, 12)
        assert wide.interval.high - wide.interval.low > narrow.interval.high - narrow.interval.low


def test_a_run_that_has_spent_nothing_yet_leaves_nothing_to_compare() -> None:
    begun, ended = validation([0.1], seed=0, steps=(0,)), validation([0.1, 0.3, 0.5], seed=1)
    assert found_in(sweep({"ce": begun, "tail": ended})).learning == []


@pytest.mark.parametrize("missing", [0, 2])
def test_a_setting_that_lacks_a_seed_is_compared_over_the_others(missing: int) -> None:
    """Each seed has validation problems of its own."""
    evaluations = [
        one if one.validation is None else replace(one, validation=of_seed(one.validation, one.plan.cell.recipe.seed))
        for one in sweep({"ce": validation([0.1, 0.3, 0.5], seed=0), "tail": validation([0.1, 0.5, 0.7], seed=1)}, seeds=3)
        if (one.plan.cell.recipe.prior.name, one.plan.cell.recipe.seed) != ("tail", missing)
    ]
    (found,) = curves(evaluations, "steps")
    assert {one.seeds for _, one in found.points} == {2}


def test_a_run_that_was_validated_on_other_problems_is_not_compared() -> None:
    evaluations = [
        replace(one, validation=of_seed(one.validation, 7)) if one.validation and one.plan.cell.recipe.prior.name == "tail" else one
        for one in sweep({"ce": validation([0.1, 0.3, 0.5], seed=0), "tail": validation([0.1, 0.5, 0.7], seed=1)})
    ]
    assert found_in(evaluations).learning == []


def of_seed(validation: Validation, seed: int) -> Validation:
    return replace(validation, problems=[f"{problem} of seed {seed}" for problem in validation.problems])


@pytest.mark.parametrize("without", ["ce", "tail"])
def test_a_run_without_its_validation_is_not_compared(without: str) -> None:
    of = {name: None if name == without else validation([0.1, 0.3, 0.5], seed=0) for name in ("ce", "tail")}
    assert found_in(sweep(of)).learning == []


def test_the_report_and_wandb_show_every_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    evaluations = sweep({"ce": validation([0.02, 0.1, 0.2], seed=0), "tail": validation([0.02, 0.2, 0.3], seed=1)})
    drawn = {figure.title: figure for figure in figures(found_in(evaluations), NOWHERE)}
    for budget in BUDGETS:
        figure = drawn[f"Learning at equal {budget}, along prior"]
        assert "tail - ce" in figure.svg
        assert "All 6 intervals hold jointly" in figure.caption
    told = summary(found_in(evaluations), NOWHERE)
    sizes = [(one["budget"], one["k"], len(one["points"])) for one in told["learning"]]
    assert sizes == [(budget, k, 3) for budget in BUDGETS for k in (1, SAMPLES)]
    log_comparison("mine", TrackingConfig(), tmp_path, evaluations, told, "mine-1")
    tables = {}
    for name in ("learning_", "learning_curves"):
        (file,) = tmp_path.glob(f"wandb/**/{name}[0-9_]*.table.json")
        tables[name] = json.loads(file.read_text())["data"]
    assert len(tables["learning_"]) == 18
    assert [row[0] for row in tables["learning_curves"][:3]] == ["tail - ce", "tail - ce (low)", "tail - ce (high)"]


def test_a_policy_without_counts_leaves_a_run_without_its_validation(tmp_path: Path) -> None:
    """As a run that an older version began."""
    folder = Home(tmp_path).stage("rl", "ce-s0", "0" * 64)
    folder.path.mkdir(parents=True)
    rows = [{"step": step, "rollouts_generated": 8 * step, "validation/pass@1": 0.5} for step in (0, 5)]
    assert load_validation(folder, rows, samples=4) is None
    folder.validation.write_text(json.dumps({"5": {"a": 1, "b": 3}}))
    assert load_validation(folder, rows, samples=4) is None
    folder.validation.write_text(json.dumps({"0": {"a": 0, "b": 2}, "5": {"a": 1, "b": 3}, "9": {"a": 4, "b": 4}}))
    found = load_validation(folder, rows, samples=4)
    assert found is not None
    assert found.solved.tolist() == [[0, 2], [1, 3]]
