"""What joint intervals promise: coverage, correction for their number, what is learnt of seeds from all settings, and power."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from pipeline.compare.contrasts import Difference
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.findings import findings
from pipeline.compare.intervals import Components, Error, JointInterval, Sample, Spread, joint_intervals, mean_interval
from pipeline.compare.measured import MeasuredSetting, Quantity
from pipeline.compare.pooling import pooled_spread
from pipeline.compare.power import COUNTDOWN, Power, Spreads, in_words, known_spreads, measured_spreads
from pipeline.experiment.compose import load_sweep
from pipeline.experiment.graph import build_graph
from pipeline.store.files import write_json_atomically
from pipeline.store.folders import Home
from tests.unit.stores import shelf_at
from tests.unit.test_compare import evaluation, plans

Floats = NDArray[np.float64]


def joint(*values: Floats) -> list[JointInterval]:
    return joint_intervals([Sample(one) for one in values])


def test_a_family_of_null_differences_shows_one_as_rarely_as_promised() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        shared = rng.normal(0, 0.1, (1, 100))
        wrong += any(found.shown for found in joint(*(shared + rng.normal(0, 0.1, (1, 100)) for _ in range(8))))
    assert wrong / 200 <= 0.1  # eight uncorrected intervals are wrong in 29%, these in 5% of many more trials


def test_more_comparisons_widen_each_interval() -> None:
    values = [np.random.default_rng(seed).normal(0.05, 0.2, (3, 50)) for seed in range(10)]
    alone, together = joint(*values[:1])[0], joint(*values)[0]
    assert together.value == alone.value
    assert together.low < alone.low < alone.high < together.high
    single = mean_interval(values[0])
    assert (alone.low, alone.high) == (single.low, single.high)


def test_correlated_differences_are_corrected_less_than_independent_ones() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, (1, 100))
    together = joint(*(shared + rng.normal(0, 0.1, (1, 100)) for _ in range(8)))
    apart = joint(*(rng.normal(0, 1, (1, 100)) for _ in range(8)))

    def widening(found: list[JointInterval]) -> float:
        return float(np.mean([(one.high - one.low) / 2 for one in found]) / 0.1)

    assert 1.9 < widening(together) < 2.4 < 2.6 < widening(apart) < 3.0


def test_superiority_is_one_half_for_equals_one_for_a_clear_winner_and_absent_at_one_seed() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (4, 20))
    noise -= noise.mean()
    equal, winner, constant, alone = joint(noise, noise + 0.3, np.full((4, 20), 0.1), noise[:1])
    assert (equal.superiority, winner.superiority) == pytest.approx((0.5, 1.0), abs=0.001)
    assert (equal.shown, winner.shown) == (False, True)
    assert not constant.shown  # no spread is no certainty
    missing = {"low": None, "high": None, "superiority": None, "detectable": None}
    assert constant.as_dict() == pytest.approx({"value": 0.1} | missing)
    assert alone.as_dict()["superiority"] is None


def test_a_large_family_is_corrected_as_bonferroni_does() -> None:
    rng = np.random.default_rng(0)
    values = [rng.normal(0, 1, (1, 40)) for _ in range(501)]
    most = joint(*values)[0]
    expected = joint_intervals([Sample(values[0])])[0]
    ratio = (most.high - most.low) / (expected.high - expected.low)
    assert ratio == pytest.approx(4.307 / 2.023, abs=0.02)  # t quantiles at .05 / 501 / 2 and .05 / 2, 39 degrees


def sweep(rng: np.random.Generator, seeds: int, spread: float, arms: int = 5, unequal: float = 1.0) -> Floats:
    """Levels of settings that do not differ, (settings, seeds, problems); the last spreads `unequal` times as much over seeds."""
    runs = rng.normal(0, spread, (arms, seeds, 1))
    runs[-1] *= unequal
    return runs + rng.normal(0, 0.2, (arms, 1, 60)) + rng.normal(0, 0.2, (arms, seeds, 60))


def contrasts(levels: Floats, *, pooled: bool) -> list[JointInterval]:
    spread = pooled_spread(levels.mean(axis=2), levels.shape[2]) if pooled else None
    parts = None if spread is None else (spread.difference,)
    return joint_intervals([Sample(one - levels[0], parts) for one in levels[1:]])


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.03, 0.2])
def test_settings_that_do_not_differ_are_rarely_told_apart(seeds: int, spread: float) -> None:
    """`scripts/benchmarks/intervals.py` has more of this; 150 sweeps tell 5% from 13%."""
    rng = np.random.default_rng(1)
    wrong = [any(one.shown for one in contrasts(sweep(rng, seeds, spread), pooled=True)) for _ in range(150)]
    assert np.mean(wrong) <= 0.09


def test_two_seeds_of_five_settings_show_more_than_two_of_one() -> None:
    rng = np.random.default_rng(2)

    def half_width(pooled: bool) -> float:
        found = [contrasts(sweep(rng, 2, 0.03), pooled=pooled)[0] for _ in range(20)]
        return float(np.median([(one.high - one.low) / 2 for one in found]))

    assert half_width(True) < half_width(False) / 2


def test_settings_that_spread_unequally_over_seeds_are_not_pooled() -> None:
    rng = np.random.default_rng(3)

    def pooled(unequal: float) -> float:
        tables = (sweep(rng, 5, 0.2, unequal=unequal).mean(axis=2) for _ in range(100))
        return float(np.mean([pooled_spread(table, 60) is not None for table in tables]))

    assert pooled(1.0) > 0.88  # the test is at 5%
    assert pooled(6.0) < 0.3


def test_what_all_settings_share_of_a_seed_cancels_in_differences() -> None:
    rng = np.random.default_rng(4)
    means = rng.normal(0, 0.01, (4, 5))
    plain, shared = (pooled_spread(means + luck, 60) for luck in (0.0, rng.normal(0, 1, (1, 5))))
    assert plain is not None
    assert shared is not None
    assert shared.difference.square == pytest.approx(plain.difference.square)
    assert shared.shared.square > 100 * plain.shared.square


def test_an_unfinished_setting_takes_nothing_from_what_the_others_show() -> None:
    rng = np.random.default_rng(8)
    whole = rng.normal(0, 0.01, (4, 5))
    missing = np.concatenate([whole, rng.normal(0, 0.01, (1, 5))])
    missing[-1, 2:] = np.nan
    complete, unfinished = pooled_spread(whole, 60), pooled_spread(missing, 60)
    assert complete is not None
    assert unfinished is not None
    assert (complete.difference.freedom, unfinished.difference.freedom) == (12, 13)
    assert unfinished.shared.freedom == 4


def test_the_spread_of_complete_tables_is_that_of_the_two_way_layout() -> None:
    means = np.random.default_rng(9).normal(0, 0.01, (3, 4))
    found = pooled_spread(means, 60)
    assert found is not None
    pairs = [np.var(means[i] - means[j], ddof=1) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.difference.square == pytest.approx(60 * np.mean(pairs))
    assert found.own.square == pytest.approx(found.difference.square / 2)


def test_one_setting_or_one_seed_has_nothing_to_pool() -> None:
    assert pooled_spread(np.ones((1, 5)), 60) is None
    assert pooled_spread(np.ones((5, 1)), 60) is None


def test_the_detectable_difference_is_shown_in_four_of_five_sweeps() -> None:
    rng = np.random.default_rng(5)
    detectable = float(np.median([contrasts(sweep(rng, 5, 0.05), pooled=True)[0].detectable for _ in range(40)]))
    shown = []
    for _ in range(200):
        levels = sweep(rng, 5, 0.05)
        levels[1] += detectable
        shown.append(contrasts(levels, pooled=True)[0].shown)
    assert 0.7 <= np.mean(shown) <= 0.9


@pytest.mark.parametrize(("freedom", "level", "power"), [(1, 0.05, 0.8), (2, 0.01, 0.95), (4, 0.005, 0.8), (24, 0.025, 0.9)])
def test_the_detectable_difference_knows_that_widths_are_uncertain(freedom: int, level: float, power: float) -> None:
    """Where all error is of seeds, the test is Student's, and its power that of the noncentral t distribution."""
    error = Error(Components(Spread(60 * 0.01, freedom), Spread(0.0, 59), 0.0), (freedom + 1, 60))
    noncentrality = error.detectable(level, power) / np.sqrt(0.01 / (freedom + 1))
    bound = stats.t.isf(level / 2, freedom)
    assert stats.nct.sf(bound, freedom, noncentrality) == pytest.approx(power, abs=0.01)


