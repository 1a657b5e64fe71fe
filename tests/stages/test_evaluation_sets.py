"""Evaluation sets for real: a further one runs nothing again, and one that RL has trained on is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.store.files import write_json_atomically
from tests.conftest import FinishedSweep, Lab, smoke_graph, start

LARGER = "{task: {use: countdown, numbers: [2], largest_number: 9, largest_target: 18, name: smaller}, problems: 8}"


def test_a_further_set_is_evaluated_on_the_checkpoints_that_are_there(smoke: FinishedSweep, lab: Lab) -> None:
    lab.borrow(smoke.lab, *smoke.graph.stages.values())
    sets = f"evaluate.sets=[task, {LARGER}]"
    plan = json.loads(lab.call("plan", "smoke", sets, "--json").stdout)
    new = [entry["stage"] for entry in plan if entry["state"] == "new"]
    assert len(new) == 4  # two priors, before and after RL
    assert all("-smaller-" in stage for stage in new)
    ran = lab.call("sweep", "smoke", sets)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Mean over 2 evaluation sets, by number of problems: countdown (12), smaller (8)." in ran.stdout
    with (lab.home.sweep("smoke") / "results.csv").open(encoding="utf-8") as file:
        found = {
            (row["cell"], row["after"], row["task"]): float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "avg@n"
        }
    with (smoke.lab.home.sweep("smoke") / "results.csv").open(encoding="utf-8") as file:
        before = {(row["cell"], row["after"]): float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "avg@n"}
    for (cell, after), value in before.items():
        assert found[cell, after, "countdown"] == value
        assert found[cell, after, "average"] == pytest.approx((value + found[cell, after, "smaller"]) / 2, abs=1e-5)


GOES_ON = "has no record.json"  # to the checkpoint, which this home lacks


@pytest.mark.parametrize(
    ("after", "solved", "numbers", "message"),
    [
        ("rl", False, range(195, 205), "problems of the evaluation set 'benchmark', such as '"),
        ("rl", False, range(200, 210), GOES_ON),
        ("pretrain", True, range(190, 205), "problems of the evaluation set 'benchmark', such as '"),
        ("pretrain", False, range(195, 205), GOES_ON),  # without solutions, nothing but RL sees a problem
    ],
    ids=["shared with RL", "new", "shared with the text", "not in the text"],
)
def test_a_set_that_nobody_declared_is_refused_if_training_may_have_seen_it(
    lab: Lab, tmp_path: Path, after: str, solved: bool, numbers: range, message: str
) -> None:
    files: dict[str, dict[str, Any]] = {}
    for name, of in (("train", range(200)), ("benchmark", numbers)):
        source = tmp_path / f"{name}.jsonl"
        rows = ({"problem": f"{i}+1?", "answer": str(i + 1), "solution": f"{i}+1={i + 1}"} for i in of)
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[name] = {"kind": "math", "max_prompt_tokens": 32, {"train": "train"}.get(name, "evaluate"): {"file": str(source)}}
    files["train"]["held_out"] = []
    if solved:
        files["train"]["train"]["solution"] = "solution"
    for name, task in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task))
    sets = f"evaluate.sets=[{{task: {tmp_path}/benchmark.yaml, problems: 10}}]"
    (plan,) = smoke_graph("axes.prior=[ce]", "task=null", f"task={tmp_path}/train.yaml", sets).cells
    node = plan.evaluations[after]
    folder = lab.folder(node)
    folder.path.mkdir(parents=True)
    write_json_atomically(folder.spec, node.spec(lab.home, "test"))
    assert start(lab, node).wait(timeout=300) == 2
    log = (folder.path / "out.log").read_text()
    assert message in log
    assert "Traceback" not in log
