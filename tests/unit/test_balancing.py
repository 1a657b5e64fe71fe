"""Balancing experts by a bias: what is counted, and that it evens out a router that favours some."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerState, TrainingArguments, set_seed
from transformers.trainer_callback import TrainerControl

from pipeline.config.model import ModelConfig
from stages.pretrain.model import transformers_config
from stages.training.balancing import ExpertBalance, routers_of

EXPERTS, ACTIVE = 8, 2
STATE, CONTROL = TrainerState(), TrainerControl()
ONE_PROCESS: Any = SimpleNamespace(world_size=1)


def tiny() -> PreTrainedModel:
    """Two layers whose routers favour their first experts whatever the token: all embeddings share a component, which they read."""
    config = ModelConfig(
        architecture="glm4_moe", layers=2, width=32, heads=2, kv_heads=1, head_dim=16, tied_embeddings=False, max_positions=64,
        moe={"experts": EXPERTS, "active_experts": ACTIVE, "expert_width": 16},
    )  # fmt: skip
    set_seed(0)
    model = AutoModelForCausalLM.from_config(transformers_config(config, 50)).train()
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 0.05
        for layer in model.model.layers:
            layer.mlp.gate.weight *= 10
            layer.mlp.gate.weight[:, 0] = torch.linspace(1, 0, EXPERTS)
    return model


def step(model: PreTrainedModel, balance: ExpertBalance, seed: int) -> dict[str, float]:
    with torch.no_grad():
        model(torch.randint(0, 50, (8, 32), generator=torch.Generator().manual_seed(seed)))
    balance.on_step_end(ONE_PROCESS, STATE, CONTROL)
    return balance.take_statistics()


def test_the_bias_evens_out_a_skewed_router() -> None:
    model = tiny()
    balance = ExpertBalance(model, rate=0.01, resume_from=None)
    found = [step(model, balance, seed) for seed in range(120)]
    assert found[0]["expert_violation"] > 1.5  # the favourite has more than two and a half times its share
    assert sum(row["expert_violation"] for row in found[-10:]) / 10 < 0.35
    assert found[0]["experts_idle"] >= found[-1]["experts_idle"] == 0


def test_without_a_rate_the_load_is_logged_and_stays_as_it_is() -> None:
    model = tiny()
    before = model.model.layers[0].mlp.gate.e_score_correction_bias.clone()
    balance = ExpertBalance(model, rate=0.0, resume_from=None)
    first, *_, last = [step(model, balance, 0) for _ in range(3)]
    assert last == first
    assert torch.equal(model.model.layers[0].mlp.gate.e_score_correction_bias, before)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """As DeepSpeed does once training starts: parameters only."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def test_the_bias_moves_by_the_rate_against_the_load_of_the_whole_step() -> None:
    """Of two micro-batches together; a forward pass in evaluation mode does not count."""
    model = tiny()
    router = model.model.layers[0].mlp.gate  # the first: what it sees depends on no other bias
    balance = ExpertBalance(model, rate=0.25, resume_from=None)
    load = torch.zeros(EXPERTS)

    def count(router: nn.Module, inputs: object, output: tuple[torch.Tensor, ...]) -> None:
        load.add_(torch.bincount(output[-1].flatten(), minlength=EXPERTS))

    with torch.no_grad():
        model.eval()(torch.zeros(4, 60, dtype=torch.int64))
        router.register_forward_hook(count)
        for seed in range(2):
            model.train()(torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(seed)))
    balance.on_step_end(ONE_PROCESS, STATE, CONTROL)
    assert load.sum() == 2 * 18 * ACTIVE
    torch.testing.assert_close(router.e_score_correction_bias, 0.25 * (load.mean() - load).sign())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_biases_move_in_float32_and_are_resumed_exactly_whatever_the_models_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny()
    balance = ExpertBalance(model, rate=1e-3, resume_from=None)
    cast(model, dtype)
    balance.on_train_begin(ONE_PROCESS, STATE, CONTROL)
    for seed in range(3):
        step(model, balance, seed)
    biases = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("bias")}
    for bias in biases.values():
        assert bias.dtype == torch.float32
        assert bias.abs().max() == pytest.approx(3e-3)  # the favourite was above its share each time
    (tmp_path / "checkpoint-3").mkdir()
    balance.on_save(TrainingArguments(output_dir=str(tmp_path), report_to=[]), TrainerState(global_step=3), CONTROL)

    again = tiny()
    resumed = ExpertBalance(again, rate=1e-3, resume_from=tmp_path / "checkpoint-3")
    cast(again, dtype)
    resumed.on_train_begin(ONE_PROCESS, STATE, CONTROL)
    assert len(biases) == 2
    for name, bias in biases.items():
        assert torch.equal(again.get_buffer(name), bias)


def test_deepspeed_leaves_biases_in_float32() -> None:
    """In bfloat16 one near 0.5 would move by four times the usual rate or not at all."""
    from deepspeed.runtime.keep_in_fp32 import keep_in_fp32_pattern

    model = tiny()
    kept = keep_in_fp32_pattern(model, "auto", torch.bfloat16)
    assert [name for name, _ in model.named_buffers() if kept.search(name)] == list(routers_of(model))