@pytest.mark.parametrize("size", [5, 100, 200, 400])
def test_families_of_hundreds_hold_jointly(size: int) -> None:
    """Of unrelated means, each with an interval at the level found, no more than 5% of families have one that misses."""
    values = np.random.default_rng(0).normal(0, 1, (size, 1, 40))
    first = joint_intervals([Sample(one, of=str(number)) for number, one in enumerate(values)])[0]
    level = 2 * stats.t.sf((first.high - first.value) / (values[0].std(ddof=1) / np.sqrt(40)), 39)
    assert 0.04 < 1 - (1 - level) ** size < 0.052


SPREADS = Spreads(problems=0.01, runs=0.0004, both=0.02, sampling=0.12, seeds=5, source="here")


def planned(seeds: int, *, problems: int = 100, samples: int = 16) -> Power:
    return Power(problems, samples, seeds, settings=3, comparisons=2, spreads=SPREADS)


def test_a_plan_expects_what_simulated_sweeps_show() -> None:
    plan, rng = planned(4), np.random.default_rng(6)
    shown, means = [], []
    for _ in range(300):
        levels = rng.normal(0, np.sqrt(SPREADS.runs / 2), (3, 4, 1)) + rng.normal(0, np.sqrt(SPREADS.problems / 2), (3, 1, 100))
        levels = levels + rng.normal(0, np.sqrt(SPREADS.both / 2), (3, 4, 100)) + (rng.binomial(16, 0.14, (3, 4, 100)) / 16 - 0.14)
        levels[1] += plan.detectable()
        found = contrasts(levels, pooled=True)[0]
        means.append(found.value)
        shown.append(found.shown)
    rest = SPREADS.both + 2 * SPREADS.sampling / 16
    assert np.std(means) == pytest.approx(np.sqrt((SPREADS.problems + rest / 4) / 100 + SPREADS.runs / 4), rel=0.12)
    assert np.mean(shown) == pytest.approx(0.8, abs=0.08)


