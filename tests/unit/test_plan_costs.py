"""`priorlab plan --costs`: one line per kind of stage, for any recipe, running nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.experiment.config_files import available

PAPER = [name for name in available("sweep") if name.startswith("paper_")]


def planned(home: Path, *arguments: str) -> list[dict[str, object]]:
    done = CliRunner().invoke(app, ["plan", *arguments, "--costs", "--json"], env={"PRIORLAB_HOME": str(home)})
    assert done.exit_code == 0, done.output
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", PAPER)
def test_each_paper_sweep_gets_a_line_per_kind_of_stage(name: str, tmp_path: Path) -> None:
    entries = {entry["stage"]: entry for entry in planned(tmp_path, name, "--vocabulary", "151936")}
    assert list(entries)[:3] == ["pretrain", "midtrain", "rl"]
    assert all(len(entry["stages"]) == 7 for entry in entries.values())  # type: ignore[arg-type]
    pretrain, midtrain = entries["pretrain"], entries["midtrain"]
    assert (pretrain["tokens"], midtrain["tokens"]) == (pytest.approx(500e9, rel=1e-3), pytest.approx(100e9, rel=1e-3))
    # Six operations per parameter and token are the usual estimate; attention, embedding and recomputation account for the rest.
    assert 6 * 0.4 < float(pretrain["flops"]) / 500e9 / float(pretrain["active_parameters"]) < 6 * 2.5  # type: ignore[arg-type]
    assert all(entry["fits"] for entry in entries.values())


def test_hours_follow_from_devices_and_utilisation(tmp_path: Path) -> None:
    common = ("paper_1b", "--vocabulary", "151936", "--devices", "8")
    (one, *_), (other, *_) = planned(tmp_path, *common), planned(tmp_path, *common, "--device", "a100", "--utilisation", "0.2")
    assert one["flops"] == other["flops"]
    assert float(other["hours"]) / float(one["hours"]) == pytest.approx(989 / 312 * 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["quickstart"], "give --vocabulary"), (["quickstart", "--vocabulary", "20", "--device", "x1"], "unknown device 'x1'")],
)
def test_what_is_missing_is_named(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plan", *arguments, "--costs"], env={"PRIORLAB_HOME": str(tmp_path)})
    assert done.exit_code != 0
    assert message in str(done.exception)
