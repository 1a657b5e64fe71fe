"""RL's algorithm as an axis, in the real trainer: advantages, losses, terms beside them, and the correction for the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.store.folders import Home
from tests.conftest import FinishedSweep, Lab, finish, start
from tests.stages.conftest import rl_stage
from tests.stages.test_rl_resume import assert_same, die_after_draw


def run(folder: Path, smoke: FinishedSweep, *overrides: str) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Rows and weights of the small sweep's RL with changes."""
    lab = Lab(Home(folder))
    node = rl_stage(lab, smoke, *overrides)
    found = finish(lab, node, start(lab, node))
    return found, load_file(lab.folder(node).export / "model.safetensors")


@pytest.fixture(scope="module")
def plain(smoke: FinishedSweep) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    found = [json.loads(line) for line in smoke.folder("rl").metrics.read_text().splitlines()]
    return found, load_file(smoke.folder("rl").export / "model.safetensors")


def furthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


@pytest.mark.parametrize("kind", ["maxrl", "negative", "pass_at_k", "random"])
def test_advantages_reach_the_policy_and_leave_the_verdicts_alone(
    kind: str, tmp_path: Path, smoke: FinishedSweep, plain: tuple[list[dict[str, float]], dict[str, torch.Tensor]]
) -> None:
    # A mean over responses: on policy, where every ratio is 1, it is minus the mean advantage, whatever the lengths.
    found, policy = run(tmp_path, smoke, f"rl.advantage={kind}", *(["rl.loss=grpo"] if kind == "negative" else []))
    first, usual = found[0], plain[0][0]
    assert first["reward_raw"] == usual["reward_raw"]  # the same first sample, judged alike
    assert furthest(policy, plain[1]) > 1e-5
    if kind == "negative":
        right = first["reward_raw"]
        assert first["loss"] == pytest.approx((1 - right) - 0.1 * right, abs=1e-5)
    if kind == "random":  # what is paid is coin flips
        assert 0.2 < first["reward"] < 0.8
        assert first["frac_reward_zero_std"] == 0
    else:
        assert first["reward"] == first["reward_raw"]


EVERYTHING = (
    "rl.advantage=random", "rl.entropy={coefficient: 0.01, target: 2.0}", "rl.kl=0.05", "rl.top_entropy_share=0.5",
    "rl.sampling_budget=2", "rl.steps=4",
)  # fmt: skip


def test_random_rewards_adapted_entropy_and_kl_resume_to_the_same_run(smoke: FinishedSweep, tmp_path: Path) -> None:
    whole, interrupted = (Lab(Home(tmp_path / name)) for name in ("whole", "interrupted"))
    expected = whole, rl_stage(whole, smoke, *EVERYTHING)
    logged = finish(*expected, start(*expected))
    assert logged[0]["kl"] == pytest.approx(0, abs=1e-6)  # where RL starts
    assert logged[-1]["kl"] > 1e-6
    coefficients = [row["entropy_coef"] for row in logged]
    assert coefficients == pytest.approx([0.015, 0.02, 0.025, 0.03])  # entropy is below the target
    found = interrupted, rl_stage(interrupted, smoke, *EVERYTHING)
    die_after_draw(3, *found, tmp_path / "draws")
    finish(*found, start(*found))
    assert_same(found, expected)


