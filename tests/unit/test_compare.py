"""Intervals and gains: paired, reproducible, honest about what is missing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.cli.terminal import results_table
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.findings import Findings, findings
from pipeline.compare.intervals import mean_interval, perplexity
from pipeline.compare.measured import MeasuredSetting, Quantity, shown_ks
from pipeline.compare.results import COLUMNS, result_rows, write_samples
from pipeline.compare.summary import summary
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_sweep
from pipeline.experiment.graph import CellPlan, build_graph
from pipeline.report.plots import milestone_curves
from pipeline.report.tables import comparison
from pipeline.store.folders import Home
from tests.unit.stores import shelf_at

PROBLEMS = 40
NOWHERE = Home(Path("nowhere"))


def plans(*overrides: str) -> list[CellPlan]:
    return build_graph(load_sweep("quickstart", overrides).cells()).cells


def evaluation(plan: CellPlan, after: str, rate: float, seed: int = 0, problems: int = PROBLEMS) -> Evaluation:
    values = np.random.default_rng(seed).random(problems) * rate
    return Evaluation(
        plan=plan,
        after=after,
        step=1,
        n=8,
        problems=[f"p{i}" for i in range(problems)],
        metrics={
            "pass@k": {1: values, 8: np.minimum(1, 3 * values)},
            "avg@n": {8: values},
            "greedy": {1: np.round(values)},
            "greedy_length": {1: 9 * values},
            "length": {8: 9 * values},
        },
        heldout={name: np.linspace(0.4, 0.6, 10) for name in ("cross_entropy", "entropy", "head_mass", "tail_mass")},
        step_seconds=np.linspace(1, 3, 5) if after == "rl" else np.array([]),
    )


def found_in(evaluations: list[Evaluation], plans: list[CellPlan] | None = None) -> Findings:
    """In a sweep of these cells, by default those of the evaluations."""
    cells = {plan.cell.id: plan.cell for plan in plans or [one.plan for one in evaluations]}
    return findings(list(cells.values()), evaluations)


def measured_settings(evaluations: list[Evaluation]) -> list[MeasuredSetting]:
    return found_in(evaluations).settings


def test_an_interval_covers_the_mean_of_the_population_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = [bool((found := mean_interval(rng.beta(2, 5, 150))).low <= 2 / 7 <= found.high) for _ in range(300)]
    assert 0.91 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.2, 0.3, 0.4], [0.1] * 50, [[0.1] * 50] * 3])
def test_few_or_equal_values_give_no_interval(values: list[float]) -> None:
    found = mean_interval(np.array(values))
    assert found.value == pytest.approx(np.mean(values))
    assert (np.isnan(found.low), np.isnan(found.high), found.shown) == (True, True, False)


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(1).random(50)
    assert mean_interval(values) == mean_interval(values)


def test_seeds_widen_an_interval_when_they_disagree() -> None:
    noise = np.random.default_rng(2).normal(0, 0.01, (3, 100))
    agreeing, disagreeing = mean_interval(0.5 + noise), mean_interval(0.5 + noise + np.array([[-0.1], [0.0], [0.1]]))
    assert disagreeing.high - disagreeing.low > 5 * (agreeing.high - agreeing.low)


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    found = perplexity(np.array([0.0, np.log(4.0)] * 5))
    assert found.value == pytest.approx(2.0)
    assert found.low < found.value < found.high
    assert perplexity(np.full(10, 1000.0)).value == np.inf


def test_a_gain_is_paired_per_problem() -> None:
    (plan,) = plans("axes.prior=[ce]")
    before = evaluation(plan, "pretrain", 0.5)
    raised = before.metrics["pass@k"][1] + np.linspace(0.099, 0.101, PROBLEMS)
    after = Evaluation(**{**before.__dict__, "after": "rl", "metrics": {"pass@k": {1: raised}}})
    (setting,) = measured_settings([before, after])
    values = setting.values(Quantity("pass@k", 1), less=1)
    assert values is not None
    gain = mean_interval(values)
    # Nearly the same .1 on every problem: however unequal the problems, a paired gain has next to no spread.
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1), abs=0.001)


def test_the_gain_is_over_the_checkpoint_that_rl_starts_from() -> None:
    (plan,) = plans("axes.prior=[ce]", "midtrain=countdown")
    base, middle, last = (evaluation(plan, after, rate) for after, rate in (("pretrain", 0.2), ("midtrain", 0.4), ("rl", 0.8)))
    (setting,) = measured_settings([base, middle, last])
    assert (setting.before, setting.after) == ([middle], [last])
    rows = list(result_rows("mine", [base, middle, last]))
    assert list(dict.fromkeys(row["after"] for row in rows)) == ["pretrain", "midtrain", "rl"]


def test_checkpoints_along_the_way_are_rows_by_step_and_do_not_enter_the_gain() -> None:
    (plan,) = plans(
        "axes.prior=[ce]", "pretrain.steps=800", "pretrain.evaluate_at=[0.25]", "midtrain=countdown", "midtrain.evaluate_at=[0.5]"
    )
    early, late = (replace(evaluation(plan, after, 0.5), milestone=True, step=step) for (after, step) in plan.milestones)
    base, middle = (replace(evaluation(plan, after, 0.5), step=step) for after, step in (("pretrain", 800), ("midtrain", 200)))
    found = [early, base, late, middle, evaluation(plan, "rl", 0.8)]
    (setting,) = measured_settings(found)
    assert setting.before == [middle]
    rows = list(dict.fromkeys((row["after"], row["step"]) for row in result_rows("mine", found)))
    assert rows == [("pretrain", 200), ("pretrain", 800), ("midtrain", 100), ("midtrain", 200), ("rl", 1)]
    pretrained, midtrained = 800 * 16 * 64, 200 * 8 * 128
    assert [e.tokens for e in found] == [
        pretrained // 4, pretrained, pretrained + midtrained // 2, pretrained + midtrained, pretrained + midtrained
    ]  # fmt: skip
    assert "tokens" in milestone_curves([setting], found, [1, 8])


def test_a_gain_over_different_problems_is_refused() -> None:
    (plan,) = plans("axes.prior=[ce]")
    with pytest.raises(PriorlabError, match="different problems before and after RL"):
        found_in([evaluation(plan, "pretrain", 0.5), evaluation(plan, "rl", 0.5, problems=30)])


def test_seeds_of_a_prior_form_one_setting_and_other_axes_do_not() -> None:
    found = measured_settings([evaluation(plan, "pretrain", 0.5) for plan in plans("axes.prior=[ce,tail]", "axes.seed=[0,1]")])
    assert [(setting.name, setting.seeds) for setting in found] == [("ce", [0, 1]), ("tail", [0, 1])]
    found = measured_settings([evaluation(plan, "pretrain", 0.5) for plan in plans("axes.prior=[ce]", "axes.rl.steps=[1,2]")])
    assert [setting.name for setting in found] == ["ce rl.steps=1", "ce rl.steps=2"]


def test_a_setting_without_rl_has_no_gain() -> None:
    (plan,) = plans("axes.prior=[ce]")
    (row,) = summary(found_in([evaluation(plan, "pretrain", 0.5)]), NOWHERE)["rows"]
    assert row["pass@1"]["after"] is None
    assert row["pass@1"]["gain"] is None
    assert row["pass@1"]["before"]["value"] > 0


def test_rows_of_results_have_the_documented_columns() -> None:
    (plan,) = plans("axes.prior=[tail]")
    rows = list(result_rows("mine", [evaluation(plan, "pretrain", 0.5)]))
    assert all(tuple(row) == COLUMNS for row in rows)
    metrics = {(row["metric"], row["k"]) for row in rows}
    assert {("pass@k", 1), ("pass@k", 8), ("greedy", 1), ("perplexity", ""), ("tail_mass", 5)} <= metrics
    assert {(row["objective"], row["knobs"]) for row in rows} == {("shaped", "lambda_tail=-0.1 k=5")}
    assert [row["ci_low"] for row in rows if row["metric"] == "greedy"] == [""]  # 0 for all problems: their spread is not known
    for row in (row for row in rows if row["metric"] != "greedy"):
        assert float(row["ci_low"]) <= float(row["value"]) <= float(row["ci_high"])


def test_the_cost_of_rl_is_a_result_labelled_with_its_exploration() -> None:
    (plan,) = plans("axes.prior=[ce]", "rl.exploration=diversity")
    rows = list(result_rows("mine", [evaluation(plan, after, 0.5) for after in ("pretrain", "rl")]))
    assert {row["exploration"] for row in rows} == {"diversity"}
    (cost,) = [row for row in rows if row["metric"] == "seconds_per_step"]
    assert (cost["after"], cost["n"], cost["value"]) == ("rl", 5, "2")


def test_samples_of_tasks_with_different_verdicts_share_a_file(tmp_path: Path) -> None:
    shelf = shelf_at(tmp_path)
    graph = shelf.sweep("axes.prior=[ce,tail]")
    for further, plan in zip(({}, {"worked": [True]}), graph.cells, strict=True):
        folder = shelf.done(plan.evaluations["pretrain"])
        pq.write_table(pa.table({"problem_id": ["p"], "correct": [True], **further}), folder.export / "samples.parquet")
    write_samples(tmp_path / "samples.parquet", graph, shelf.home)
    found = pq.read_table(tmp_path / "samples.parquet")
    assert found.column_names == ["cell", "task", "after", "step", "problem_id", "correct", "worked"]
    assert found["cell"].to_pylist() == [plan.cell.id for plan in graph.cells]
    assert found["worked"].to_pylist() == [None, True]


def test_shown_columns_are_one_eight_and_the_number_of_samples() -> None:
    (plan,) = plans("axes.prior=[ce]")
    assert shown_ks([evaluation(plan, "pretrain", 0.5)]) == [1, 8]
    assert shown_ks([]) == []


def test_a_gain_never_pairs_different_cells() -> None:
    first, second = plans("axes.prior=[ce]", "axes.seed=[0,1]")
    (setting,) = measured_settings([evaluation(first, "pretrain", 0.5), evaluation(second, "rl", 0.5)])
    assert setting.values(Quantity("pass@k", 1), less=1) is None
    assert setting.after_at("pass@k", 1) is None


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    ("of_seeds", "of_problems", "of_both", "widest"),
    [(1, 0, 0.05, {}), (0, 1, 0.1, {2: 1.8, 3: 1.3, 5: 1.2}), (1, 1, 0.3, {}), (0, 0, 1, {3: 2.0, 5: 1.6})],
    ids=["seeds differ", "problems differ", "both differ alike", "only noise"],
)
def test_intervals_cover_whatever_differs(
    seeds: int, of_seeds: float, of_problems: float, of_both: float, widest: dict[int, float]
) -> None:
    """The numbers are the components of the mean's variance. docs/comparison.md has the coverage of more simulations."""
    rng = np.random.default_rng(5)
    covered, widths, problems = [], [], 100
    for _ in range(300):
        values = rng.normal(0, np.sqrt(of_seeds * seeds), (seeds, 1)) + rng.normal(0, np.sqrt(of_problems * problems), (1, problems))
        found = mean_interval(values + rng.normal(0, np.sqrt(of_both * seeds * problems), (seeds, problems)))
        covered.append(found.low <= 0 <= found.high)
        widths.append((found.high - found.low) / 2)
    assert np.mean(covered) >= 0.92
    assert np.median(widths) <= widest.get(seeds, np.inf) * 1.96 * np.sqrt(of_seeds + of_problems + of_both)


def test_a_narrow_terminal_gets_one_table_per_k() -> None:
    (plan,) = plans("axes.prior=[ce]")
    rows = summary(found_in([evaluation(plan, "pretrain", 0.5), evaluation(plan, "rl", 0.5)]), NOWHERE)["rows"]
    narrow = results_table("mine, pass@8", *comparison(rows, ["pass@8"]))
    headings = ["setting", "entropy", "perplexity", "pass@8 before", "after", "gain [95%, jointly]"]
    assert [column.header for column in narrow.columns] == headings
    assert Console(width=200).measure(narrow).maximum <= 90
