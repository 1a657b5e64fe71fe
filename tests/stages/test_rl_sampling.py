"""RL with dynamic sampling and several updates per rollout: what is generated and what is used."""

from __future__ import annotations

from pathlib import Path

from pipeline.experiment.graph import StageNode
from pipeline.store.files import read_json
from tests.conftest import FinishedSweep, Lab, start
from tests.stages.conftest import rl_stage

GENERATED = 4 * 8  # prompts_per_step x samples_per_prompt of the smoke recipe


def test_groups_without_signal_are_replaced_and_every_rollout_is_counted(
    dynamic: tuple[Lab, StageNode, list[dict[str, float]]], smoke: FinishedSweep
) -> None:
    lab, node, rows = dynamic
    assert [row["step"] for row in rows] == list(range(1, 9))
    for rollout in (rows[0], rows[4]):  # the steps that generate
        assert 0 <= rollout["reward_raw"] <= 1
        assert rollout["frac_reward_zero_std"] <= 1 - rollout["frac_groups_mixed"] + 1e-6
        assert rollout["sampling_rounds"] > 1
        assert rollout["batch_fill"] == 1
        assert rollout["frac_reward_zero_std"] == 0
    assert 2 * GENERATED < rows[-1]["rollouts_generated"] <= 2 * 4 * GENERATED  # the budget is four batches
    assert rows[-1]["rollouts_used"] == 2 * GENERATED
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
