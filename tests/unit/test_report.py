"""What a report holds: users' text stays text, many settings do not make many figures, and unfinished sweeps get a report too."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.summary import summary
from pipeline.experiment.graph import CellPlan, Graph
from pipeline.report.build import write_comparison
from pipeline.report.details import _extremes_and_middle, prior_rows
from pipeline.report.figures import figures
from pipeline.report.svg import COLOURS
from pipeline.store.folders import Home
from tests.unit.test_compare import evaluation, found_in, plans
from tests.unit.test_statistics import measured


def report(home: Home, evaluations: list[Evaluation], description: str = "") -> str:
    """report.html of the evaluations, each with samples of its first and last problems."""
    for one in evaluations:
        export = one.plan.evaluations[one.after].folder(home).export
        export.mkdir(parents=True, exist_ok=True)
        rows = [
            {"problem_id": problem, "sample": sample, "text": f"<b>{one.after}</b>", "correct": sample == 0}
            for problem in one.problems
            for sample in range(-1, 6)
        ]
        pq.write_table(pa.Table.from_pylist(rows), export / "samples.parquet")
    home.sweep("mine").mkdir(parents=True)
    graph = Graph([one.plan for one in evaluations if one.after == "pretrain"], {})
    found = found_in(evaluations)
    write_comparison("mine", description, graph, found, summary(found, home), home)
    return (home.sweep("mine") / "report.html").read_text()


def test_users_and_models_text_stays_text(tmp_path: Path) -> None:
    page = report(Home(tmp_path), measured({"ce": 0.05, "tail": 0.1}), "<script>alert('description')</script>")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "<b>rl</b>" not in page
    assert "&lt;b&gt;rl&lt;/b&gt;" in page


def test_a_name_with_brackets_is_whole_and_an_interval_is_set_apart(tmp_path: Path) -> None:
    name = "a [b] [c]"
    found = [replace(one, plan=renamed(one.plan, name)) for one in measured({"ce": 0.05})]
    page = report(Home(tmp_path), found)
    assert f"<td>{name}</td>" in page
    assert re.search(r"<td>[+-]?[.\d]+<small>\[", page)


def renamed(plan: CellPlan, prior: str) -> CellPlan:
    recipe = plan.cell.recipe
    cell = replace(
        plan.cell,
        coordinates=plan.cell.coordinates | {"prior": prior},
        recipe=recipe.model_copy(update={"prior": recipe.prior.model_copy(update={"name": prior})}),
    )
    return replace(plan, cell=cell)


def test_examples_show_the_greedy_response_first_and_few_samples(tmp_path: Path) -> None:
    page = report(Home(tmp_path), measured({"ce": 0.05}))
    first = page.partition('<ul class="responses">')[2].partition("</ul>")[0]
    assert first.count("<li") == 5
    assert first.index("greedy") < first.index("&#10003;")  # the greedy one is wrong here, sample 0 right


def test_with_many_settings_figures_show_the_first_ones_and_say_so(tmp_path: Path) -> None:
    rates = [round(1e-5 * (1 + number), 6) for number in range(15)]
    page = report(Home(tmp_path), measured({"ce": 0.05}, f"axes.rl.optimizer.learning_rate={rates}"))
    assert "The first 12 of 15 settings." in page
    assert "The first 40 of" not in page
    assert page.count("<tr><td>rl.optimizer") + page.count("<tr><td>ce rl.optimizer") >= 15  # the table has all


def test_a_sweep_that_has_not_reached_rl_has_a_report(tmp_path: Path) -> None:
    evaluations = [one for one in measured({"ce": 0.0, "tail": 0.0}) if one.after == "pretrain"]
    page = report(Home(tmp_path), evaluations)
    assert "No setting has been measured both before and after RL yet." in page
    assert "What RL gains" not in page


def test_each_figure_says_how_many_settings_it_leaves_out(tmp_path: Path) -> None:
    evaluations = measured({"ce": 0.05}, f"axes.pretrain.steps={list(range(500, 542))}")
    varied = [replace(one, heldout=one.heldout | {"entropy": np.linspace(0.4, 0.6, 10) + at}) for at, one in enumerate(evaluations)]
    page = report(Home(tmp_path), varied)
    for said in ("40 of 42 finished settings.", "40 of 41 differences.", "40 of 42 settings; the correlations are over all."):
        assert f"The first {said}" in page


def test_a_setting_keeps_its_colour_while_others_are_unfinished(tmp_path: Path) -> None:
    evaluations = measured({"ce": 0.05, "tail": 0.05})
    found = found_in([one for one in evaluations if one is not evaluations[1]])  # RL of ce
    (gains,) = (figure.svg for figure in figures(found, Home(tmp_path)) if figure.title == "What RL gains")
    assert COLOURS[1].lower() in gains.lower()
    assert COLOURS[0].lower() not in gains.lower()


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ([0.7, 0.2], ["gained most", "gained least"]),
        ([0.7, 0.2, -0.1], ["gained most", "median gain", "lost most"]),
        ([-0.2, -0.1], ["lost least", "lost most"]),
        ([0.3], ["gained most"]),
    ],
)
def test_examples_are_labelled_by_their_gain(gains: list[float], words: list[str]) -> None:
    assert list(_extremes_and_middle(np.array(gains)).values()) == words


def test_priors_of_one_name_are_all_listed() -> None:
    evaluations = [evaluation(plan, "pretrain", 0.5) for plan in plans("axes.prior=[{use: tail, k: 3}, {use: tail, k: 4}]")]
    assert [row[2] for row in prior_rows(found_in(evaluations).settings)] == ["lambda_tail=-0.1 k=3", "lambda_tail=-0.1 k=4"]
