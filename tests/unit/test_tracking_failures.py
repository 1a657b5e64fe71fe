"""W&B only looks on: its limits are met, and where it fails, stages and reports go on without it. W&B itself runs here, offline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.compare.summary import summary
from pipeline.config.tracking import TrackingConfig
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe
from pipeline.experiment.graph import StageNode, build_graph
from pipeline.store.folders import Home
from pipeline.tracking.comparison import log_comparison
from pipeline.tracking.runs import StageRun, tag
from tests.unit.test_compare import NOWHERE, found_in
from tests.unit.test_statistics import measured
from tests.wandb_files import read_runs

OFFLINE = TrackingConfig(mode="offline")
LONG = (
    "prior={use: diversity, schedule: [{at: 0.25, use: precision}, {at: 0.5, use: tail, lambda_tail: -0.05}, "
    "{at: 0.75, beta: 0.3, lambda_head: 0.1}]}"
)


def pretraining(*overrides: str) -> StageNode:
    (plan,) = build_graph(load_recipe("smoke", overrides).cells()).cells
    return plan.chain["pretrain"]


def spec(node: StageNode) -> dict[str, Any]:
    return node.spec(Home(Path("nowhere")), "mine")


@pytest.mark.parametrize(
    "prior", [LONG, f"prior={{use: ce, name: {'x' * 300}}}", "prior={use: ce, name: ''}", "prior={use: ce, name: ' ü'}"]
)
def test_a_prior_of_any_name_is_tracked(prior: str, tmp_path: Path) -> None:
    run = StageRun(spec(pretraining(prior, "prior.k=5")), tmp_path, OFFLINE)
    run.log({"step": 1, "loss": 2.0})
    run.finish({"loss": 2.0}, tmp_path)
    (kept,) = read_runs(tmp_path)
    assert all(1 <= len(one) <= 64 for one in kept.tags)
    assert [row["loss"] for row in kept.history] == [2.0]


def test_different_long_names_stay_different_tags() -> None:
    first, second = ("long" * 30 + end for end in "ab")
    assert tag(first) != tag(second)
    assert tag("x" * 64) == "x" * 64


def test_a_config_of_many_files_is_tracked_by_reference(tmp_path: Path) -> None:
    large = spec(pretraining())
    large["config"] = large["config"] | {"files": [{"path": f"texts/{number}.jsonl", "sha256": "0" * 64} for number in range(20_000)]}
    StageRun(large, tmp_path, OFFLINE).finish({}, tmp_path)
    (kept,) = read_runs(tmp_path)
    assert kept.config["stage"] == f"in {tmp_path / 'spec.json'}"


@pytest.mark.parametrize("project", ["a/b", "a:b", "50%", "what?", "x" * 129, "''"])
def test_a_project_that_wandb_does_not_take_is_refused_before_anything_runs(project: str) -> None:
    with pytest.raises(PriorlabError, match=r"tracking.project is '"):
        pretraining(f"tracking.project={project}")


TRACKED_STAGE = """
import json, os, shutil, signal, sys
from pathlib import Path
from pipeline.config.tracking import TrackingConfig
from pipeline.tracking.runs import StageRun
folder, what = Path(sys.argv[1]), sys.argv[2]
run = StageRun(json.loads((folder / "spec.json").read_text()), folder, TrackingConfig(mode="offline", artifacts=True))
run.log({"step": 1, "loss": 2.0})
if what == "service":  # as the out-of-memory killer may
    for stat in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        if name.startswith("wandb-core") and int(rest.split()[1]) == os.getpid():
            os.kill(int(stat.parent.name), signal.SIGKILL)
else:
    shutil.rmtree(folder / "wandb")
for step in range(2, 20):
    run.log({"step": step, "loss": 2.0})
run.finish({"loss": 2.0}, folder)
print("went on", flush=True)
os._exit(0)  # as stages end
"""


@pytest.mark.parametrize("what", ["service", "folder"])
def test_a_stage_goes_on_when_tracking_breaks_off(what: str, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(spec(pretraining())))
    done = subprocess.run([sys.executable, "-c", TRACKED_STAGE, str(tmp_path), what], capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("went on\n"), done.stderr


def test_a_row_that_is_refused_loses_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = StageRun(spec(pretraining()), tmp_path, OFFLINE)
    for step in range(1, 20):
        run.log({"step": step, "loss": 2.0})
    run.log({1: 2.0})  # type: ignore[dict-item]
    run.finish({"loss": 2.0}, tmp_path)
    assert capsys.readouterr().err.count("warning: W&B failed to track this stage") == 1
    (kept,) = read_runs(tmp_path)
    assert [row["step"] for row in kept.history] == list(range(1, 20))
    assert kept.summary["loss"] == 2.0


def test_a_stage_goes_on_when_tracking_cannot_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "no address")
    run = StageRun(spec(pretraining()), tmp_path, OFFLINE)
    run.log({"step": 1, "loss": 2.0})
    run.finish({"loss": 2.0}, tmp_path)
    assert capsys.readouterr().err.count("warning: W&B failed to track this stage, which changes no result") == 1


def test_an_artifact_that_cannot_be_logged_leaves_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = StageRun(spec(pretraining()), tmp_path, TrackingConfig(mode="offline", artifacts=True))
    run.finish({"loss": 2.0}, tmp_path / "nowhere")
    assert "warning: W&B failed to log the artifact" in capsys.readouterr().err
    (kept,) = read_runs(tmp_path)
    assert kept.summary["loss"] == 2.0


def test_a_report_is_written_when_its_summary_run_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "no address")
    evaluations = measured({"ce": 0.0, "tail": 0.1})
    log_comparison("mine", OFFLINE, tmp_path, evaluations, summary(found_in(evaluations), NOWHERE), "mine-1")
    assert "warning: W&B failed to log the comparison" in capsys.readouterr().err
