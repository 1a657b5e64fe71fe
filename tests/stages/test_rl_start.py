"""RL from an intermediate checkpoint, for real: its weights, its evaluation as the start, and the report of both starts."""

from __future__ import annotations

import csv
import json

import torch
from safetensors.torch import load_file

from tests.conftest import Lab, smoke_graph

SMALL = (
    "axes.prior=[ce]", "axes.rl.start=[0.5,1]", "pretrain.evaluate_at=[0.5]", "pretrain.steps=80", "pretrain.optimizer.decay_steps=20",
    "pretrain.launch.save_steps=25", "corpus.documents=2000", "corpus.heldout_documents=100", "evaluate.problems=6", "rl.steps=1",
    "rl.optimizer.learning_rate=1e-12", "evaluate.heldout_blocks=8",
)  # fmt: skip


def test_rl_starts_from_the_checkpoint_at_its_share_of_pretraining(lab: Lab) -> None:
    done = lab.call("sweep", "smoke", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    half, whole = smoke_graph(*SMALL).cells
    assert half.chain["pretrain"].fingerprint == whole.chain["pretrain"].fingerprint
    export = lab.folder(half.chain["pretrain"]).export
    for plan, base in ((half, export / "milestones" / "40"), (whole, export)):  # a step at this rate moves no weight by as much
        ours, theirs = (load_file(folder / "model.safetensors") for folder in (lab.folder(plan.chain["rl"]).export, base))
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    assert not all(
        torch.equal(weights, load_file(export / "model.safetensors")[name])
        for name, weights in load_file(export / "milestones" / "40" / "model.safetensors").items()
    )
    with (lab.home.sweep("smoke") / "results.csv").open(encoding="utf-8") as file:
        steps = [(row["cell"], row["after"], row["step"]) for row in csv.DictReader(file) if row["metric"] == "avg@n"]
    assert steps == [
        ("ce-start0.5", "pretrain", "40"), ("ce-start0.5", "rl", "1"),
        ("ce-start1", "pretrain", "40"), ("ce-start1", "pretrain", "80"), ("ce-start1", "rl", "1"),
    ]  # fmt: skip
    told = json.loads(lab.call("report", "smoke", "--json").stdout)["starts"]
    assert [(row["setting"], row["start"], row["tokens"]) for row in told["rows"]] == [
        ("ce", 0.5, 40 * 16 * 32),
        ("ce", 1, 80 * 16 * 32),
    ]