def test_more_seeds_help_against_what_differs_from_run_to_run() -> None:
    """Most of the spread over problems is seed x problem, which seeds divide as problems do."""
    both = replace(SPREADS, problems=0.0, runs=0.0)
    four, sixteen = (replace(planned(seeds), spreads=both).detectable() for seeds in (4, 16))
    assert 2 < four / sixteen < 2.5  # by half, and fewer seeds are known less well
    fixed = replace(SPREADS, both=0.0, runs=0.0, sampling=0.0)
    assert replace(planned(4), spreads=fixed).detectable() == pytest.approx(replace(planned(16), spreads=fixed).detectable())


def test_what_it_takes_to_show_a_difference_is_sufficient_and_minimal() -> None:
    plan = planned(5)
    problems = plan.problems_for(0.04)
    assert problems is not None
    assert replace(plan, problems=problems).detectable() <= 0.04 < replace(plan, problems=problems - 1).detectable()
    assert plan.problems_for(0.01) is None  # with five seeds, their luck alone hides it
    more = plan.problems_for(0.04, power=0.95)
    assert more is None or more > problems


def test_a_plan_of_one_seed_says_that_it_shows_nothing_about_settings() -> None:
    said = in_words(planned(1))
    assert said.startswith(
        "100 problems x 16 samples x 1 seed: one seed shows nothing about settings. With axes.seed=[0,1,2,3,4], four in"
    )
    assert "--effect 0.015, added to this command" in said
    assert in_words(planned(3)).startswith("With 100 problems x 16 samples x 3 seeds, four in five such sweeps would show")


