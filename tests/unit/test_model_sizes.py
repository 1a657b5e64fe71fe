"""Models by their configs: what is built has as many parameters as promised, and the paper's models as many as their names say."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.config.model import ModelConfig
from pipeline.experiment.compose import load_recipe
from stages.pretrain.model import transformers_config

NAMED = {  # total, and what a token passes through without embedding and output layer
    "1b": (1e9, 0.8e9),
    "4b": (4e9, 3.6e9),
    "5b_a0.3b": (5e9, 0.27e9),
    "10b_a0.5b": (10e9, 0.54e9),
    "20b_a1b": (20e9, 1.13e9),
}
QWEN_VOCABULARY = 151_936


def shipped(name: str) -> ModelConfig:
    (cell,) = load_recipe("quickstart", [f"model={name}"]).cells()
    return cell.recipe.model


@pytest.mark.parametrize("name", [*NAMED, "nano", "nano_moe"])
def test_the_counted_parameters_are_those_of_the_model_that_is_built(name: str) -> None:
    config = shipped(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(transformers_config(config, QWEN_VOCABULARY))
    counted = config.parameters(QWEN_VOCABULARY)
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    ends = {id(module.weight): module.weight.numel() for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    assert counted.embedding == sum(ends.values())
    idle = 0
    if config.moe is not None:
        experts = [parameter for name, parameter in model.named_parameters() if ".mlp.experts." in name]
        assert {len(parameter) for parameter in experts} == {config.moe.experts}
        idle = sum(p.numel() // config.moe.experts for p in experts) * (config.moe.experts - config.moe.active_experts)
    assert counted.active == counted.total - idle


@pytest.mark.parametrize(("name", "expected"), NAMED.items(), ids=NAMED)
def test_the_papers_models_have_the_sizes_in_their_names(name: str, expected: tuple[float, float]) -> None:
    counted = shipped(name).parameters(QWEN_VOCABULARY)
    assert counted.total == pytest.approx(expected[0], rel=0.05)
    assert counted.active - counted.embedding == pytest.approx(expected[1], rel=0.02)
