"""Comparisons of many settings: what their intervals promise, what is paired with what, and which words follow."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scorio.eval
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.compare.budgets import equal_budgets
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import Contrast, bayesian_mean, contrasts, mean_interval
from pipeline.compare.measured import Difference
from pipeline.compare.power import PROBLEM_SPREAD, SEED_SPREAD, Power, in_words, power_of
from pipeline.compare.predictors import MEASUREMENTS, Points, cell_points, predictors
from pipeline.compare.settings import pairs, planned_settings
from pipeline.compare.summary import summary
from pipeline.compare.two_sweeps import compare_across
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_sweep
from pipeline.experiment.graph import CellPlan
from pipeline.store.folders import Home
from tests.unit.test_compare import NOWHERE, evaluation, found_in, measured_settings, plans


def measured(gains: dict[str, float], *overrides: str, seeds: int = 1, problems: int = 60, noise: float = 0.02) -> list[Evaluation]:
    """A sweep in which RL adds `gains` to pass@1 of each prior, equally on all problems but for `noise`."""
    found = []
    for number, plan in enumerate(plans(f"axes.prior=[{','.join(gains)}]", f"axes.seed={list(range(seeds))}", *overrides)):
        before = evaluation(plan, "pretrain", 0.5, problems=problems)
        luck = np.random.default_rng(number).normal(0, noise, problems)
        after = {1: before.metrics["pass@k"][1] + gains[plan.cell.recipe.prior.name] + luck, 8: before.metrics["pass@k"][8]}
        found += [before, Evaluation(**{**before.__dict__, "after": "rl", "metrics": before.metrics | {"pass@k": after}})]
    return found


def at_one(evaluations: list[Evaluation], plans: list[CellPlan] | None = None) -> list[Difference]:
    return [one for one in found_in(evaluations, plans).differences if one.k == 1]


def across(first: list[Evaluation], second: list[Evaluation]) -> list[Difference]:
    return compare_across(("a", "b"), found_in(first), found_in(second))


def test_a_family_of_null_differences_shows_one_as_rarely_as_promised() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        shared = rng.normal(0, 0.1, (1, 100))
        wrong += any(found.shown for found in contrasts([shared + rng.normal(0, 0.1, (1, 100)) for _ in range(8)]))
    assert wrong / 200 <= 0.1  # eight uncorrected intervals are wrong in 29%, these in 7% of many more trials


def test_more_comparisons_widen_each_interval() -> None:
    values = [np.random.default_rng(seed).normal(0.05, 0.2, (3, 50)) for seed in range(10)]
    alone, together = contrasts(values[:1])[0], contrasts(values)[0]
    assert together.value == alone.value
    assert together.low < alone.low < alone.high < together.high
    single = mean_interval(values[0])
    assert (alone.low, alone.high) == (single.low, single.high)


def test_correlated_differences_are_corrected_less_than_independent_ones() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, (1, 100))
    together = contrasts([shared + rng.normal(0, 0.1, (1, 100)) for _ in range(8)])
    apart = contrasts([rng.normal(0, 1, (1, 100)) for _ in range(8)])

    def widening(found: list[Contrast]) -> float:
        return float(np.mean([(one.high - one.low) / 2 for one in found]) / 0.1)

    assert 1.9 < widening(together) < 2.4 < 2.6 < widening(apart) < 3.0


def test_superiority_is_one_half_for_equals_and_one_for_a_clear_winner() -> None:
    noise = np.linspace(-0.1, 0.1, 20)[None]
    equal, winner, constant = contrasts([noise, noise + 0.3, np.full((1, 20), 0.1)])
    assert (equal.superiority, winner.superiority) == pytest.approx((0.5, 1.0))
    assert (equal.shown, winner.shown) == (False, True)
    assert not constant.shown  # no spread is no certainty
    assert constant.as_dict() == pytest.approx({"value": 0.1, "low": None, "high": None, "superiority": None})


def test_cross_entropy_is_the_reference_wherever_it_comes_in_the_axis() -> None:
    found = at_one(measured({"tail": 0.1, "ce": 0.0, "head": -0.1}))
    assert [(one.setting, one.reference, round(one.gain.value, 1)) for one in found] == [("tail", "ce", 0.1), ("head", "ce", -0.1)]
    assert all(one.family == 4 and one.gain.shown for one in found)  # at two k


def test_settings_are_compared_with_those_that_differ_along_one_axis_only() -> None:
    found = at_one(measured({"ce": 0.0, "tail": 0.1}, "axes.rl.optimizer.learning_rate=[1e-4, 2e-4]"))
    rate = "rl.optimizer.learning_rate"
    assert {(one.axis, one.setting, one.reference) for one in found} == {
        ("prior", f"tail {rate}=0.0001", f"ce {rate}=0.0001"),
        ("prior", f"tail {rate}=0.0002", f"ce {rate}=0.0002"),
        (rate, f"ce {rate}=0.0002", f"ce {rate}=0.0001"),
        (rate, f"tail {rate}=0.0002", f"tail {rate}=0.0001"),
    }


def test_only_seeds_that_both_have_are_paired() -> None:
    both = measured({"ce": 0.0, "tail": 0.1}, seeds=3)
    without = [e for e in both if not (e.plan.cell.recipe.prior.name == "tail" and e.plan.cell.recipe.seed == 1)]
    (found,) = at_one(without)
    ce, tail = measured_settings(both)
    gains = [tail.gains("pass@k", 1), ce.gains("pass@k", 1)]
    assert gains[0] is not None
    assert gains[1] is not None
    assert found.gain.value == pytest.approx((gains[0] - gains[1])[[0, 2]].mean())


def of(evaluations: list[Evaluation], prior: str, after: str) -> list[Evaluation]:
    return [one for one in evaluations if (one.plan.cell.recipe.prior.name, one.after) == (prior, after)]


@pytest.mark.parametrize("prior", ["ce", "tail"])
def test_an_unfinished_seed_does_not_exclude_the_setting(prior: str) -> None:
    whole = measured({"ce": 0.0, "tail": 0.1}, seeds=3)
    without = [one for one in whole if one is not of(whole, prior, "rl")[1]]
    found = found_in(without)
    assert [(one.setting, one.reference, one.seeds) for one in found.differences if one.k == 1] == [("tail", "ce", 2)]
    (row,) = (row for row in summary(found, NOWHERE)["rows"] if row["arm"] == prior)
    assert row["seeds"] == [0, 2]
    assert row["pass@1"]["gain"]["value"] == pytest.approx(row["pass@1"]["after"]["value"] - row["pass@1"]["before"]["value"])
    said = summary(found, NOWHERE)["verdict"]
    assert f"Unfinished seeds are left out: {prior} (1)." in said


def test_an_unfinished_reference_is_named_and_not_replaced() -> None:
    rate = "axes.rl.optimizer.learning_rate=[1e-4, 2e-4, 4e-4]"
    whole = measured({"tail": 0.1, "head": 0.1, "ce": 0.0}, rate)
    cells = plans("axes.prior=[tail,head,ce]", "axes.seed=[0]", rate)
    lacking = [id(one) for one in of(whole, "ce", "rl") + of(whole, "tail", "rl")[:1]]
    found = found_in([one for one in whole if id(one) not in lacking], cells)
    assert {(one.setting, one.reference) for one in found.differences} == {
        (f"head rl.optimizer.learning_rate={other}", "head rl.optimizer.learning_rate=0.0001") for other in (0.0002, 0.0004)
    }
    said = " ".join(summary(found, NOWHERE)["verdict"])
    assert "Along prior, nothing is compared with ce rl.optimizer.learning_rate=0.0002" in said
    assert "Along rl.optimizer.learning_rate, nothing is compared with tail rl.optimizer.learning_rate=0.0001 yet" in said
    assert "Unfinished, so left out above: 4 of 9 settings." in said


def test_modified_cross_entropy_is_the_reference_also_in_mid_training() -> None:
    def references(*overrides: str) -> set[tuple[str, str]]:
        sweep = planned_settings([plan.cell for plan in plans(*overrides)])
        return {(axis, reference.name) for axis, along in pairs(sweep).items() for _, reference in along}

    assert references("axes.prior=[tail, {use: ce, k: 4}, head]") == {("prior", "ce,k=4")}
    assert references("axes.prior=[ce]", "midtrain=countdown", "axes.midtrain.prior=[tail, ce]") == {
        ("midtrain.prior", "ce midtrain.prior=ce")
    }
    assert references("axes.prior=[tail]", "axes.pretrain.steps=[500, 400]") == {("pretrain.steps", "tail pretrain.steps=500")}


def test_the_verdict_warns_of_a_single_shared_seed() -> None:
    def warned(ours: list[int], theirs: list[int]) -> str:
        whole = measured({"ce": 0.0, "tail": 0.1, "head": 0.0}, seeds=3)
        seeds = {"ce": ours, "tail": theirs, "head": [0, 1, 2]}
        kept = [one for one in whole if one.plan.cell.recipe.seed in seeds[one.plan.cell.recipe.prior.name]]
        return " ".join(sentence for sentence in summary(found_in(kept), NOWHERE)["verdict"] if "one seed" in sentence)

    assert "Where a difference rests on one seed" in warned([0, 1], [1, 2])
    assert "With one seed per setting" in warned([0], [0, 1])
    assert warned([0, 1], [0, 1]) == ""


@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=1, max_size=8)))
def test_the_bayesian_mean_and_its_error_equal_scorio(outcomes: list[list[int]]) -> None:
    table = np.array(outcomes)
    expected = scorio.eval.bayes(table)
    assert bayesian_mean(table.sum(axis=1).astype(float), table.shape[1]) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=5, max_size=20))
def test_rank_correlation_equals_scipy_ties_included(points: list[tuple[int, int]]) -> None:
    x, y = np.array(points, dtype=float).T
    if np.ptp(x) and np.ptp(y):
        found = predictors(Points(["ce"] * len(x), list(map(str, range(len(x)))), y, {"entropy": x}))
        assert [one.correlation for one in found] == pytest.approx([stats.spearmanr(x, y).statistic])


def test_a_measurement_that_orders_the_gains_is_found_and_comes_first() -> None:
    steps = list(range(500, 507))
    told = []
    for one in measured({"ce": 0.0}, f"axes.pretrain.steps={steps}", seeds=2):  # an entropy that follows the gain
        rank = steps.index(one.plan.cell.recipe.pretrain.steps)
        passed = {k: values + 0.1 * rank * (one.after == "rl") for k, values in one.metrics["pass@k"].items()}
        entropy = {"entropy": np.full(10, 1 + 0.1 * rank + 0.01 * one.plan.cell.recipe.seed)}
        told.append(replace(one, heldout=one.heldout | entropy, metrics=one.metrics | {"pass@k": passed}))
    first = predictors(cell_points(measured_settings(told)))[0]
    assert (first.measurement, first.bases, first.shown) == ("entropy", 7, True)
    assert len(cell_points(measured_settings(told)).gain) == 14
    assert "correlates with the base model's entropy" in summary(found_in(told), NOWHERE)["verdict"][-1]


def test_seeds_and_rl_settings_do_not_count_as_base_settings() -> None:
    rng = np.random.default_rng(0)
    shown, bases = 0, [name for name in "abcde" for _ in range(4)]
    for _ in range(60):  # priors that differ, in everything and by chance: cells counted apart would show it in six of ten
        of_base = {name: np.repeat(rng.random(5), 4) + 0.1 * rng.random(20) for name in (*MEASUREMENTS, "gain")}
        shown += any(one.shown for one in predictors(Points(bases, bases, of_base.pop("gain"), of_base)))
    assert shown <= 6
    points = cell_points(measured_settings(measured({"ce": 0.0, "tail": 0.1}, "axes.rl.steps=[1,2]", seeds=2)))
    assert (len(points.bases), len(set(points.bases))) == (8, 2)


def test_noise_rarely_correlates_with_the_gain_however_few_the_cells() -> None:
    rng = np.random.default_rng(0)
    shown = 0
    for _ in range(100):
        found = predictors(Points(["ce"] * 5, list("abcde"), rng.random(5), {name: rng.random(5) for name in MEASUREMENTS}))
        shown += any(one.shown for one in found)
    assert shown <= 10


def test_a_perfect_correlation_over_five_cells_shows_for_one_measurement_but_not_among_eight() -> None:
    rng, order = np.random.default_rng(0), np.arange(5, dtype=np.float64)
    (alone,) = predictors(Points(["ce"] * 5, list("abcde"), order, {"entropy": order}))
    assert alone.shown
    assert alone.p == pytest.approx(2 / 120, abs=0.006)
    first = predictors(
        Points(["ce"] * 5, list("abcde"), order, {"entropy": order, **{str(number): rng.random(5) for number in range(7)}})
    )[0]
    assert (first.measurement, first.shown) == ("entropy", False)


def test_lucky_samples_before_rl_make_no_correlation() -> None:
    """Forty equal training runs and an RL that does nothing: measured on the samples that the gain starts from, -.7."""
    rng = np.random.default_rng(0)
    evaluations = []
    for plan in plans("axes.prior=[ce]", f"axes.seed={list(range(40))}"):
        for after in ("pretrain", "rl"):
            correct = rng.binomial(16, 0.3, 50) / 16
            one = evaluation(plan, after, 0.5, problems=50)
            metrics = one.metrics | {"avg@n": {16: correct}, "pass@k": {1: correct}}
            evaluations.append(replace(one, n=16, metrics=metrics))
    points = cell_points(measured_settings(evaluations))
    for name in ("pass@1", "pass@n", "mixed"):
        assert abs(stats.spearmanr(points.measured[name], points.gain).statistic) < 0.35


def test_cells_that_share_a_base_model_have_one_measurement_of_it() -> None:
    points = cell_points(measured_settings(measured({"ce": 0.0}, "axes.rl.steps=[1,2,3,4,5,6]")))
    assert len(points.gain) == 6
    assert points.varying == []


def test_fewer_than_five_base_settings_predict_nothing() -> None:
    assert predictors(cell_points(measured_settings(measured({"ce": 0.0, "tail": 0.1}, seeds=2)))) == []


def test_the_verdict_names_what_is_shown_and_nothing_else() -> None:
    said = " ".join(summary(found_in(measured({"ce": 0.05, "tail": 0.15, "head": 0.05})), NOWHERE)["verdict"])
    assert "RL raised pass@1 in 3 of 3 settings" in said
    assert re.search(r"tail gained more than ce in pass@1: \+\.(09|10)", said)
    assert "head gained" not in said
    assert "one seed per setting" in said


def test_without_a_difference_the_verdict_says_so() -> None:
    said = summary(found_in(measured({"ce": 0.05, "tail": 0.05, "head": 0.05}, seeds=2)), NOWHERE)["verdict"]
    start = "No prior is shown to gain more or less than ce: all 2 intervals, which hold jointly, include 0. At pass@1 this sweep "
    assert any(sentence.startswith(f"{start}cannot resolve differences below about .0") for sentence in said)
    assert not any("one seed" in sentence for sentence in said)


def test_an_impossible_difference_is_not_named_as_the_smallest_to_resolve() -> None:
    """Two seeds that diverge: the interval of a difference in pass@1 is wider than any difference can be."""
    said = summary(found_in(measured({"ce": 0.05, "tail": 0.05}, seeds=2, noise=5.0)), NOWHERE)["verdict"]
    assert any(sentence.endswith("At pass@1 so few seeds cannot resolve any difference.") for sentence in said)


def test_the_verdict_counts_unfinished_settings() -> None:
    evaluations = measured({"ce": 0.05, "tail": 0.05})[:-1]
    assert any(
        "Unfinished, so left out above: 1 of 2 settings" in sentence for sentence in summary(found_in(evaluations), NOWHERE)["verdict"]
    )
    assert summary(found_in(evaluations[:1]), NOWHERE)["verdict"] == ["No setting has been measured both before and after RL yet."]


def test_the_verdict_says_what_guessing_scores_on_each_task() -> None:
    def said(tasks: str) -> list[str]:
        found = [evaluation(plan, after, 0.5) for plan in plans("axes.prior=[ce]", tasks) for after in ("pretrain", "rl")]
        return [sentence for sentence in summary(found_in(found), NOWHERE)["verdict"] if "Guessing" in sentence]

    assert said("axes.task=[parity]") == ["Guessing scores .500 in pass@1: the floor, not 0."]
    assert said("axes.task=[countdown,parity]") == ["Guessing scores .500 (ce task=parity) in pass@1: the floor, not 0."]
    assert said("axes.task=[countdown]") == []


def test_two_sweeps_are_compared_setting_by_setting() -> None:
    first, second = measured({"ce": 0.05, "tail": 0.05}), measured({"tail": 0.15, "head": 0.05})
    found = across(first, second)
    assert [(one.setting, one.reference, one.k) for one in found] == [("b:tail", "a:tail", k) for k in (1, 8)]
    assert found[0].gain.value == pytest.approx(0.1, abs=0.02)


def test_settings_of_two_sweeps_are_matched_on_the_axes_that_both_have() -> None:
    rate = "rl.optimizer.learning_rate"
    found = across(measured({"ce": 0.0, "tail": 0.0}), measured({"ce": 0.0, "head": 0.1}, f"axes.{rate}=[2e-4, 4e-4]"))
    assert {(one.setting, one.reference) for one in found} == {(f"b:ce {rate}={value}", "a:ce") for value in (0.0002, 0.0004)}


def test_a_single_setting_is_compared_with_each_of_another_sweep() -> None:
    found = across(measured({"ce": 0.0}), measured({"tail": 0.1, "head": 0.0}))
    assert {(one.setting, one.reference) for one in found} == {("b:tail", "a:ce"), ("b:head", "a:ce")}


def test_sweeps_without_anything_to_pair_are_refused_with_the_reason() -> None:
    with pytest.raises(PriorlabError, match="share no setting: ce, tail against head, precision"):
        across(measured({"ce": 0.0, "tail": 0.0}), measured({"head": 0.0, "precision": 0.0}))
    with pytest.raises(PriorlabError, match="different problems, or with different seeds"):
        across(measured({"ce": 0.0}), measured({"ce": 0.0}, problems=50))
    with pytest.raises(PriorlabError, match="priorlab status b"):
        across(measured({"ce": 0.0}), measured({"ce": 0.0})[:1])


def test_the_expected_precision_matches_simulated_sweeps() -> None:
    expected = Power(problems=100, samples=16, seeds=3, comparisons=1)
    rng = np.random.default_rng(3)
    shown, means = 0, []
    for _ in range(400):
        luck = rng.normal(0, SEED_SPREAD, (3, 1))
        sampling = (rng.binomial(16, 0.14, (4, 3, 100)) / 16 - 0.14).sum(axis=0)  # before and after, in two settings
        values = expected.detectable + luck + rng.normal(0, PROBLEM_SPREAD, 100) + sampling
        means.append(values.mean())
        shown += contrasts([values])[0].shown
    assert np.std(means) == pytest.approx(expected.error, rel=0.1)
    assert shown / 400 == pytest.approx(0.8, abs=0.06)


def test_two_seeds_show_less_than_their_standard_error_suggests() -> None:
    """Two seeds hardly reveal their spread, which widens the interval of the finished sweep."""
    two, many = Power(5000, 64, 2, 4), Power(5000, 64, 50, 4)
    assert two.detectable / two.error > 3 * many.detectable / many.error


def test_what_it_takes_to_show_a_difference_is_sufficient_and_minimal() -> None:
    plan = Power(problems=128, samples=64, seeds=1, comparisons=4)
    problems = plan.problems_for(0.12)
    assert problems is not None
    assert replace(plan, problems=problems).detectable <= 0.12 < replace(plan, problems=problems - 1).detectable
    assert plan.problems_for(0.05) is None  # with one seed, their luck alone hides it
    assert plan.seeds_for(0.05) is None
    said = in_words(plan, 0.05)
    assert "128 problems x 64 samples x 1 seed:" in said
    assert "Showing 0.05 takes both more seeds and more problems." in said
    assert "Assumed spreads: 0.3 over problems (Countdown's), 0.03 over seeds (a guess)." in said


def test_a_sweep_without_rl_or_without_settings_has_nothing_to_compare() -> None:
    assert power_of(list(load_sweep("quickstart", ["rl=null"]).cells())) is None
    assert power_of(list(load_sweep("quickstart", ["axes.prior=[ce]"]).cells())) is None
    found = power_of(list(load_sweep("quickstart", ["axes.seed=[0,1,2]"]).cells()))
    assert found == Power(problems=128, samples=64, seeds=3, comparisons=4 * 3)  # four priors beside cross-entropy, at three k


def test_a_plan_counts_the_differences_that_the_report_makes() -> None:
    rate = "axes.rl.optimizer.learning_rate=[1e-4, 2e-4]"
    expected = power_of([plan.cell for plan in plans("axes.prior=[ce,tail,head]", rate, "evaluate.samples=8")])
    assert expected is not None
    found = found_in(measured({"ce": 0.0, "tail": 0.1, "head": 0.1}, rate)).differences
    assert expected.comparisons == max(one.family for one in found) == 2 * 2 * 2  # two rates, two priors, two k


def test_at_equal_rollouts_a_setting_that_samples_more_per_step_has_taken_fewer_steps(tmp_path: Path) -> None:
    evaluations = measured({"ce": 0.05, "tail": 0.05}, "rl.validation.every=5")
    for evaluation_, per_step in zip(evaluations[::2], (10, 20), strict=True):
        folder = evaluation_.plan.chain["rl"].folder(Home(tmp_path))
        folder.path.mkdir(parents=True)
        rows = [{"step": s, "rollouts_generated": per_step * s, "validation/pass@1": 0.1 + 0.01 * s} for s in (0, 5, 10)]
        folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 11, "loss": 0.0}]))
    found = equal_budgets(measured_settings(evaluations), Home(tmp_path))
    assert found is not None
    assert (found["steps"], found["rollouts"]) == (10, 100)
    gains = {row["arm"]: [row["sampled"], row["at_steps"], row["at_rollouts"]] for row in found["rows"]}
    assert gains["ce"] == pytest.approx([100, 0.1, 0.1])
    assert gains["tail"] == pytest.approx([200, 0.1, 0.05])
    assert equal_budgets(measured_settings(evaluations[:2]), Home(tmp_path)) is None  # nothing to tell apart