def simulated(spreads: Spreads, seeds: int, problems: int, n: int = 16, seed: int = 7) -> tuple[list[Difference], list[Evaluation]]:
    rng, evaluations = np.random.default_rng(seed), []
    of_problem = {name: rng.normal(0, np.sqrt(spreads.problems / 2), problems) for name in ("ce", "tail", "head")}
    for plan in plans("axes.prior=[ce,tail,head]", f"axes.seed={list(range(seeds))}"):
        run = rng.normal(0, np.sqrt(spreads.runs / 2)) + rng.normal(0, np.sqrt(spreads.both / 2), problems)
        rates = np.clip(0.5 + of_problem[plan.cell.recipe.prior.name] + run, 0, 1)
        for after in ("pretrain", "rl"):
            one = evaluation(plan, after, 0.5, problems=problems)
            passed = rng.binomial(n, rates) / n
            evaluations.append(replace(one, n=n, metrics=one.metrics | {"pass@k": {1: passed}, "avg@n": {n: passed}}))
    found = findings([one.plan.cell for one in evaluations[::2]], evaluations)
    return found.differences["level"], evaluations


def measured_settings(evaluations: list[Evaluation]) -> list[MeasuredSetting]:
    return findings([one.plan.cell for one in evaluations[::2]], evaluations).settings


def test_a_finished_sweep_tells_how_large_each_spread_is() -> None:
    levels, evaluations = simulated(SPREADS, seeds=20, problems=400)
    found = findings([one.plan.cell for one in evaluations[::2]], evaluations)
    measured = measured_spreads(levels, found.settings)
    assert measured is not None
    assert measured.problems == pytest.approx(SPREADS.problems, rel=0.25)
    assert SPREADS.runs / 3 < measured.runs < 3 * SPREADS.runs
    assert measured.both == pytest.approx(SPREADS.both, rel=0.25)
    assert measured.sampling == pytest.approx(0.25, abs=0.03)
    assert measured_spreads([one for one in levels if one.quantity != Quantity("pass@k", 1)], found.settings) is None


def test_the_upper_limit_of_the_runs_spread_holds_as_often_as_it_says() -> None:
    below = 0
    for seed in range(60):
        levels, evaluations = simulated(SPREADS, seeds=4, problems=60, seed=seed)
        measured = measured_spreads(levels, measured_settings(evaluations))
        below += measured is not None and measured.runs < SPREADS.runs
    assert below <= 19  # 20% of 60, and what chance adds; a point estimate would be below in half of them


def test_a_plan_takes_the_spreads_of_the_finished_sweep_with_the_most_seeds(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert known_spreads("countdown", home) == COUNTDOWN
    for name, task, seeds in (("small", "countdown", 2), ("large", "countdown", 9), ("other", "parity", 20)):
        kept = {"task": task} | replace(SPREADS, seeds=seeds).__dict__
        home.sweep(name).mkdir(parents=True)
        write_json_atomically(home.sweep(name) / "comparison.json", {"digest": "", "summary": {"spreads": kept}})
    (home.sweep("small") / "comparison.json").write_text("{")
    assert known_spreads("countdown", home) == replace(SPREADS, seeds=9, source="sweep large")


def test_plan_answers_with_seeds_problems_samples_and_hours(tmp_path: Path) -> None:
    shelf = shelf_at(tmp_path)
    untimed = shelf.json("plan", "quickstart", "--effect", "0.1")
    assert [way["seeds"] for way in untimed["ways"]] == sorted(way["seeds"] for way in untimed["ways"])
    assert {way["hours"] for way in untimed["ways"]} == {None}
    problems = [way["problems"] for way in untimed["ways"]]
    assert problems == sorted(problems, reverse=True)
    for node in build_graph(load_sweep("quickstart").cells()).stages.values():
        shelf.done(node)  # in one second
    timed = shelf.json("plan", "quickstart", "--effect", "0.1")
    first = timed["ways"][0]
    evaluations = 10 * first["problems"] / 128  # two per prior, as long as they have problems
    assert first["hours"] == pytest.approx(first["seeds"] * (10 + evaluations) / 3600)
    assert "seeds" in shelf.call("plan", "quickstart", "--effect", "0.1").output
    assert (
        "hours: formulas for a100s"
        in shelf.call("plan", "quickstart", "--effect", "0.1", "--vocabulary", "20", "--device", "a100").output
    )
    assert min(problems) >= 5  # with fewer the report gives no interval
    assert "--power does nothing without --effect" in shelf.refusal("plan", "quickstart", "--power", "0.9")
    assert "give one of them" in shelf.refusal("plan", "quickstart", "--costs", "--effect", "0.1")
    assert "can detect no effect" in shelf.refusal("plan", "quickstart", "rl=null", "--effect", "0.1")
