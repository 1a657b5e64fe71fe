"""RL with real TRL and vLLM: rollouts come from the weights that are trained, and the stage says so when they do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import FinishedSweep, Lab, smoke_graph


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rollouts_follow_the_trained_weights_of_a_tied_model(smoke: FinishedSweep) -> None:
    """With a stale output layer the mismatch grows with every update; at this learning rate it would pass 1e-2 by step 2."""
    found = logged(smoke.folder("rl").path)
    assert [row["step"] for row in found] == [1, 2, 3]
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-4 for row in found)
    before = load_file(smoke.folder("pretrain").export / "model.safetensors")
    after = load_file(smoke.folder("rl").export / "model.safetensors")
    assert before.keys() == after.keys()
    assert max((after[name] - before[name]).abs().max().item() for name in before) > 1e-4


def test_each_step_logs_what_a_user_needs(smoke: FinishedSweep) -> None:
    for row in logged(smoke.folder("rl").path):
        assert 0 <= row["reward"] <= 1
        assert 0 <= row["frac_reward_zero_std"] <= 1
        assert row["entropy"] > 0
        assert 1 <= row["completions/mean_length"] <= 16
        assert row["clip_ratio/high_mean"] == 0  # one update per generation: the ratio is 1
        assert row["learning_rate"] == 1e-3
        assert (row["verify/timeouts"], row["verify/errors"]) == (0, 0)


def test_the_record_counts_rollouts(smoke: FinishedSweep) -> None:
    record = smoke.folder("rl").record()
    assert record is not None
    assert record["metrics"]["rollouts"] == 3 * 4 * 8


def test_the_exported_policy_is_complete(smoke: FinishedSweep) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export = smoke.folder("rl").export
    model = AutoModelForCausalLM.from_pretrained(export)
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(export))
    assert model.dtype == torch.float32


@pytest.fixture(scope="module")
def failed(smoke: FinishedSweep, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, str, int]:
    """A sweep whose RL stage stops itself: the bound on the mismatch is below float32's rounding."""
    from pipeline.store.folders import Home

    lab = Lab(Home(tmp_path_factory.mktemp("failed")))
    lab.borrow(smoke.lab, smoke.node("corpus"), smoke.node("pretrain"), smoke.node("evaluate@pretrain"))
    done = lab.call("sweep", "smoke", "axes.prior=[ce]", "rl.max_logprob_mismatch=1e-12", "rl.launch.log_steps=1")
    return lab, done.stdout + done.stderr, done.returncode


def test_a_mismatch_above_the_bound_stops_the_stage_with_the_number(failed: tuple[Lab, str, int]) -> None:
    _, printed, code = failed
    assert code == 1
    assert "rollout engine and trainer disagree at step 0" in printed
    assert "rl.max_logprob_mismatch = 1e-12" in printed
    assert "Traceback" not in printed


def test_what_depends_on_a_failed_stage_is_blocked_and_the_rest_is_reported(failed: tuple[Lab, str, int]) -> None:
    lab, printed, _ = failed
    assert "blocked: needs rl/ce" in printed
    log = printed.split("log: ")[-1].splitlines()[0]
    assert Path(log).is_file()
    assert "blocked by failed or cancelled stages: 1 more" in printed
    (plan,) = smoke_graph("axes.prior=[ce]").cells
    assert lab.folder(plan.chain["rl"]).record() is None
    assert "pass@1 before" in printed  # what was measured is shown


def test_status_shows_the_failure(failed: tuple[Lab, str, int]) -> None:
    lab, _, _ = failed
    entries = json.loads(lab.call("status", "smoke", "--json").stdout)
    states = {entry["stage"].split("/")[0]: entry["state"] for entry in entries if "-rl-" not in entry["stage"]}
    assert states == {"corpus": "done", "pretrain": "done", "evaluate": "done", "rl": "failed"}
    (rl,) = [entry for entry in entries if entry["stage"].startswith("rl/")]
    assert "disagree" in rl["progress"]
