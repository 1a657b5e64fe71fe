"""Each setting at its best temperature or learning rate, chosen by other values than those compared."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.compare.best import RATE, best_of_other_half, best_rates
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.results import result_rows
from pipeline.compare.summary import summary
from pipeline.report.figures import figures
from pipeline.report.tables import temperatures
from pipeline.store.folders import Home
from tests.unit.stores import shelf_at
from tests.unit.test_compare import NOWHERE, evaluation, found_in, plans
from tests.unit.test_compare_commands import stored
from tests.unit.test_report import report
from tests.unit.test_statistics import measured

COOL = 0.5


def at_two_temperatures(cooler: dict[str, float]) -> list[Evaluation]:
    """At temperature 1, tail ends .1 above ce; at .5, each ends higher by `cooler`."""
    found = []
    for one in measured({"ce": 0.0, "tail": 0.1}, f"evaluate.temperatures=[{COOL}]", "evaluate.samples=8", seeds=3):
        prior = one.plan.cell.recipe.prior.name
        raised = {k: values + cooler[prior] for k, values in one.metrics["pass@k"].items()}
        colder = {name: values - 0.2 if name == "entropy" else values for name, values in one.heldout.items()}
        cold = replace(one, metrics={"pass@k": raised, "avg@n": one.metrics["avg@n"]}, heldout=colder)
        found.append(replace(one, temperatures={1.0: one, COOL: cold}))
    return found


def test_a_prior_that_only_cools_ends_no_higher_once_all_may_cool() -> None:
    found = found_in(at_two_temperatures({"ce": 0.1, "tail": 0.0}))
    (level,) = [one for one in found.differences["level"] if one.quantity.name == "pass@1"]
    (best,) = [one for one in found.differences["best"] if one.quantity.name == "pass@1"]
    assert level.interval.value == pytest.approx(0.1, abs=0.02)
    assert level.interval.shown
    assert best.interval.value == pytest.approx(0.0, abs=0.02)
    assert not best.interval.shown
    assert not [one for one in found.differences["best"] if one.quantity.name == "greedy"]  # it has no temperature
    told = summary(found, NOWHERE)
    assert any("with each at its best temperature" in sentence for sentence in told["verdict"])
    assert [(row["setting"], row["temperature"]) for row in told["temperatures"]] == [
        (name, at) for name in ("ce", "tail") for at in (COOL, 1.0)
    ]


def test_without_a_list_of_temperatures_nothing_is_said_of_them() -> None:
    told = summary(found_in(measured({"ce": 0.0, "tail": 0.1}, seeds=2)), NOWHERE)
    assert (told["temperatures"], told["best_temperature"]) == ([], [])
    assert not any("temperature" in sentence for sentence in told["verdict"])


def test_the_best_of_noise_is_no_better_than_any() -> None:
    """Chosen by the values themselves, the best of eight equal choices would look .14 better here."""
    rng = np.random.default_rng(0)
    means = [best_of_other_half(rng.normal(0, 1, (8, 1, 100))).mean() for _ in range(400)]
    assert abs(np.mean(means)) < 4 * 0.1 / 20


def test_each_problem_takes_the_choice_that_the_other_half_prefers() -> None:
    values = np.zeros((2, 1, 6))
    values[0, 0, ::2], values[1, 0, 1::2] = 1.0, 1.0  # the first is best on even problems, the second on odd ones
    assert best_of_other_half(values).tolist() == [[0.0] * 6]


def test_the_report_shows_every_temperature_and_marks_the_best(tmp_path: Path) -> None:
    evaluations = at_two_temperatures({"ce": 0.1, "tail": -0.1})
    found = found_in(evaluations)
    _, rows = temperatures(summary(found, NOWHERE)["temperatures"])
    best = [[cell.endswith("(best)") for cell in row[3:5]] for row in rows]
    assert best == [[True, True], [False, False], [False, False], [True, True]]
    assert "pass@k against the sampling temperature" in [figure.title for figure in figures(found, NOWHERE)]
    assert "Where RL ends, each at its best temperature, compared" in report(Home(tmp_path), evaluations)


def test_rows_of_results_say_at_which_temperature() -> None:
    rows = list(result_rows("mine", at_two_temperatures({"ce": 0.1, "tail": 0.0})[:1]))
    told = {
        (metric, k): [row["temperature"] for row in rows if (row["metric"], row["k"]) == (metric, k)]
        for metric, k in (("pass@k", 1), ("entropy", ""), ("greedy", 1))
    }
    assert told == {("pass@k", 1): [1.0, COOL], ("entropy", ""): [1.0, COOL], ("greedy", 1): [0.0]}


def test_finished_stages_with_several_temperatures_are_read_back(tmp_path: Path) -> None:
    shelf = shelf_at(tmp_path)
    evaluations = at_two_temperatures({"ce": 0.1, "tail": 0.0})
    axes = ("axes.seed=[0,1,2]", f"evaluate.temperatures=[{COOL}]")
    stored(shelf, [(one.plan.evaluations[one.after], one) for one in evaluations], *axes)
    told = shelf.json("report", "mine")
    assert len(told["temperatures"]) == 4
    assert told["best_temperature"][0]["value"] == pytest.approx(0.0, abs=0.02)
    with (shelf.home.sweep("mine") / "results.csv").open() as file:
        assert {row["temperature"] for row in csv.DictReader(file) if row["metric"] == "pass@k"} == {"1.0", "0.5"}


def at_two_rates(home: Home, validated: dict[tuple[str, float], float]) -> list[Evaluation]:
    evaluations = []
    for plan in plans("axes.prior=[ce,tail]", f"axes.{RATE}=[1e-4, 2e-4]", "axes.seed=[0,1]", "rl.validation.every=5"):
        key = (plan.cell.recipe.prior.name, plan.cell.coordinates[RATE])
        before, after = evaluation(plan, "pretrain", 0.5), evaluation(plan, "rl", 0.5)
        raised = {k: values + 100 * key[1] for k, values in after.metrics["pass@k"].items()}
        evaluations += [before, replace(after, metrics=after.metrics | {"pass@k": raised})]
        folder = plan.chain["rl"].folder(home)
        folder.path.mkdir(parents=True)
        rows = [{"step": 0, "validation/pass@1": 0.9}, {"step": 5, "validation/pass@1": validated[key]}, {"step": 6, "loss": 0.0}]
        folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return evaluations


def test_each_prior_is_compared_at_the_rate_that_its_last_validation_prefers(tmp_path: Path) -> None:
    home = Home(tmp_path)
    evaluations = at_two_rates(home, {("ce", 1e-4): 0.3, ("ce", 2e-4): 0.2, ("tail", 1e-4): 0.1, ("tail", 2e-4): 0.4})
    told = summary(found_in(evaluations), home)["best_rates"]
    assert [(row["setting"], row["rate"], row["validated"]) for row in told["rows"]] == [("ce", 1e-4, 0.3), ("tail", 2e-4, 0.4)]
    (level,) = [one for one in told["contrasts"] if one["metric"] == "pass@1"]
    assert (level["setting"], level["reference"], level["axis"]) == ("tail", "ce", "prior")
    assert level["value"] == pytest.approx(0.01)
    found = found_in(evaluations)
    assert best_rates(found.planned, found.settings, Home(tmp_path / "elsewhere")) == []  # nothing validated
    better = {one.plan.cell.id for one in evaluations if one.plan.cell.id.startswith("tail") and "0.0002" in one.plan.cell.id}
    unfinished = found_in([one for one in evaluations if one.plan.cell.id not in better], [one.plan for one in evaluations])
    assert [one.setting.name for one in best_rates(unfinished.planned, unfinished.settings, home)] == ["ce"]
    one_seed = {min(better)}
    partly = found_in([one for one in evaluations if one.plan.cell.id not in one_seed], [one.plan for one in evaluations])
    assert [one.setting.name for one in best_rates(partly.planned, partly.settings, home)] == ["ce"]
    (rate,) = (one.rate for one in best_rates(found.planned, found.settings, home, better) if one.setting.name == "tail")
    assert rate == 1e-4  # the better one has diverged
