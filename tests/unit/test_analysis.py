"""A sweep as data frames: what they hold is what the report says, and their values are enough to compute it anew."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from pipeline.analysis import Sample, SweepResults, joint_intervals, load_sweep_results, mean_interval
from pipeline.errors import PriorlabError
from scripts.figures import own_analysis
from tests.unit.stores import Shelf, shelf_at
from tests.unit.test_compare_commands import stored
from tests.unit.test_shown import ROOT
from tests.unit.test_statistics import measured

SEEDS = "axes.seed=[0,1,2]"
FRAMES = ("results", "samples", "declared", "levels", "gains", "adjusted", "learning", "settings", "metrics", "problems", "heldout")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    shelf = shelf_at(tmp_path_factory.mktemp("analysis"))
    evaluations = measured({"ce": 0.0, "tail": 0.1}, "evaluate.samples=8", seeds=3)
    stored(shelf, [(one.plan.evaluations[one.after], one) for one in evaluations], SEEDS)
    for one in evaluations:
        if one.after == "pretrain":  # RL's log ends in a line that is still being written
            for kind, text in (("pretrain", '{"step": 10, "entropy": 1.5}\n'), ("rl", '{"step": 1, "reward_raw": 0.5}\n{"st')):
                log = one.plan.chain[kind].folder(shelf.home).metrics
                log.parent.mkdir(parents=True, exist_ok=True)
                log.write_text(text)
    return shelf


@pytest.fixture(scope="module")
def sweep(shelf: Shelf) -> SweepResults:
    return load_sweep_results("mine", shelf.home.path)


def test_contrasts_and_gains_are_those_of_the_report(shelf: Shelf, sweep: SweepResults) -> None:
    for options, results in (((), sweep), (("--unpooled",), load_sweep_results("mine", shelf.home.path, pooled=False))):
        said = shelf.json("report", "mine", *options)
        for key, frame in (("levels", results.levels), ("differences", results.gains)):
            assert len(frame) == len(said[key]) > 0
            for row, one in zip(frame.to_dict("records"), said[key], strict=True):
                assert (row["setting"], row["reference"], row["k"]) == (one["setting"], one["reference"], one["k"])
                for name in ("value", "low", "high", "superiority", "shown"):
                    assert row[name] == pytest.approx(math.nan if one[name] is None else one[name], nan_ok=True), name
        (gained,) = results.settings.query("setting == 'tail' and metric == 'pass@k' and k == 1").to_dict("records")
        (row,) = (row for row in said["rows"] if row["setting"] == "tail")
        assert gained["gain_low"] == pytest.approx(row["pass@1"]["gain"]["low"])
        assert gained["after_high"] == pytest.approx(row["pass@1"]["after"]["high"])
    assert list(sweep.adjusted) == list(sweep.levels)


def test_results_are_those_of_the_file(shelf: Shelf, sweep: SweepResults) -> None:
    assert shelf.call("report", "mine").exit_code == 0
    file = pandas.read_csv(shelf.home.sweep("mine") / "results.csv")
    assert list(file) == list(sweep.results)
    pandas.testing.assert_series_equal(file["value"], sweep.results["value"])
    assert set(sweep.results["exploration"]) == {"none"}  # a name, and not a missing value
    assert sweep.samples["cell"].value_counts().to_dict() == {f"{prior}-seed{seed}": 2 for prior in ("ce", "tail") for seed in range(3)}


def test_the_values_of_problems_give_the_reports_numbers_anew(sweep: SweepResults) -> None:
    values = sweep.problems.query("metric == 'pass@k' and k == 1")

    def table(setting: str, rows: pandas.DataFrame) -> np.ndarray:
        return rows[rows["setting"] == setting].pivot(index="seed", columns="problem", values="value").to_numpy()

    before, after = values[values["before_rl"]], values[values["after"] == "rl"]
    (ce,) = sweep.settings.query("setting == 'ce' and metric == 'pass@k' and k == 1").to_dict("records")
    found = mean_interval(table("ce", before))
    assert (found.value, found.low, found.high) == pytest.approx((ce["before"], ce["before_low"], ce["before_high"]))
    entropy = sweep.heldout.query("metric == 'entropy' and before_rl and setting == 'ce'")
    assert entropy["value"].mean() == pytest.approx(sweep.settings.query("setting == 'ce' and metric == 'entropy'")["before"].item())
    unpooled = joint_intervals([Sample(table("tail", after) - table("ce", after))])
    assert unpooled[0].value == pytest.approx(sweep.levels.query("metric == 'pass@k' and k == 1")["value"].item())


def test_the_log_of_each_stage_is_there_step_by_step(sweep: SweepResults) -> None:
    assert len(sweep.metrics) == 2 * 6
    assert sweep.metrics.groupby("stage")["step"].max().to_dict() == {"pretrain": 10, "rl": 1}
    assert sweep.metrics.query("cell == 'tail-seed2' and stage == 'rl'")["reward_raw"].tolist() == [0.5]


def test_before_anything_is_evaluated_only_the_logs_are_there(tmp_path: Path) -> None:
    shelf = shelf_at(tmp_path)
    stored(shelf, [])
    sweep = load_sweep_results("mine", str(shelf.home.path))
    assert sweep.metrics.empty
    assert {"cell", "setting", "prior", "seed", "stage", "step"} <= set(sweep.metrics)
    for frame in set(FRAMES) - {"metrics"}:
        with pytest.raises(PriorlabError, match=r"'mine' below .* has no finished evaluation yet; `priorlab status mine`"):
            getattr(sweep, frame)


def test_a_running_sweep_has_what_is_there_with_the_same_columns(tmp_path: Path, sweep: SweepResults) -> None:
    shelf = shelf_at(tmp_path)
    only = [one for one in measured({"ce": 0.0, "tail": 0.1}, "evaluate.samples=8") if one.after == "pretrain"]
    stored(shelf, [(one.plan.evaluations[one.after], one) for one in only])
    begun = load_sweep_results("mine", shelf.home.path)
    for frame in FRAMES:
        assert set(getattr(begun, frame)) >= set(getattr(sweep, frame)) - {"entropy", "reward_raw"}, frame
    assert begun.settings["after"].isna().all()
    assert begun.levels.empty


def test_an_unknown_sweep_is_refused_with_those_that_there_are(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIORLAB_HOME", str(shelf.home.path))
    assert load_sweep_results("mine").name == "mine"
    with pytest.raises(PriorlabError, match=r"no sweep 'yours' below .*; there are: mine"):
        load_sweep_results("yours")


def test_a_figure_of_ones_own(shelf: Shelf, sweep: SweepResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIORLAB_HOME", str(shelf.home.path))
    points = own_analysis.draw("mine", tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 1000
    after = sweep.settings.query("metric == 'pass@k' and k == 1").set_index("setting")["after"]
    assert points.groupby(level="setting")["pass@1"].mean().to_dict() == pytest.approx(after.to_dict())


def test_without_anything_to_draw_the_script_says_so_and_leaves_no_file(shelf: Shelf, tmp_path: Path) -> None:
    begun = shelf_at(tmp_path)
    only = [one for one in measured({"ce": 0.0, "tail": 0.1}, "evaluate.samples=8") if one.after == "pretrain"]
    stored(begun, [(one.plan.evaluations[one.after], one) for one in only])
    cases = (
        (begun, "mine", "figure.svg", "error: sweep 'mine' has no cell measured after RL yet; `priorlab status mine`"),
        (begun, "yours", "figure.svg", "error: no sweep 'yours' below"),
        (shelf, "mine", "figure.doc", "error: Format 'doc' is not supported"),
        (shelf, "mine", "nowhere/figure.svg", "error: [Errno 2] No such file or directory"),
    )
    for home, sweep, name, said in cases:
        command = [sys.executable, str(ROOT / "scripts" / "figures" / "own_analysis.py"), sweep, str(tmp_path / name)]
        ran = subprocess.run(command, env=os.environ | {"PRIORLAB_HOME": str(home.home.path)}, capture_output=True, text=True)
        assert (ran.returncode, ran.stderr.startswith(said), ran.stderr.count("\n")) == (1, True, 1), ran.stderr
        assert not (tmp_path / name).exists()


SECTION = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8").partition("## Your own analysis")[2].partition("\n## ")[0]


def test_the_example_of_the_page_gives_the_reports_numbers(
    shelf: Shelf, sweep: SweepResults, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRIORLAB_HOME", str(shelf.home.path))
    (example,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example.replace("quickstart", "mine").replace("precision", "tail"), names)
    (level,) = sweep.levels.query("metric == 'pass@k' and k == 1").to_dict("records")
    assert names["interval"].value == pytest.approx(level["value"])
    assert names["of_two"].tolist() == [0.0, 0.5, 1.0]
    assert str(level["k"]) in capsys.readouterr().out


def test_the_page_names_every_frame_and_column(sweep: SweepResults) -> None:
    assert all(f"| `{frame}` |" in SECTION for frame in FRAMES)
    for frame in ("levels", "settings", "problems", "heldout"):
        assert [column for column in getattr(sweep, frame) if f"`{column}`" not in SECTION] == [], frame
