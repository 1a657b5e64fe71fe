"""Costs by formula against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from pipeline.config.evaluation import EvaluateConfig
from pipeline.config.launch import Launch
from pipeline.config.model import ModelConfig
from pipeline.config.rl import RLConfig, RolloutEngine
from pipeline.config.training import AdamWConfig, PretrainConfig
from pipeline.costs import stages as costs
from pipeline.costs.devices import DEVICES
from pipeline.experiment.compose import load_recipe
from stages.objective.head import attach
from stages.objective.shaped import Shaped
from stages.pretrain.model import transformers_config

VOCABULARY, ROWS, LENGTH = 300, 3, 48
DENSE = ModelConfig(layers=3, width=64, ffn_width=160, heads=4, kv_heads=2, head_dim=24, max_positions=64)
MOE = ModelConfig(
    architecture="glm4_moe", tied_embeddings=False, layers=3, width=64, ffn_width=160, heads=4, kv_heads=2, head_dim=24,
    max_positions=64, moe={"experts": 8, "active_experts": 3, "expert_width": 40, "dense_layers": 1},
)  # fmt: skip


def _addmm_in_place(total: list[int], left: list[int], right: list[int], **_: object) -> int:
    return 2 * left[0] * left[1] * right[1]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_a_training_step_takes_the_planned_floating_point_operations(config: ModelConfig, *, checkpointing: bool) -> None:
    """With attention and experts as plain matrix products: on CPU, torch's counter knows neither grouped and fused ones nor the
    in-place addmm that sums the output layer's gradient in the fused loss.
    """
    model = AutoModelForCausalLM.from_config(
        transformers_config(config, VOCABULARY), attn_implementation="eager", experts_implementation="eager"
    ).train()
    attach(model, Shaped(beta=-0.25), head_k=5)
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_in_place}) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    settings = PretrainConfig(
        steps=1, global_batch=ROWS, optimizer=AdamWConfig(learning_rate=1e-3),
        launch=Launch(micro_batch=ROWS, gradient_checkpointing=checkpointing),
    )  # fmt: skip
    planned = costs.training_costs(config, VOCABULARY, settings, LENGTH)
    assert planned.flops == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_each_further_temperature_costs_as_much_sampling_again() -> None:
    protocol = EvaluateConfig(problems=10, samples=4, max_response_tokens=20, heldout_blocks=3)
    none, one, two = (
        costs.evaluation_costs(DENSE, VOCABULARY, protocol.model_copy(update={"temperatures": temperatures}), 10, LENGTH)
        for temperatures in ((), (0.5,), (0.5, 2.0))
    )
    assert two.tokens - one.tokens == one.tokens - none.tokens == 10 * 4 * (10 + 20)
    assert two.flops - one.flops == pytest.approx(one.flops - none.flops)
    assert none.flops < two.flops
    assert two.memory == none.memory  # they are sampled one temperature after the other


def test_rl_scores_its_samples_once_more_for_each_log_prob_that_it_needs_before_the_update() -> None:
    def settings(*overrides: str) -> RLConfig:
        (cell,) = load_recipe("quickstart", overrides).cells()
        assert cell.recipe.rl is not None
        return cell.recipe.rl

    def passes(*overrides: str) -> float:
        return costs.rl_costs(DENSE, VOCABULARY, settings(*overrides), 10).training_flops / one_pass

    plain = costs.rl_costs(DENSE, VOCABULARY, settings(), 10)
    one_pass = plain.training_flops / 3
    assert passes("rl.importance.mode=token_truncate") == pytest.approx(4)
    assert passes("rl.updates_per_rollout=2", "rl.launch.micro_batch=128") == pytest.approx(4 / 2)  # half as many rollouts
    assert passes("rl.importance.mode=token_mask", "rl.kl=0.01") == pytest.approx(5)
    filled = costs.rl_costs(DENSE, VOCABULARY, settings("rl.sampling_budget=2.5"), 10)
    assert filled.sampling_flops == pytest.approx(2.5 * plain.sampling_flops)


def test_validation_of_rl_keeps_a_copy_of_the_base_in_partitions_under_zero3() -> None:
    (cell,) = load_recipe("paper_1b").cells()
    settings = cell.recipe.rl
    assert settings is not None
    whole = DENSE.parameters(VOCABULARY).total * 2  # bfloat16
    held = {}
    for stage in (1, 3):
        launch = settings.launch.model_copy(update={"zero_stage": stage, "processes": 64})
        validated = settings.model_copy(update={"launch": launch})
        held[stage] = costs.rl_costs(DENSE, VOCABULARY, validated, 10).memory["base"]
        plain = costs.rl_costs(DENSE, VOCABULARY, validated.model_copy(update={"validation": None}), 10).memory
        assert "base" not in plain
    assert held == {1: whole, 3: whole / 64}


def test_a_sleeping_engine_and_the_update_take_turns() -> None:
    (cell,) = load_recipe("paper_1b").cells()
    assert cell.recipe.rl is not None
    device = DEVICES["h100"]
    settings = cell.recipe.rl
    awake, asleep = (
        costs.rl_costs(DENSE, VOCABULARY, settings.model_copy(update={"engine": RolloutEngine(sleep=sleep)}), 10)
        for sleep in (False, True)
    )
    parts = awake.memory_on(device)
    assert parts == asleep.memory_on(device)
    assert parts["engine"] + parts["kv cache"] == pytest.approx(0.75 * device.memory)  # vLLM takes its share
    assert awake.peak(device) == pytest.approx(sum(parts.values()))
    assert asleep.peak(device) == pytest.approx(awake.peak(device) - parts["activations"] - parts["logits"])
    # Where nothing teaches, a budget of eight batches is spent in four rounds (1 + 1 + 2 + 4); the engine wakes for each.
    (kept,), (anew,) = ([one for one in way.transfers if one.what == "weights for rollouts"] for way in (awake, asleep))
    assert anew.size == 4 * kept.size == 4 * 2 * DENSE.parameters(VOCABULARY).total


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backward_saves_as_much_as_planned(config: ModelConfig, dtype: torch.dtype) -> None:
    """All tensors saved for backward, each storage once, except parameters, buffers and the head's gradients."""
    model = AutoModelForCausalLM.from_config(transformers_config(config, VOCABULARY)).to(dtype).train()
    attach(model, Shaped(), head_k=0)
    kept = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in kept:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=ids, labels=ids)
    found = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    planned = costs.activation_memory(config, Launch(), str(dtype).removeprefix("torch."), tokens=ROWS * LENGTH)  # type: ignore[arg-type]
    assert planned == pytest.approx(found, rel=0.05)
