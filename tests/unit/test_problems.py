"""Problems that RL gains and loses, and how reliably they are solved."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.measured import MeasuredSetting
from pipeline.compare.problems import changed_problems, cover, drawn_taus
from pipeline.compare.summary import summary
from pipeline.report.figures import figures
from pipeline.report.plots import cover_curves
from pipeline.report.tables import changed_problems as table
from tests.unit.stores import shelf_at
from tests.unit.test_compare import NOWHERE, evaluation, found_in, measured_settings, plans
from tests.unit.test_compare_commands import stored
from tests.unit.test_report import report

N = 4


def counted(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]], prior: str = "ce", n: int = N) -> list[Evaluation]:
    """Correct samples of n, per seed and problem; a problem's greedy response is correct where most samples are."""
    found = []
    cells = plans(f"axes.prior=[{prior}]", f"axes.seed={list(range(len(before)))}", f"evaluate.samples={n}")
    for plan, *sides in zip(cells, before, after, strict=True):
        for role, counts in zip(("pretrain", "rl"), sides, strict=True):
            rates = np.array(counts) / n
            metrics = {"pass@k": {1: rates}, "avg@n": {n: rates}, "greedy": {1: np.round(rates)}, "greedy_length": {1: 9 * rates}}
            found.append(replace(evaluation(plan, role, 1.0, problems=len(counts)), n=n, metrics=metrics))
    return found


def of(evaluations: list[Evaluation]) -> MeasuredSetting:
    (setting,) = measured_settings(evaluations)
    return setting


def test_problems_lost_and_gained_are_averaged_over_seeds() -> None:
    setting = of(counted([[0, 0, 1, 4, 0], [1, 0, 0, 4, 2]], [[1, 0, 0, 4, 4], [0, 0, 0, 3, 0]]))
    found = changed_problems(setting)
    assert found is not None
    assert (found["lost"]["value"], found["gained"]["value"]) == pytest.approx((3 / 10, 2 / 10))
    assert found["lost"]["low"] < 0.3 < found["lost"]["high"]
    assert (found["greedy"]["lost"]["value"], found["greedy"]["gained"]["value"]) == pytest.approx((0, 1 / 10))