@pytest.mark.parametrize("loss", ["dapo", "gspo", "dr_grpo", "cispo"])
def test_the_split_into_passes_does_not_matter_and_neither_do_fillers(loss: str, smoke: FinishedSweep, tmp_path: Path) -> None:
    """1 x 32 = 8 x 4, over a batch with places that dynamic sampling could not fill."""
    settings = (f"rl.loss={loss}", "rl.sampling_budget=1.5", "rl.steps=2")
    once, weights = run(tmp_path / "once", smoke, *settings)
    split, split_weights = run(tmp_path / "split", smoke, *settings, "rl.launch.micro_batch=4")
    assert once[0]["batch_fill"] < 1
    for row, other in zip(once, split, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert row["importance/token_log_ratio_sd"] == pytest.approx(other["importance/token_log_ratio_sd"], rel=0.5, abs=1e-7)
    assert furthest(weights, split_weights) < 1e-3  # Adam's first steps are of the learning rate's size whatever the gradient's


@pytest.mark.parametrize("loss", ["dapo", "gspo", "dr_grpo"])
def test_fillers_leave_the_mean_to_what_counts(loss: str, smoke: FinishedSweep, tmp_path: Path) -> None:
    """Groups that teach nothing have no advantage. Kept, they dilute the mean of the first step; as fillers, they must not."""
    kept, _ = run(tmp_path / "kept", smoke, f"rl.loss={loss}", "rl.steps=1")
    filled, _ = run(tmp_path / "filled", smoke, f"rl.loss={loss}", "rl.steps=1", "rl.sampling_budget=1.01")  # samples no more
    assert (filled[0]["reward_raw"], kept[0]["batch_fill"]) == (kept[0]["reward_raw"], 1)
    assert 0 < filled[0]["batch_fill"] < 1
    if loss == "dapo":  # a mean over tokens
        assert filled[0]["grad_norm"] > kept[0]["grad_norm"] * 1.01
    else:
        assert filled[0]["grad_norm"] * filled[0]["batch_fill"] == pytest.approx(kept[0]["grad_norm"], rel=1e-3)


def test_the_correction_reports_what_trl_applies_and_the_temperature_is_one_in_engine_and_trainer(
    smoke: FinishedSweep, tmp_path: Path
) -> None:
    found, _ = run(tmp_path / "corrected", smoke, "rl.importance.mode=token_truncate", "rl.temperature=0.6")
    uncorrected, _ = run(tmp_path / "uncorrected", smoke, "rl.temperature=0.6")
    for row in found:
        assert row["importance/kept_weight"] == pytest.approx(row["sampling/importance_sampling_ratio/mean"], abs=1e-6)
    for row in (*found, *uncorrected):
        assert row["sampling/sampling_logp_difference/max"] < 1e-4
        assert row["importance/token_ess"] == pytest.approx(1)
    first, other = found[0], uncorrected[0]
    assert first["reward_raw"] == other["reward_raw"]
    assert first["sampling/sampling_logp_difference/max"] == pytest.approx(other["sampling/sampling_logp_difference/max"], abs=1e-5)
    assert (first["importance/above_cap"], other["importance/kept_weight"]) == (0, 1)


def test_in_bfloat16_tokens_are_corrected_for(smoke: FinishedSweep, tmp_path: Path) -> None:
    found, _ = run(tmp_path, smoke, "rl.dtype=bfloat16", "rl.launch.zero_stage=1")
    for row in found:
        assert 1e-4 < row["importance/token_log_ratio_sd"] < 0.1
        assert row["importance/kept_weight"] == pytest.approx(row["sampling/importance_sampling_ratio/mean"], abs=1e-5)
        assert row["importance/kept_weight"] != 1


def test_gradient_norms_are_logged_at_every_zero_stage_with_the_share_of_clipped_steps(
    smoke: FinishedSweep, tmp_path: Path, plain: tuple[list[dict[str, float]], dict[str, torch.Tensor]]
) -> None:
    clipped, _ = run(tmp_path / "clipped", smoke, "rl.optimizer.clip_norm=0.01")
    sharded, _ = run(tmp_path / "sharded", smoke, "rl.launch.zero_stage=2", "rl.launch.attention=eager")
    for row, other in ((clipped[0], plain[0][0]), (sharded[0], plain[0][0])):
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)  # before clipping
    assert clipped[0]["clipped_steps"] == 1
    assert all(row["clipped_steps"] == (row["grad_norm"] > 0.01) for row in clipped)
    for row in plain[0]:
        assert row["grad_norm"] == row["grad_norm_max"] >= 0
        assert row["clipped_steps"] == (row["grad_norm"] > 1)
    pretraining = [json.loads(line) for line in smoke.folder("pretrain").metrics.read_text().splitlines()]
    assert all(row["grad_norm_max"] >= row["grad_norm"] > 0 for row in pretraining)
    assert 0 < pretraining[0]["clipped_steps"] < 1
