"""RL's engine: which settings can be, what TRL is told, and what of it is identity."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe
from stages.rl.trainer import engine_seed
from tests.unit.test_grpo_arguments import arguments, identity

TWO = ("model.heads=4", "rl.launch={processes: 2, micro_batch: 128}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rl.launch={processes: 4, micro_batch: 64}", "model.heads=3", "rl.engine.tensor_parallel=2"], "model.heads is 3.*a divisor"),
        ([*TWO, "rl.engine.tensor_parallel=4"], r"tensor_parallel is 4; it must divide launch.processes \(2\).*lower it"),
        ([*TWO, "rl.engine.tensor_parallel=2", "rl.validation.problems=47"], r"validation.problems is 47; .* multiple of .* \(2\)"),
        ([*TWO, "rl.engine.tensor_parallel=0"], "tensor_parallel"),
    ],
)
def test_an_engine_that_cannot_be_is_refused_with_the_key_and_a_way_out(overrides: list[str], message: str) -> None:
    with pytest.raises(PriorlabError, match=message):
        list(load_recipe("quickstart", overrides).cells())


def test_vllm_repeats_key_heads_but_splits_no_expert_unevenly() -> None:
    (cell,) = load_recipe("paper_20b_a1b", ["rl.engine.tensor_parallel=8"]).cells()  # 4 key heads
    assert cell.recipe.model.kv_heads == 4
    with pytest.raises(PriorlabError, match=r"model\.moe\.expert_width is 328"):
        list(load_recipe("paper_20b_a1b", ["model.moe.expert_width=328", "rl.engine.tensor_parallel=16"]).cells())


def test_trl_is_told_of_the_engine_which_sleeps_on_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (*TWO, "rl.engine={tensor_parallel: 2, sleep: true}")
    found = arguments(*asked)
    assert (found["vllm_tensor_parallel_size"], found["vllm_enable_sleep_mode"]) == (2, torch.cuda.is_available())
    monkeypatch.setattr("stages.rl.arguments.has_gpu", lambda: True)
    assert arguments(*asked)["vllm_enable_sleep_mode"]
    assert not arguments()["vllm_enable_sleep_mode"]


def test_how_many_engines_draw_is_identity_and_whether_they_sleep_is_not() -> None:
    plain = identity(*TWO)
    assert identity(*TWO, "rl.engine={tensor_parallel: 1, sleep: true}") == plain
    assert identity(*TWO, "rl.engine.tensor_parallel=2") != plain
    generated = (*TWO, "rl.rollouts=transformers")
    assert identity(*generated, "rl.engine.tensor_parallel=2") == identity(*generated)


def test_engines_of_different_seeds_share_no_stream() -> None:
    """A run with one engine draws with its own seed."""
    drawn = [engine_seed(seed, engine) for seed in range(8) for engine in range(8)]
    assert len(set(drawn)) == len(drawn)
    assert [engine_seed(seed, 0) for seed in range(8)] == list(range(8))
