"""What stands in W&B's offline files after a sweep, and that no key gets anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.recipe import TrackingConfig
from pipeline.tracking import resolve_mode
from tests.conftest import FinishedSweep
from tests.wandb_files import OfflineRun, read_runs


@pytest.fixture(scope="module")
def runs(smoke: FinishedSweep) -> list[OfflineRun]:
    return read_runs(smoke.lab.home.path)


def test_each_stage_is_a_run_of_the_sweeps_group_under_its_fingerprint(smoke: FinishedSweep, runs: list[OfflineRun]) -> None:
    stages = {run.id: run for run in runs if run.job_type != "summary"}
    assert set(stages) == {fingerprint[:32] for fingerprint in smoke.graph.stages}
    for fingerprint, node in smoke.graph.stages.items():
        run = stages[fingerprint[:32]]
        assert (run.group, run.job_type, run.project) == ("smoke", node.kind, "priorlab")


def test_the_config_has_flat_coordinates(smoke: FinishedSweep, runs: list[OfflineRun]) -> None:
    (run,) = [run for run in runs if run.id == smoke.node("pretrain", cell=1).fingerprint[:32]]
    for key, value in {
        "prior.name": "tail", "prior.beta": 0.0, "prior.lambda_tail": -0.1, "prior.k": 5, "seed": 0, "task": "countdown"
    }.items():  # fmt: skip
        assert run.config[key] == value
    assert run.tags == ["pretrain", "tail"]


@pytest.mark.parametrize("kind", ["pretrain", "rl"])
def test_history_is_metrics_jsonl(smoke: FinishedSweep, runs: list[OfflineRun], kind: str) -> None:
    (run,) = [run for run in runs if run.id == smoke.node(kind).fingerprint[:32]]
    kept = [json.loads(line) for line in smoke.folder(kind).metrics.read_text().splitlines()]
    assert len(run.history) == len(kept)
    for theirs, ours in zip(run.history, kept, strict=True):
        assert {key: theirs[key] for key in ours} == ours


def test_the_summary_of_an_evaluation_is_its_record(smoke: FinishedSweep, runs: list[OfflineRun]) -> None:
    (run,) = [run for run in runs if run.id == smoke.node("evaluate@rl").fingerprint[:32]]
    record = smoke.folder("evaluate@rl").record()
    assert record is not None
    for key in ("pass@k/1", "pass@k/8", "perplexity", "entropy"):
        assert run.summary[key] == pytest.approx(record["metrics"][key])


def test_one_summary_run_holds_the_gain_table_and_the_curves(smoke: FinishedSweep) -> None:
    folder = smoke.lab.home.sweep("smoke")
    (summary,) = read_runs(folder)
    assert (summary.job_type, summary.group) == ("summary", "smoke")
    tables = [json.loads(path.read_text()) for path in folder.glob("wandb/**/*.table.json")]
    (gains,) = [table for table in tables if "gain" in table["columns"]]
    rows = json.loads((folder / "comparison.json").read_text())["summary"]["rows"]
    found = {(row[0], row[2]): row[3:] for row in gains["data"]}
    for row in rows:
        values = row["pass@8"]
        assert found[row["arm"], "pass@8"] == pytest.approx(
            [values["before"]["value"], values["after"]["value"], *(values["gain"][key] for key in ("value", "low", "high"))]
        )
        assert summary.summary[f"gain/{row['arm']}/pass@1"] == pytest.approx(row["pass@1"]["gain"]["value"])
    curves = next(table for table in tables if "pass@k" in table["columns"])
    assert len(curves["data"]) == 2 * 2 * 4  # cells, before and after, k


@pytest.mark.parametrize(
    ("environment", "netrc", "config", "expected"),
    [
        ({}, "", "auto", "offline"),
        ({"WANDB_API_KEY": "k" * 40}, "", "auto", "online"),
        ({}, "machine api.wandb.ai login user password secret", "auto", "online"),
        ({"WANDB_MODE": "disabled"}, "", "online", "disabled"),
        ({"WANDB_API_KEY": "k" * 40}, "", "offline", "offline"),
        ({"WANDB_BASE_URL": "https://wandb.example.org"}, "machine api.wandb.ai login user password secret", "auto", "offline"),
    ],
)
def test_tracking_is_online_only_for_who_is_logged_in(
    environment: dict[str, str], netrc: str, config: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".netrc").write_text(netrc)
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_mode(TrackingConfig.model_validate({"mode": config})) == expected
