"""`priorlab plan --costs`: one line per kind of stage, for any recipe, running nothing."""

from __future__ import annotations

import json
import re
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
    assert float(other["computing_hours"]) / float(one["computing_hours"]) == pytest.approx(989 / 312 * 2)  # type: ignore[arg-type]


def test_more_devices_share_states_and_work(tmp_path: Path) -> None:
    (few, *_), (many, *_) = (planned(tmp_path, "paper_4b", "--vocabulary", "151936", "--devices", count) for count in ("16", "64"))
    assert few["computing_hours"] == pytest.approx(4 * many["computing_hours"])  # type: ignore[operator]
    assert few["memory_gib"]["optimizer"] == pytest.approx(4 * many["memory_gib"]["optimizer"])  # type: ignore[index]


def test_on_more_devices_the_micro_batch_is_what_is_left_of_the_batch(tmp_path: Path) -> None:
    """Sixteen blocks over eight devices: two each at a time, not the recipe's sixteen."""
    few, many = (planned(tmp_path, "quickstart", "--vocabulary", "20", "--devices", count)[0] for count in ("1", "8"))
    assert (few["micro_batch"], many["micro_batch"]) == (16, 2)
    assert few["memory_gib"]["activations"] == pytest.approx(8 * many["memory_gib"]["activations"])  # type: ignore[index]


def test_links_decide_how_long_all_wait(tmp_path: Path) -> None:
    common = ("paper_20b_a1b", "--vocabulary", "151936")
    fast, slow = (planned(tmp_path, *common, "--network", rate)[0] for rate in ("50", "5"))
    assert slow["sent_gib"] == fast["sent_gib"]
    assert slow["sending_hours"] == pytest.approx(10 * fast["sending_hours"], rel=0.05)  # type: ignore[operator]
    assert slow["waiting_hours"] > fast["waiting_hours"] > 0  # type: ignore[operator]


def test_the_parts_of_the_expected_time_add_up_and_are_paid_for(tmp_path: Path) -> None:
    entry = planned(tmp_path, "paper_4b", "--vocabulary", "151936", "--price", "2.5")[0]
    parts = [entry[f"{name}_hours"] for name in ("computing", "waiting", "saving", "failure")]
    assert sum(parts) == pytest.approx(entry["expected_hours"])  # type: ignore[arg-type]
    assert entry["price"] == pytest.approx(entry["expected_hours"] * 64 * 2.5)  # type: ignore[operator]


