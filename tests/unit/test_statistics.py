"""Comparisons of many settings: what their intervals promise, what is paired with what, and which words follow."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import scorio.eval
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.compare.contrasts import Difference, Kind
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.intervals import bayesian_mean
from pipeline.compare.measured import Quantity
from pipeline.compare.power import power_of
from pipeline.compare.predictors import MEASUREMENTS, Points, cell_points, predictors
from pipeline.compare.settings import pairs, planned_settings
from pipeline.compare.summary import summary
from pipeline.compare.two_sweeps import compare_across
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_sweep
from pipeline.experiment.graph import CellPlan
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


PASS_1 = Quantity("pass@k", 1)


def at_one(evaluations: list[Evaluation], plans: list[CellPlan] | None = None, kind: Kind = "gain") -> list[Difference]:
    return [one for one in found_in(evaluations, plans).differences[kind] if one.quantity == PASS_1]


def across(first: list[Evaluation], second: list[Evaluation], kind: Kind = "gain") -> list[Difference]:
    return compare_across(kind, ("a", "b"), found_in(first), found_in(second))


def said_of(evaluations: list[Evaluation]) -> list[str]:
    sentences: list[str] = summary(found_in(evaluations), NOWHERE)["verdict"]
    return sentences


def test_cross_entropy_is_the_reference_wherever_it_comes_in_the_axis() -> None:
    found = at_one(measured({"tail": 0.1, "ce": 0.0, "head": -0.1}))
    assert [(one.setting, one.reference, round(one.interval.value, 1)) for one in found] == [("tail", "ce", 0.1), ("head", "ce", -0.1)]
    assert all(one.family == 6 and one.interval.shown for one in found)  # two settings, at two k and greedy


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
    gains = [tail.values(PASS_1, less=1), ce.values(PASS_1, less=1)]
    assert gains[0] is not None
    assert gains[1] is not None
    assert found.interval.value == pytest.approx((gains[0] - gains[1])[[0, 2]].mean())


def of(evaluations: list[Evaluation], prior: str, after: str) -> list[Evaluation]:
    return [one for one in evaluations if (one.plan.cell.recipe.prior.name, one.after) == (prior, after)]


@pytest.mark.parametrize("prior", ["ce", "tail"])
def test_an_unfinished_seed_does_not_exclude_the_setting(prior: str) -> None:
    whole = measured({"ce": 0.0, "tail": 0.1}, seeds=3)
    without = [one for one in whole if one is not of(whole, prior, "rl")[1]]
    found = found_in(without)
    assert [(one.setting, one.reference, one.seeds) for one in found.differences["gain"] if one.quantity == PASS_1] == [
        ("tail", "ce", 2)
    ]
    (row,) = (row for row in summary(found, NOWHERE)["rows"] if row["setting"] == prior)
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
    assert {(one.setting, one.reference) for one in found.differences["gain"]} == {
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

    assert warned([0, 1], [1, 2]).startswith("Differences that rest on one seed (tail) are between single training runs")
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


def test_a_measurement_that_orders_the_levels_is_found_and_comes_first() -> None:
    steps = list(range(500, 507))
    told = []
    for one in measured({"ce": 0.0}, f"axes.pretrain.steps={steps}", seeds=2):  # an entropy that follows the level
        rank = steps.index(one.plan.cell.recipe.pretrain.steps)
        passed = {k: values + 0.1 * rank * (one.after == "rl") for k, values in one.metrics["pass@k"].items()}
        entropy = {"entropy": np.full(10, 1 + 0.1 * rank + 0.01 * one.plan.cell.recipe.seed)}
        told.append(replace(one, heldout=one.heldout | entropy, metrics=one.metrics | {"pass@k": passed}))
    first = predictors(cell_points(measured_settings(told)))[0]
    assert (first.measurement, first.bases, first.shown) == ("entropy", 7, True)
    assert len(cell_points(measured_settings(told)).level) == 14
    assert "pass@1 after RL correlates with the base model's entropy (+1.00, p < .001)" in said_of(told)[-1]


def test_seeds_and_rl_settings_do_not_count_as_base_settings() -> None:
    rng = np.random.default_rng(0)
    shown, bases = 0, [name for name in "abcde" for _ in range(4)]
    for _ in range(60):  # priors that differ, in everything and by chance: cells counted apart would show it in six of ten
        of_base = {name: np.repeat(rng.random(5), 4) + 0.1 * rng.random(20) for name in (*MEASUREMENTS, "level")}
        shown += any(one.shown for one in predictors(Points(bases, bases, of_base.pop("level"), of_base)))
    assert shown <= 6
    points = cell_points(measured_settings(measured({"ce": 0.0, "tail": 0.1}, "axes.rl.steps=[1,2]", seeds=2)))
    assert (len(points.bases), len(set(points.bases))) == (8, 2)
    linked = 'axes={"prior, rl.steps": [[ce, 1], [ce, 2], [tail, 2]], seed: [0]}'
    points = cell_points(
        measured_settings([evaluation(plan, after, 0.5) for plan in plans(linked, "axes.prior=null") for after in ("pretrain", "rl")])
    )
    assert (len(points.bases), len(set(points.bases))) == (3, 2)


def test_noise_rarely_correlates_with_the_level_however_few_the_cells() -> None:
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


def test_a_level_that_has_nothing_to_do_with_the_base_is_rarely_foretold() -> None:
    """Six base settings; a gain, after minus before, would be foretold by base pass@1 in most such sweeps."""
    rng = np.random.default_rng(0)
    shown = 0
    for _ in range(60):
        evaluations = []
        for plan in plans("axes.prior=[ce]", "axes.pretrain.steps=[501,502,503,504,505,506]"):
            for after in ("pretrain", "rl"):
                rate = rng.uniform(0.2, 0.4)
                correct = rng.binomial(16, rate, 50) / 16
                one = evaluation(plan, after, 0.5, problems=50)
                evaluations.append(replace(one, n=16, metrics=one.metrics | {"avg@n": {16: correct}, "pass@k": {1: correct}}))
        shown += any(one.shown for one in predictors(cell_points(measured_settings(evaluations))))
    assert shown <= 7


def test_cells_that_share_a_base_model_have_one_measurement_of_it() -> None:
    points = cell_points(measured_settings(measured({"ce": 0.0}, "axes.rl.steps=[1,2,3,4,5,6]")))
    assert len(points.level) == 6
    assert points.varying == []


def test_fewer_than_five_base_settings_predict_nothing() -> None:
    assert predictors(cell_points(measured_settings(measured({"ce": 0.0, "tail": 0.1}, seeds=2)))) == []


def test_the_verdict_names_what_is_shown_and_nothing_else() -> None:
    said = " ".join(said_of(measured({"ce": 0.05, "tail": 0.15, "head": 0.05}, seeds=3)))
    assert "RL raised pass@1 in 3 of 3 settings" in said
    assert re.search(r"tail ends higher than ce in pass@1: \+\.(09|10)", said)
    assert re.search(r"tail gained more than ce in pass@1: \+\.(09|10)", said)
    assert "head ends" not in said
    assert "head gained" not in said
    assert "one seed" not in said


def test_levels_come_before_gains() -> None:
    """The paper claims that RL ends higher from a precise prior: here it ends higher only because it starts higher."""
    evaluations = measured({"ce": 0.1, "tail": 0.1}, seeds=3)
    for number, one in enumerate(evaluations):
        if one.plan.cell.recipe.prior.name == "tail":
            raised = {k: values + 0.2 for k, values in one.metrics["pass@k"].items()}
            evaluations[number] = replace(one, metrics=one.metrics | {"pass@k": raised})
    said = said_of(evaluations)
    places = [
        next(number for number, sentence in enumerate(said) if re.search(words, sentence))
        for words in (r"tail ends higher than ce in pass@1: \+\.(19|20)", "No prior is shown to gain more or less than ce")
    ]
    assert places == sorted(places)
    (level,), (gain,) = at_one(evaluations, kind="level"), at_one(evaluations)
    assert (level.interval.value, gain.interval.value) == pytest.approx((0.2, 0.0), abs=0.02)


def test_one_seed_says_nothing_about_priors_however_large_the_difference() -> None:
    said = " ".join(said_of(measured({"ce": 0.0, "tail": 0.4, "head": 0.1})))
    assert "RL raised pass@1 in 2 of 3 training runs" in said
    assert "With one seed per setting, differences are between single training runs and say nothing about settings." in said
    assert not re.search("ends (higher|lower) than|gained (more|less)|is shown to", said)
    assert all(np.isnan(one.interval.superiority) for one in at_one(measured({"ce": 0.0, "tail": 0.4})))


def test_without_a_difference_the_verdict_says_so_and_what_would_have_shown() -> None:
    said = said_of(measured({"ce": 0.05, "tail": 0.05, "head": 0.05}, seeds=3))
    jointly = "all 2 intervals, which hold jointly, include 0. Four in five such sweeps would show a true difference of .0"
    assert any(sentence.startswith(f"No prior is shown to end higher or lower than ce after RL: {jointly}") for sentence in said)
    assert any(sentence.startswith(f"No prior is shown to gain more or less than ce: {jointly}") for sentence in said)
    assert not any("one seed" in sentence for sentence in said)


def test_an_impossible_difference_is_not_named_as_one_that_would_show() -> None:
    """Two seeds that diverge: the interval of a difference in pass@1 is wider than any difference can be."""
    said = said_of(measured({"ce": 0.05, "tail": 0.05}, seeds=2, noise=5.0))
    assert any(sentence.endswith("So few seeds cannot show a difference in pass@1.") for sentence in said)


def test_levels_given_the_base_are_compared_once_seeds_tell_how_the_two_move_together() -> None:
    """After RL is .3 more than half of before, whatever the prior: ends and gains differ, the ends given the base do not."""
    rng, evaluations = np.random.default_rng(0), []
    for plan in plans("axes.prior=[ce,tail,head,precision]", "axes.seed=[0,1,2,3,4]"):
        start = 0.3 + 0.1 * (plan.cell.recipe.prior.name == "tail") + rng.normal(0, 0.03)
        for after, rate in (("pretrain", start), ("rl", 0.3 + start / 2 + rng.normal(0, 0.001))):
            one = evaluation(plan, after, 0.5)
            noise = rng.normal(0, 0.01, len(one.problems))
            evaluations.append(replace(one, metrics=one.metrics | {"pass@k": {1: rate + noise - noise.mean()}}))
    ends, gained, adjusted = (at_one(evaluations, kind=kind)[0].interval for kind in ("level", "gain", "adjusted"))
    assert ends.value == pytest.approx(0.05, abs=0.02)
    assert gained.value == pytest.approx(-0.05, abs=0.02)
    assert adjusted.low <= 0 <= adjusted.high
    assert adjusted.value == pytest.approx(0, abs=0.003)
    assert at_one(measured({"ce": 0.0, "tail": 0.1}, seeds=3), kind="adjusted") == []  # too few for a slope


def test_the_verdict_counts_unfinished_settings() -> None:
    evaluations = measured({"ce": 0.05, "tail": 0.05})[:-1]
    assert any("Unfinished, so left out above: 1 of 2 settings" in sentence for sentence in said_of(evaluations))
    assert summary(found_in(evaluations[:1]), NOWHERE)["verdict"] == ["No setting has been measured both before and after RL yet."]


def test_the_verdict_says_what_guessing_scores_on_each_task() -> None:
    def said(tasks: str) -> list[str]:
        found = [evaluation(plan, after, 0.5) for plan in plans("axes.prior=[ce]", tasks) for after in ("pretrain", "rl")]
        return [sentence for sentence in summary(found_in(found), NOWHERE)["verdict"] if "Guessing" in sentence]

    assert said("axes.task=[parity]") == ["Guessing scores .500 in pass@1: the floor, not 0."]
    assert said("axes.task=[countdown,parity]") == ["Guessing scores .500 (ce task=parity) in pass@1: the floor, not 0."]
    assert said("axes.task=[countdown]") == []


def test_a_head_start_is_not_taken_for_a_better_end_where_bases_are_measured_with_error() -> None:
    """RL changes nothing; one prior starts .1 higher. The error of 40 problems would flatten a slope and leave some of that."""
    slopes = 0
    for seed in range(30):
        rng, evaluations = np.random.default_rng(seed), []
        for plan in plans("axes.prior=[ce,tail,head,precision]", "axes.seed=[0,1,2,3,4]"):
            start = 0.4 + 0.1 * (plan.cell.recipe.prior.name == "tail") + rng.normal(0, 0.02)
            rates = np.clip(start + rng.normal(0, 0.2, 40), 0, 1)
            for after in ("pretrain", "rl"):
                one = evaluation(plan, after, 0.5)
                evaluations.append(replace(one, metrics=one.metrics | {"pass@k": {1: rng.binomial(64, rates) / 64}}))
        slopes += bool(at_one(evaluations, kind="adjusted"))
    assert slopes <= 3  # bases that vary hardly more than they err give no slope, and so no claim


def test_a_setting_with_one_finished_seed_counts_for_nothing_beside_others() -> None:
    evaluations = [
        one for one in measured({"ce": 0.0, "tail": 0.1, "head": 0.0}, seeds=3) if one.plan.cell.id not in ("tail-seed1", "tail-seed2")
    ]
    said = said_of(evaluations)
    assert said[0] == "RL shows no change in pass@1 in any of 2 settings."
    assert "Not counted, since one finished seed says nothing about a setting: tail." in said


def test_where_there_is_no_interval_no_change_is_claimed() -> None:
    """Four problems are too few for one."""
    said = said_of(measured({"ce": 0.2, "tail": 0.3}, problems=4, seeds=2))
    assert said[0] == ("RL's change in pass@1 has no interval in any of 2 settings: too few problems, or the same on every problem.")
    assert not any("no change" in sentence for sentence in said)


def test_two_sweeps_pool_their_seeds_though_their_settings_have_the_same_names() -> None:
    """Unpooled, each of the three intervals would rest on two seeds, and one would be ten times as wide as another."""
    gains = {"ce": 0.0, "tail": 0.0, "head": 0.0}
    first, second = measured(gains, seeds=2), measured(gains, seeds=2, noise=0.03)
    widths = [one.interval.high - one.interval.low for one in across(first, second, "level") if one.quantity == PASS_1]
    assert max(widths) < 1.5 * min(widths)


def test_two_sweeps_are_compared_alike_in_either_order() -> None:
    first = measured({"ce": 0.0}, seeds=2)
    second = measured({"tail": 0.1, "head": 0.0, "precision": 0.02}, seeds=2)
    there = {one.setting.split(":")[1]: one.interval for one in across(first, second) if one.quantity == PASS_1}
    back = {one.reference.split(":")[1]: one.interval for one in across(second, first) if one.quantity == PASS_1}
    assert there.keys() == back.keys()
    assert sum(np.isfinite(interval.low) for interval in there.values()) >= 2
    for name, interval in there.items():
        assert (interval.low, interval.high) == pytest.approx((-back[name].high, -back[name].low), rel=0.05, nan_ok=True)


def test_gains_on_different_problems_do_not_share_their_luck() -> None:
    lucky = []
    for one in measured({"ce": 0.05}, "axes.task=[countdown,parity]", seeds=4):
        parity = one.plan.cell.recipe.task.name == "parity"
        luck = 0.2 * one.plan.cell.recipe.seed if parity and one.after == "rl" else 0.0
        passed = {k: values + luck for k, values in one.metrics["pass@k"].items()}
        problems = [f"{name} of parity" for name in one.problems] if parity else one.problems
        lucky.append(replace(one, problems=problems, metrics=one.metrics | {"pass@k": passed}))
    widths = {name: gain.high - gain.low for (name, at), gain in found_in(lucky).gains.items() if at == PASS_1}
    of_countdown, of_parity = (next(width for name, width in widths.items() if task in name) for task in ("countdown", "parity"))
    assert of_countdown < 0.05 < of_parity


def test_what_all_settings_share_of_a_seed_widens_gains_and_cancels_in_contrasts() -> None:
    def widths(luck: float) -> tuple[float, float]:
        evaluations = []
        for one in measured({"ce": 0.0, "tail": 0.0, "head": 0.0}, seeds=5):
            shared = luck * (one.plan.cell.recipe.seed - 2) if one.after == "rl" else 0.0
            passed = {k: values + shared for k, values in one.metrics["pass@k"].items()}
            evaluations.append(replace(one, metrics=one.metrics | {"pass@k": passed}))
        found = found_in(evaluations)
        gain = next(interval for (_, at), interval in found.gains.items() if at == PASS_1)
        contrast = next(one.interval for one in found.differences["gain"] if one.quantity == PASS_1)
        return gain.high - gain.low, contrast.high - contrast.low

    (plain, between), (lucky, still) = widths(0.0), widths(0.05)
    assert lucky > 5 * plain
    assert still < 1.5 * between


def test_two_sweeps_are_compared_setting_by_setting() -> None:
    first, second = measured({"ce": 0.05, "tail": 0.05}), measured({"tail": 0.15, "head": 0.05})
    found = across(first, second)
    assert [(one.setting, one.reference, one.quantity.name) for one in found] == [
        ("b:tail", "a:tail", name) for name in ("pass@1", "pass@8", "greedy")
    ]
    assert found[0].interval.value == pytest.approx(0.1, abs=0.02)


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


def test_a_sweep_without_rl_or_without_settings_has_nothing_to_compare() -> None:
    assert power_of(list(load_sweep("quickstart", ["rl=null"]).cells()), NOWHERE) is None
    assert power_of(list(load_sweep("quickstart", ["axes.prior=[ce]"]).cells()), NOWHERE) is None


def test_a_plan_counts_the_differences_that_the_report_makes() -> None:
    rate = "axes.rl.optimizer.learning_rate=[1e-4, 2e-4]"
    expected = power_of([plan.cell for plan in plans("axes.prior=[ce,tail,head]", rate, "evaluate.samples=8")], NOWHERE)
    assert expected is not None
    found = found_in([with_votes(one) for one in measured({"ce": 0.0, "tail": 0.1, "head": 0.1}, rate)]).differences["level"]
    assert expected.comparisons == max(one.family for one in found) == 2 * 2 * 4  # two rates, two priors; two k, greedy and votes
    assert expected.settings == 3


def with_votes(one: Evaluation) -> Evaluation:
    return replace(one, metrics=one.metrics | {"cons@n": {one.n: one.metrics["greedy"][1]}})
