"""What stands in W&B's offline files after a sweep, and that no key gets anywhere."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import pytest

from pipeline.config.tracking import TrackingConfig
from pipeline.tracking.runs import StageRun, resolve_mode
from pipeline.tracking.sync import waiting_runs
from pipeline.tracking.workspace import comparison_workspace
from tests.conftest import ROOT, FinishedSweep, Lab
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
        assert found[row["setting"], "pass@8"] == pytest.approx(
            [values["before"]["value"], values["after"]["value"], *(values["gain"][key] for key in ("value", "low", "high"))]
        )
        assert summary.summary[f"gain/{row['setting']}/pass@1"] == pytest.approx(row["pass@1"]["gain"]["value"])
    curves = next(table for table in tables if "pass@k" in table["columns"])
    assert len(curves["data"]) == 2 * 2 * 4  # cells, before and after, k


def test_the_summary_run_has_the_differences_the_forest_and_the_verdict(smoke: FinishedSweep) -> None:
    folder = smoke.lab.home.sweep("smoke")
    kept = json.loads((folder / "comparison.json").read_text())["summary"]
    (run,) = read_runs(folder)
    assert run.summary["verdict"] == " ".join(kept["verdict"])
    for kind in ("levels", "differences"):
        (file,) = folder.glob(f"wandb/**/{kind}_0_*.table.json")
        contrasts = json.loads(file.read_text())
        found = [dict(zip(contrasts["columns"], row, strict=True)) for row in contrasts["data"]]
        assert [(one["setting"], one["metric"]) for one in found] == [(one["setting"], one["metric"]) for one in kept[kind]]
        assert [one["value"] for one in found] == pytest.approx([one["value"] for one in kept[kind]])
    tables = [json.loads(path.read_text()) for path in folder.glob("wandb/**/*.table.json")]
    forest = next(table for table in tables if "gain in pass@1" in table["columns"])
    gains = [gain for row in kept["rows"] if (gain := row["pass@1"]["gain"])["low"] is not None]  # the others have no interval to draw
    assert gains
    assert [row[0] for row in forest["data"]] == pytest.approx([gain[key] for gain in gains for key in ("low", "value", "high")])


def test_the_numbers_are_those_of_results_csv(smoke: FinishedSweep) -> None:
    folder = smoke.lab.home.sweep("smoke")
    with (folder / "results.csv").open() as file:
        written = {
            (row["cell"], row["after"], int(row["k"])): float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "pass@k"
        }
    tables = [json.loads(path.read_text()) for path in folder.glob("wandb/**/*.table.json")]
    curves = next(table for table in tables if "pass@k" in table["columns"])
    tracked = {(row[1], row[4], row[5]): row[6] for row in curves["data"]}
    assert tracked == pytest.approx(written, rel=1e-5)


def test_pretraining_is_drawn_against_tokens_and_rl_against_steps_and_rollouts(smoke: FinishedSweep, runs: list[OfflineRun]) -> None:
    axes = {run.job_type: run.axes for run in runs}
    assert axes["pretrain"] == {"*": "tokens"}
    assert axes["rl"] == {"*": "step", "validation/*": "rollouts_generated"}


def test_artifacts_refer_to_an_export_and_name_what_it_was_made_from(smoke: FinishedSweep, tmp_path: Path) -> None:
    node = smoke.node("pretrain")
    spec, export = node.spec(smoke.lab.home, "smoke"), smoke.folder("pretrain").export
    StageRun(spec, tmp_path, TrackingConfig(mode="offline", artifacts=True)).finish({}, export)
    (run,) = read_runs(tmp_path)
    ((name, told),) = run.artifacts.items()
    assert name == f"pretrain-{node.fingerprint[:12]}"
    assert told["parents"] == {"corpus": f"corpus-{smoke.node('corpus').fingerprint[:12]}"}
    assert told["files"]["model.safetensors"] == (export / "model.safetensors").resolve().as_uri()


def test_without_asking_for_them_there_are_no_artifacts(runs: list[OfflineRun]) -> None:
    assert not any(run.artifacts for run in runs)


def test_offline_runs_are_listed_and_sent_only_by_who_is_logged_in(smoke: FinishedSweep, tmp_path: Path) -> None:
    listed = smoke.lab.call("wandb", "sync", "smoke", "--dry-run").stdout.split()
    assert sum("offline-run-" in line for line in listed) == len(smoke.graph.stages) + 1
    command = smoke.lab.command("wandb", "sync", "smoke")
    nobody = {name: value for name, value in smoke.lab.environment().items() if name not in ("WANDB_API_KEY", "NETRC")}
    refused = subprocess.run(command, env=nobody | {"HOME": str(tmp_path)}, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "error: you are not logged in to W&B" in refused.stderr
    assert "wandb login" in refused.stderr


def test_a_run_that_was_sent_is_not_sent_again(lab: Lab) -> None:
    run = lab.home.path / "stages" / "rl" / "a" / "wandb" / "offline-run-1"
    run.mkdir(parents=True)
    (run / "run-1.wandb").touch()
    assert waiting_runs(lab.home, None) == [run]
    (run / "run-1.wandb.synced").touch()
    assert waiting_runs(lab.home, None) == []


def test_the_saved_view_holds_the_comparison_of_one_sweep(smoke: FinishedSweep, runs: list[OfflineRun]) -> None:
    view = comparison_workspace("smoke", "team", "priorlab", smoke.graph)
    assert [section.name for section in view.sections] == [
        "Comparison", "RL, at equal steps", "RL, at equal rollouts", "Pre-training"
    ]  # fmt: skip
    assert all(repr(run.id) in str(view.runset_settings.filters) for run in runs)
    assert view.sections[3].panels[0].x == "tokens"


@pytest.mark.parametrize(
    ("environment", "netrc", "config", "expected"),
    [
        ({}, "", "auto", "offline"),
        ({"WANDB_API_KEY": "k" * 40}, "", "auto", "online"),
        ({}, "machine api.wandb.ai login user password secret", "auto", "online"),
        ({"WANDB_MODE": "disabled"}, "", "online", "disabled"),
        ({"WANDB_API_KEY": "k" * 40}, "", "offline", "offline"),
        ({"WANDB_BASE_URL": "http://localhost:8080"}, "machine localhost:8080 login user password secret", "auto", "online"),
        ({}, "machine caf\xe9 login user password secret", "auto", "offline"),  # in Latin-1
        ({"WANDB_BASE_URL": "https://wandb.example.org"}, "machine api.wandb.ai login user password secret", "auto", "offline"),
    ],
)
def test_tracking_is_online_only_for_who_is_logged_in(
    environment: dict[str, str], netrc: str, config: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".netrc").write_text(netrc, encoding="latin-1")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_mode(TrackingConfig.model_validate({"mode": config})) == expected
    (tmp_path / ".netrc").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("NETRC", str(tmp_path / "elsewhere"))
    assert resolve_mode(TrackingConfig.model_validate({"mode": config})) == expected
