"""RL with dynamic sampling and several updates per rollout: what is generated, what is used, and exact resume of both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.graph import StageNode
from pipeline.store import Home, read_json, write_json_atomically
from tests.conftest import FinishedSweep, Lab, finish, kill_once_saved, smoke_graph, start

GENERATED = 4 * 8  # prompts_per_step x samples_per_prompt of the smoke recipe
DYNAMIC = ("rl.sampling_rounds=3", "rl.updates_per_rollout=4", "rl.steps=8", "rl.launch.save_steps=4", "rl.launch.micro_batch=4")


def rl_stage(lab: Lab, smoke: FinishedSweep, *overrides: str) -> StageNode:
    (plan,) = smoke_graph("axes.prior=[ce]", *overrides).cells
    node = plan.chain["rl"]
    lab.borrow(smoke.lab, smoke.node("corpus"), smoke.node("pretrain"))
    folder = lab.folder(node)
    folder.path.mkdir(parents=True)
    write_json_atomically(folder.spec, node.spec(lab.home, "test"))
    return node


@pytest.fixture(scope="module")
def dynamic(smoke: FinishedSweep, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, StageNode, list[dict[str, float]]]:
    """A finished stage of two generations with dynamic sampling, each used for four updates."""
    lab = Lab(Home(tmp_path_factory.mktemp("dynamic")))
    node = rl_stage(lab, smoke, *DYNAMIC)
    return lab, node, finish(lab, node, start(lab, node))


def test_groups_without_signal_are_replaced_and_every_rollout_is_counted(
    dynamic: tuple[Lab, StageNode, list[dict[str, float]]], smoke: FinishedSweep
) -> None:
    lab, node, rows = dynamic
    assert [row["step"] for row in rows] == list(range(1, 9))
    for rollout in (rows[0], rows[4]):  # the steps that generate
        assert 0 <= rollout["reward_raw"] <= 1
        assert rollout["frac_reward_zero_std"] <= 1 - rollout["frac_groups_mixed"] + 1e-6
        assert 1 <= rollout["sampling_rounds"] <= 3
    assert rows[0]["sampling_rounds"] > 1
    assert rows[-1]["rollouts_generated"] > 2 * GENERATED
    assert GENERATED >= rows[0]["rollouts_used"] > 0
    record = lab.folder(node).record()
    assert record is not None
    assert record["metrics"]["rollouts"] == rows[-1]["rollouts_generated"]
    plain = smoke.folder("rl").record()
    assert plain is not None
    assert plain["metrics"]["rollouts"] == plain["metrics"]["rollouts_used"] == 3 * GENERATED


def test_clip_higher_acts_from_the_second_update_on(dynamic: tuple[Lab, StageNode, list[dict[str, float]]]) -> None:
    _, _, rows = dynamic
    assert [row["clip_ratio/region_mean"] for row in (rows[0], rows[4])] == [0, 0]
    assert all(row["clip_ratio/region_mean"] > 0 for row in (rows[3], rows[7]))
    assert max(row["clip_ratio/high_mean"] for row in rows) > 0


def test_killed_between_generations_it_ends_with_the_same_policy(
    dynamic: tuple[Lab, StageNode, list[dict[str, float]]], smoke: FinishedSweep, lab: Lab
) -> None:
    expected_lab, node, expected = dynamic
    assert rl_stage(lab, smoke, *DYNAMIC).fingerprint == node.fingerprint
    kill_once_saved(lab, node, step=4)
    timings = ("step_time", "profiling")
    for row, other in zip(finish(lab, node, start(lab, node)), expected, strict=True):
        for metric in other:
            if not metric.startswith(timings):
                assert row[metric] == other[metric], (row["step"], metric)
    found, weights = (load_file(at.folder(node).export / "model.safetensors") for at in (lab, expected_lab))
    for name in weights:
        assert torch.equal(found[name], weights[name]), name


def test_two_processes_sample_their_own_groups_and_learn_together(smoke: FinishedSweep, lab: Lab) -> None:
    node = rl_stage(lab, smoke, *DYNAMIC, "rl.steps=4", "rl.launch.processes=2", "rl.launch.zero_stage=2")
    rows = finish(lab, node, start(lab, node))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["rollouts_generated"] % (2 * 8) == 0  # every rank samples as many groups
    assert rows[0]["rollouts_used"] <= GENERATED
    assert rows[0]["sampling/sampling_logp_difference/max"] < 1e-4
    assert node.fingerprint != rl_stage(Lab(Home(lab.home.path / "one")), smoke, *DYNAMIC, "rl.steps=4").fingerprint


def test_the_same_seed_and_base_give_the_same_first_sample(
    dynamic: tuple[Lab, StageNode, list[dict[str, float]]], smoke: FinishedSweep
) -> None:
    lab, node, _ = dynamic
    ours, theirs = (read_json(path / "preflight.json") for path in (lab.folder(node).path, smoke.folder("rl").path))
    assert ours is not None
    assert ours == theirs  # whatever comes after
    for name in ("mixed", "pass_at_1", "pass_at_group", "ended"):
        assert 0 <= ours[name] <= 1


def test_a_policy_that_cannot_solve_anything_stops_before_training_with_advice(smoke: FinishedSweep, lab: Lab, tmp_path: Path) -> None:
    node = rl_stage(lab, smoke, "rl.max_response_tokens=1")
    process = start(lab, node)
    assert process.wait(timeout=200) == 2
    log = (lab.folder(node).path / "out.log").read_text()
    assert "no learning signal" in log
    assert "raise rl.max_response_tokens" in log
    assert not lab.folder(node).metrics.exists()
