"""RL that is evaluated while it runs: it trains as without, and its last and best policies are both handed on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.compare.evaluations import load_evaluations
from pipeline.experiment.graph import StageNode
from pipeline.store.folders import Home
from stages.rl.validation import best_step
from tests.conftest import FinishedSweep, Lab, finish, kill_once_saved, rows, start
from tests.stages.conftest import rl_stage

# The small sweep's RL split has 24 problems, of which it trains on 20.
VALIDATED = ("rl.validation={every: 2, problems: 4, samples: 8, best_k: 8}", "rl.export=best")


@pytest.fixture(scope="module")
def validated(smoke: FinishedSweep, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, StageNode]:
    """The small sweep's RL with validation, killed after step 2 and resumed."""
    lab = Lab(Home(tmp_path_factory.mktemp("validated")))
    node = rl_stage(lab, smoke, *VALIDATED)
    kill_once_saved(lab, node, step=2)
    finish(lab, node, start(lab, node))
    return lab, node


def test_it_is_measured_before_the_first_step_at_intervals_and_at_the_end(validated: tuple[Lab, StageNode]) -> None:
    measured = [row for row in rows(*validated) if "validation/pass@8" in row]
    assert [row["step"] for row in measured] == [0, 2, 3]
    assert [row["rollouts_generated"] for row in measured] == [0, 64, 96]
    assert all(0 <= row["validation/pass@1"] <= row["validation/pass@8"] <= 1 for row in measured)


def test_training_is_what_it_is_without_validation(validated: tuple[Lab, StageNode], smoke: FinishedSweep) -> None:
    trained = [row for row in rows(*validated) if "loss" in row]
    for row, other in zip(trained, rows(smoke.lab, smoke.node("rl")), strict=True):
        for metric in ("step", "loss", "reward", "entropy", "completions/mean_length"):
            assert row[metric] == other[metric], (row["step"], metric)
    ours = load_file(validated[0].folder(validated[1]).export / "last" / "model.safetensors")
    for name, weights in load_file(smoke.folder("rl").export / "model.safetensors").items():
        assert torch.equal(ours[name], weights), name


def test_the_best_policy_is_handed_on(validated: tuple[Lab, StageNode], smoke: FinishedSweep) -> None:
    lab, node = validated
    folder = lab.folder(node)
    best = best_step(rows(lab, node), best_k=8)
    record = folder.record()
    assert record is not None
    assert (record["metrics"]["best_step"], record["metrics"]["exported_step"]) == (best, best)
    assert {"model.safetensors", "last/model.safetensors"} <= record["manifest"].keys()
    same_step = {0: smoke.folder("pretrain").export, 3: folder.export / "last"}
    if best in same_step:
        ours, theirs = (load_file(path / "model.safetensors") for path in (folder.export, same_step[best]))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not folder.checkpoints.exists()


def test_results_tell_the_step_of_the_policy_that_was_evaluated(validated: tuple[Lab, StageNode], smoke: FinishedSweep) -> None:
    from tests.conftest import smoke_graph

    lab, node = validated
    graph = smoke_graph("axes.prior=[ce]", *VALIDATED)
    (plan,) = graph.cells
    lab.borrow(smoke.lab, smoke.node("evaluate@pretrain"))
    source, target = smoke.folder("evaluate@rl").path, lab.folder(plan.evaluations["rl"]).path
    target.parent.mkdir(parents=True, exist_ok=True)
    copy_as(source, target)
    steps = {evaluation.after: evaluation.step for evaluation in load_evaluations(graph, lab.home)}
    assert steps == {"pretrain": 300, "rl": lab.folder(node).record()["metrics"]["exported_step"]}  # type: ignore[index]


def copy_as(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)
    record = json.loads((target / "record.json").read_text())
    record["fingerprint"] = target.name.rpartition("-")[2]
    (target / "record.json").write_text(json.dumps(record))