def test_the_best_launches_fit_and_none_is_slower_than_the_recipes(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["plan", "paper_20b_a1b", "--launches", "--json", "--vocabulary", "151936"], env={"PRIORLAB_HOME": str(tmp_path)}
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    for stage in ("pretrain", "midtrain"):
        (own,) = (row for row in rows if row["stage"] == stage and row["own"])
        found = {row["devices"]: row for row in rows if row["stage"] == stage and not row["own"]}
        assert set(found) == {16, 32, 64, 128, 256}
        assert all(row["memory"] <= 0.9 * 80e9 for row in found.values())
        assert found[64]["expected_hours"] <= own["expected_hours"]
        hours = [found[devices]["expected_hours"] for devices in sorted(found)]
        assert hours == sorted(hours, reverse=True)

    (own,) = (row for row in rows if row["stage"] == "rl" and row["own"])
    found = {row["devices"]: row for row in rows if row["stage"] == "rl" and not row["own"]}
    assert set(found) == {16, 32, 64}  # with more, some would have no problem to validate on
    assert all(row["memory"] <= 0.9 * 80e9 and row["fits"] for row in found.values())
    assert (own["tensor_parallel"], own["sleep"]) == (found[64]["tensor_parallel"], found[64]["sleep"]) == (4, True)
    assert found[64]["expected_hours"] <= own["expected_hours"] < 1.05 * found[64]["expected_hours"]


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [*((name, [], False) for name in PAPER), ("paper_20b_a1b", ["rl.engine.tensor_parallel=1"], True)],
)
def test_no_papers_engine_is_clearly_slower_than_need_be(name: str, overrides: list[str], said: bool, tmp_path: Path) -> None:
    command = ["plan", name, *overrides, "--costs", "--vocabulary", "151936"]
    done = CliRunner().invoke(app, command, env={"PRIORLAB_HOME": str(tmp_path), "COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert ("rl would take" in done.output) == ("rl.engine.tensor_parallel=4, sleep=true" in done.output) == said


def test_the_table_of_engines_is_what_the_plan_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "costs.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(paper_\w[\w.]*)` \| (one per process|16 of 4 processes)(, sleeping)? \| (.*) \|$", page, re.MULTILINE)
    assert [name for name, *_ in rows] == [name for name in sorted(PAPER, key=lambda name: float(name[6:].split("b")[0])) for _ in "ab"]
    for name, engine, sleeping, numbers in rows:
        before = (
            ()
            if sleeping
            else ("rl.engine={tensor_parallel: 1, sleep: false}", f"rl.gpu_memory_share={0.6 if name == 'paper_20b_a1b' else 0.4}")
        )
        (entry,) = (one for one in planned(tmp_path, name, *before, "--vocabulary", "151936") if one["stage"] == "rl")
        assert (entry["tensor_parallel"], entry["sleep"]) == (4 if engine.startswith("16") else 1, bool(sleeping))
        weights = f"{entry['memory_gib']['engine'] * 64:,.0f} GiB"  # type: ignore[index]
        hours = [f"{entry[f'{part}hours']:.1f}" for part in ("computing_", "waiting_", "expected_")]
        assert numbers.split(" | ") == [weights, f"{entry['memory'] / 2**30:.1f}", *hours]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quickstart"], "give --vocabulary"),
        (["quickstart", "--vocabulary", "20", "--device", "x1"], "unknown device 'x1'"),
        (["paper_20b_a1b", "--vocabulary", "151936", "--devices", "2"], "--devices is 2, but an engine of rl/.* takes 4"),
        (
            ["paper_4b", "--vocabulary", "151936", "--devices", "48"],
            "--devices is 48, over which pretrain/.* cannot be split: global_batch",
        ),
        (["paper_4b", "--vocabulary", "151936", "--devices", "512"], "over which rl/.* cannot be split: validation.problems is 64"),
    ],
)
def test_what_is_missing_is_named(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plan", *arguments, "--costs"], env={"PRIORLAB_HOME": str(tmp_path)})
    assert done.exit_code != 0
    assert re.search(message, str(done.exception))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--device", "h100"), ("--devices", "8"), ("--utilisation", "0.4"), ("--sampling-utilisation", "0.1"), ("--vocabulary", "20"),
        ("--node", "8"), ("--link", "450"), ("--network", "50"), ("--storage", "2"), ("--mtbf", "50000"), ("--price", "2.5"),
    ],
)  # fmt: skip
def test_what_estimates_assume_is_refused_where_none_is_asked_for_even_if_it_is_the_default(
    option: str, value: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["plan", "smoke", option, value], env={"PRIORLAB_HOME": str(tmp_path)})
    assert str(done.exception) == f"{option} does nothing without --costs, --launches or --effect; add one of them"


def test_several_options_that_would_do_nothing_are_named_together(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plan", "smoke", "--mtbf", "9", "--device", "a100"], env={"PRIORLAB_HOME": str(tmp_path)})
    assert str(done.exception).startswith("--device, --mtbf do nothing without")


@pytest.mark.parametrize(("overrides", "said"), [([], False), (["pretrain.launch.gradient_checkpointing=true"], True)])
def test_costs_name_a_launch_that_is_clearly_slower_than_need_be(overrides: list[str], said: bool, tmp_path: Path) -> None:
    command = ["plan", "paper_4b", *overrides, "--costs", "--vocabulary", "151936"]
    done = CliRunner().invoke(app, command, env={"PRIORLAB_HOME": str(tmp_path), "COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert ("pretrain would take" in done.output) == said
    assert "midtrain would take" not in done.output
