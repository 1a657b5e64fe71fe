"""Pre-training under the whole family of objectives, on real DeepSpeed: every kind trains, and normalization holds for any split."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest
import torch

from pipeline.store.folders import Home
from tests.conftest import FinishedSweep, Lab, finish, start
from tests.stages.test_pretrain import pretraining, weights

EVERY_KIND = (
    "axes.prior=[{name: all, kind: focal, schedule: [{at: 0.2, kind: deformed}, {at: 0.35, kind: gem},"
    "{at: 0.5, kind: entropy, gate: 0.9}, {at: 0.65, kind: smoothing, z_loss: 1.0e-4}, {at: 0.8, kind: shaped, beta: -0.25}]}]"
)
SHORT = ("pretrain.steps=100", "pretrain.launch.save_steps=20", "pretrain.launch.log_steps=5", "pretrain.optimizer.warmup_steps=5")


def test_one_run_trains_under_every_kind_in_turn(smoke: FinishedSweep, lab: Lab) -> None:
    node = pretraining(lab, smoke, EVERY_KIND, *SHORT)
    found = finish(lab, node, start(lab, node))
    assert all(math.isfinite(row["loss"]) for row in found)
    assert found[-1]["cross_entropy"] < 0.7 * found[0]["cross_entropy"]
    knobs = [{name.removeprefix("prior/") for name in row if name.startswith("prior/")} - {"z_loss"} for row in found]
    expected = ["gamma"] * 4 + ["alpha"] * 3 + ["tau"] * 3 + ["alpha gate"] * 3 + ["epsilon"] * 3
    assert knobs[:16] == [set(names.split()) for names in expected]
    assert found[17]["prior/beta"] == -0.25
    assert found[14]["weight"] == pytest.approx(0.9)  # smoothing pulls with 1 - epsilon


def test_a_normalized_run_is_the_same_on_two_processes_and_after_a_stop(smoke: FinishedSweep, tmp_path: Path) -> None:
    """A gentle learning rate: at a high one, rounding alone makes equal runs diverge."""
    prior = ("axes.prior=[{name: dft, kind: deformed, alpha: 1, normalize: true}]", "pretrain.optimizer.learning_rate=1e-3", *SHORT)
    whole, stopped = (Lab(Home(tmp_path / name)) for name in ("whole", "stopped"))
    node = pretraining(whole, smoke, *prior)
    rows = finish(whole, node, start(whole, node))
    assert 0 < rows[0]["weight"] < rows[-1]["weight"] < 1
    # Divided by about the mean weight, the loss is no longer small where weights are.
    assert rows[1]["loss"] > 1.5 * (1 - math.exp(-rows[1]["cross_entropy"]))

    for micro_batch in (4, 8):  # two passes a step and one
        split = Lab(Home(tmp_path / f"split-{micro_batch}"))
        other = pretraining(split, smoke, *prior, "pretrain.launch.processes=2", f"pretrain.launch.micro_batch={micro_batch}")
        for row, expected in zip(finish(split, other, start(split, other)), rows, strict=True):
            assert (row["loss"], row["weight"]) == pytest.approx((expected["loss"], expected["weight"]), rel=1e-3), row["step"]

    again = pretraining(stopped, smoke, *prior)
    folder = stopped.folder(again)
    process = start(stopped, again)
    while not (folder.checkpoints / "checkpoint-40" / "complete").exists():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finish(stopped, again, start(stopped, again))
    for name, value in weights(stopped, again).items():
        assert torch.equal(value, weights(whole, node)[name]), name


def test_normalizing_cross_entropy_changes_nothing(smoke: FinishedSweep, tmp_path: Path) -> None:
    plain, normalized = Lab(Home(tmp_path / "plain")), Lab(Home(tmp_path / "normalized"))
    found = []
    for lab, prior in ((plain, "{name: ce}"), (normalized, "{name: ce, normalize: true}")):
        node = pretraining(lab, smoke, f"axes.prior=[{prior}]", *SHORT)
        finish(lab, node, start(lab, node))
        found.append(weights(lab, node))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