def test_lost_by_luck_is_what_two_halves_of_the_bases_samples_differ_by() -> None:
    def halves(correct: int) -> float:
        samples = [1] * correct + [0] * (N - correct)
        split = [(set(half), set(range(N)) - set(half)) for half in itertools.combinations(range(N), N // 2)]
        return float(np.mean([any(samples[i] for i in one) and not any(samples[i] for i in other) for one, other in split]))

    found = changed_problems(of(counted([[0, 1, 2, 3, 4]], [[0, 0, 0, 0, 0]])))
    assert found is not None
    assert found["by_luck"]["value"] == pytest.approx(np.mean([halves(correct) for correct in range(N + 1)]))
    assert halves(1) == 0.5


def test_cover_counts_problems_at_or_above_tau() -> None:
    setting = of(counted([[0, 1, 3, 7, 10]], [[10, 10, 9, 3, 1]], n=10))
    assert [[one.value for one in cover(setting, tau)] for tau in (0.1, 0.3, 0.7, 0.9, 1.0)] == [
        pytest.approx(shares) for shares in ([0.8, 1.0], [0.6, 0.8], [0.4, 0.6], [0.2, 0.6], [0.2, 0.4])
    ]
    found = changed_problems(setting)
    assert found is not None
    assert [(one["tau"], one["before"]["value"], one["after"]["value"]) for one in found["cover"]] == [
        (0.1, 0.8, 1.0), (0.5, 0.4, 0.6), (0.9, 0.2, 0.6),
    ]  # fmt: skip


def test_the_mean_of_cover_over_tau_is_pass_at_1() -> None:
    counts = np.random.default_rng(0).integers(0, 11, (2, 30)).tolist()
    setting = of(counted(counts, counts, n=10))
    assert drawn_taus(setting) == [tenth / 10 for tenth in range(1, 11)]
    assert np.mean([cover(setting, tau)[0].value for tau in drawn_taus(setting)]) == pytest.approx(np.mean(counts) / 10)


def test_the_curve_begins_where_one_sample_is_enough() -> None:
    assert drawn_taus(of(counted([[1] * 5], [[0] * 5], n=64)))[:3] == [1 / 64, 0.1, 0.2]
    assert drawn_taus(of(counted([[1] * 5], [[0] * 5], n=1))) == [1.0]


def test_before_rl_there_is_cover_and_nothing_gained_or_lost() -> None:
    setting = of([one for one in counted([[0, 1, 2, 3, 4]], [[0] * 5]) if one.after == "pretrain"])
    assert changed_problems(setting) is None
    assert [one.value for one in cover(setting, 0.5)] == pytest.approx([0.6])
    svg = cover_curves([setting])
    assert "before RL" in svg
    assert "after RL" not in svg


def test_without_greedy_responses_the_table_has_dashes() -> None:
    evaluations = counted([[0, 1, 2, 3, 4]], [[4, 3, 2, 1, 0]])
    for one in evaluations:
        del one.metrics["greedy"]
    (problems,) = summary(found_in(evaluations), NOWHERE)["problems"]
    assert problems["greedy"] is None
    headings, (row,) = table([problems])
    assert dict(zip(headings, row, strict=True))["greedy lost"] == "-"


def test_the_report_has_the_table_and_the_figure(tmp_path: Path) -> None:
    shelf = shelf_at(tmp_path)
    rng = np.random.default_rng(0)
    sides: list[Any] = [rng.integers(0, 5, (1, 20)).tolist() for _ in range(4)]
    evaluations = counted(sides[0], sides[1]) + counted(sides[2], sides[3], prior="tail")
    stored(shelf, [(one.plan.evaluations[one.after], one) for one in evaluations], "evaluate.samples=4")
    found = shelf.json("report", "mine")["problems"]
    assert [one["setting"] for one in found] == ["ce", "tail"]
    assert [one["setting"] for one in shelf.json("report", "mine", "--filter", "tail")["problems"]] == ["tail"]
    for name in ("report.md", "report.html"):
        page = (shelf.home.sweep("mine") / name).read_text(encoding="utf-8")
        assert all(cell.split(" [")[0] in page for row in table(found)[1] for cell in row), name
        assert "What RL does to problems" in page
        assert "How reliably problems are solved" in page
        assert "Cover@.5" in page


def test_a_sweep_without_rl_has_no_table_of_problems(tmp_path: Path) -> None:
    evaluations = [one for one in counted([[0, 1, 2, 3, 4]], [[0] * 5]) if one.after == "pretrain"]
    page = report(shelf_at(tmp_path).home, evaluations)
    assert "What RL does to problems" not in page
    assert "How reliably problems are solved" in [figure.title for figure in figures(found_in(evaluations), NOWHERE)]


def test_metrics_of_whole_responses_are_shown_where_they_were_measured() -> None:
    evaluations = counted([[0, 1, 2, 3, 4]], [[4, 3, 2, 1, 0]]) + counted([[0, 1, 2, 3, 4]], [[4, 3, 2, 1, 0]], prior="tail")
    for one in evaluations[:2]:  # tail was evaluated by an older version
        drop = 2.0 if one.after == "rl" else 0.0
        one.metrics["distinct_answers"] = {N: np.linspace(3, 5, 5) - drop}
        one.metrics["response_entropy"] = {N: np.linspace(0, 1, 5)}
        one.metrics["maj@k"] = {1: np.linspace(0, 1, 5), 2: np.linspace(0, 1, 5)}
    found = found_in(evaluations)
    problems = summary(found, NOWHERE)["problems"]
    headings, (ce, tail) = table(problems)
    assert dict(zip(headings, ce, strict=True)) | {"distinct answers": "4.00 to 2.00", "response entropy": ".500 to .500"} == dict(
        zip(headings, ce, strict=True)
    )
    assert tail[-2:] == ["-", "-"]
    assert table(problems[1:])[0] == headings[:-2]
    (votes,) = [figure for figure in figures(found, NOWHERE) if figure.title == "maj@k before and after RL"]
    assert ">ce<" in votes.svg
    assert ">tail<" not in votes.svg


def test_without_votes_and_whole_responses_the_report_is_silent_about_them(tmp_path: Path) -> None:
    page = report(shelf_at(tmp_path).home, counted([[0, 1, 2, 3, 4]], [[4, 3, 2, 1, 0]]))
    assert not [word for word in ("maj@k", "istinct answers", "esponse entropy", "KL") if word in page]
