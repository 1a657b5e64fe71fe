"""Exploration in the real trainer, and selection in the real evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from pipeline.experiment.graph import StageNode
from pipeline.store.files import write_json_atomically
from stages.evaluate.metrics import pass_at_k
from tests.conftest import FinishedSweep, Lab, finish, smoke_graph, start


def stage(lab: Lab, smoke: FinishedSweep, kind: str, *overrides: str) -> StageNode:
    """A stage on the smoke sweep's pre-trained model, ready to start."""
    (plan,) = smoke_graph("axes.prior=[ce]", *overrides).cells
    node = plan.chain["rl"] if kind == "rl" else plan.evaluations["pretrain"]
    lab.borrow(smoke.lab, smoke.node("corpus"), smoke.node("pretrain"))
    lab.folder(node).path.mkdir(parents=True)
    write_json_atomically(lab.folder(node).spec, node.spec(lab.home, "test"))
    return node


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_diversity_with_lambda_0_is_grpo_to_the_last_bit(smoke: FinishedSweep, lab: Lab) -> None:
    node = stage(lab, smoke, "rl", "rl.exploration={use: diversity, lambda_diversity: 0}")
    rows = finish(lab, node, start(lab, node))
    plain = logged(smoke.folder("rl").path)
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain]
    assert [row["exploration/loss"] for row in rows] == [0] * len(rows)
    ours, theirs = (load_file(folder.export / "model.safetensors") for folder in (lab.folder(node), smoke.folder("rl")))
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_bonus_and_a_loss_reach_the_policy_and_leave_the_counts_of_correct_responses_alone(smoke: FinishedSweep, lab: Lab) -> None:
    """Over micro-batches and with dynamic sampling's fillers, whose tokens do not count."""
    plain = logged(smoke.folder("rl").path)
    ran = {}
    for name, exploration in (
        ("bonus", "{use: representation, beta: 0.5}"),
        ("loss", "{use: diversity, lambda_diversity: 0.5}"),
        ("neither", "{use: diversity, lambda_diversity: 0}"),
    ):
        own = Lab(type(lab.home)(lab.home.path / name))
        node = stage(own, smoke, "rl", f"rl.exploration={exploration}", "rl.sampling_budget=2", "rl.launch.micro_batch=8")
        ran[name] = rows = finish(own, node, start(own, node))
        assert rows[0]["reward_raw"] == plain[0]["reward_raw"]  # the same first sample, judged alike
        assert all(0 <= row["reward_raw"] <= 1 for row in rows)
        record = own.folder(node).record()
        assert record is not None
        assert record["metrics"]["seconds_per_step"] == pytest.approx(np.mean([row["step_time"] for row in rows[1:]]))

    assert all(row["exploration/bonus_mean"] > row["exploration/bonus_std"] > 0 for row in ran["bonus"])
    for row in ran["bonus"]:  # what is trained on: 32 responses, right or wrong, and the bonuses of groups that have one
        correct = (row["reward"] - row["exploration/bonus_mean"] * row["exploration/groups_with_bonus"]) * 32
        assert correct == pytest.approx(round(correct), abs=1e-3)

    assert all(row["exploration/loss"] <= 0 for row in ran["loss"])
    first = ran["loss"][0]["exploration/loss"]
    assert first < 0  # minus an entropy
    # Before the first update both are one policy with one sample, and GRPO's loss is the same, over however many passes it is summed.
    assert ran["loss"][0]["loss"] == pytest.approx(first + ran["neither"][0]["loss"], abs=1e-4)


def test_picked_samples_are_compared_with_random_ones_on_the_same_samples(smoke: FinishedSweep, lab: Lab) -> None:
    node = stage(lab, smoke, "evaluate", "evaluate.selection={projection: 32}")
    assert start(lab, node).wait(timeout=300) == 0, (lab.folder(node).path / "out.log").read_text()
    metrics = json.loads((lab.folder(node).export / "problems.json").read_text())["metrics"]
    samples = pq.read_table(lab.folder(node).export / "samples.parquet").to_pandas()
    counts = samples[~samples["greedy"]].groupby("problem_id", sort=False)["correct"].sum().to_numpy()
    for k in (1, 2, 4, 8):
        picked, gain = np.array(metrics["selected_pass@k"][str(k)]), np.array(metrics["selected_gain@k"][str(k)])
        np.testing.assert_allclose(picked - gain, pass_at_k(counts, 8, k))
    np.testing.assert_array_equal(metrics["selected_pass@k"]["8"], counts > 0)  # all samples are picked in the end
    places = np.array(metrics["selected_samples_to_correct"]["8"])
    assert ((places <= 8) == (counts > 0)).all()
