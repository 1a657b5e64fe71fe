"""The recipe in TRL's words: nothing that decides results is left to a default of TRL's."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast, get_args

import pytest
from transformers import TrainingArguments
from trl import GRPOConfig

from pipeline.config.algorithm import Loss
from pipeline.config.stages import RLStage
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe
from stages.rl.arguments import grpo_arguments

if TYPE_CHECKING:
    from stages.contract import Stage

IRRELEVANT = {
    "model_init_kwargs": "the model comes as an object",
    "trust_remote_code": "off; the model and the tokenizer come as objects",
    "num_generations_eval": "TRL evaluates nothing",
    "generation_batch_size": "follows from steps_per_generation",
    "pad_to_multiple_of": "shape only; padding is masked",
    "ds3_gather_for_generation": "speed only",
    "chat_template_kwargs": "prompts are text",
    "cache_implementation": "speed only",
    "max_tool_calling_iterations": "no tools",
    "ref_model_mixup_alpha": "sync_ref_model is off",
    "ref_model_sync_steps": "sync_ref_model is off",
    "use_transformers_continuous_batching": "another engine, not offered",
    "transformers_continuous_batching_config": "another engine, not offered",
    "use_transformers_paged": "deprecated name of another engine",
    "vllm_importance_sampling_cap": "deprecated name of vllm_importance_sampling_clip_max",
    "vllm_structured_outputs_regex": "off; responses are free text",
    **dict.fromkeys(
        ("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port"),
        "the engine is in the process",
    ),
    **dict.fromkeys(
        ("log_completions", "log_multimodal", "num_completions_to_print", "log_unique_prompts", "log_completions_hub_repo"),
        "logging only",
    ),
}  # fmt: skip
"""Fields of GRPOConfig that the recipe leaves alone, and why that cannot change a result."""


def settings(*overrides: str) -> RLStage:
    (cell,) = load_recipe("quickstart", overrides).cells()
    assert cell.recipe.rl is not None
    return RLStage(task=cell.recipe.task, rl=cell.recipe.rl, seed=0)


def arguments(*overrides: str) -> dict[str, Any]:
    stage = SimpleNamespace(folder=SimpleNamespace(checkpoints=Path("checkpoints")))
    return grpo_arguments(cast("Stage", stage), settings(*overrides))


def test_every_setting_that_trl_adds_to_trainers_is_written_out_or_known_to_be_irrelevant() -> None:
    """Fails when TRL has a new one: set it in `grpo_arguments`, or say here why it does not matter."""
    theirs = {field.name: field for field in fields(GRPOConfig)}
    added = theirs.keys() - {field.name for field in fields(TrainingArguments)}
    ours = arguments().keys() & added
    assert not ours & IRRELEVANT.keys()
    assert added == ours | IRRELEVANT.keys()


def test_every_default_that_trl_changes_in_trainers_is_written_out() -> None:
    def default(field: Any) -> Any:
        return field.default if field.default is not MISSING else field.default_factory()

    usual = {field.name: default(field) for field in fields(TrainingArguments) if field.init}
    changed = {field.name for field in fields(GRPOConfig) if field.init and field.name in usual and default(field) != usual[field.name]}
    assert changed - {"remove_unused_columns"} <= arguments().keys()  # which only drops columns of the dataset


@pytest.mark.parametrize("loss", get_args(Loss))
def test_trl_knows_every_loss(loss: str) -> None:
    made = GRPOConfig(**arguments(f"rl.loss={loss}") | {"deepspeed": None})
    assert (made.loss_type, made.importance_sampling_level) == {
        "gspo": ("grpo", "sequence"), "luspo": ("luspo", "sequence"),
    }.get(loss, (loss, "token"))  # fmt: skip
    assert made.epsilon_high == (1.28 if loss == "cispo" else 0.28)  # where cispo's bounds the ratio itself


def test_what_acts_on_the_policy_besides_its_loss_is_off_unless_asked_for() -> None:
    off = arguments()
    assert (off["beta"], off["entropy_coef"], off["use_adaptive_entropy"], off["top_entropy_quantile"]) == (0, 0, False, 1)
    on = arguments("rl.kl=0.01", "rl.entropy={coefficient: 0.1, target: 0.9, step: 0.01}", "rl.top_entropy_share=0.2")
    assert (on["beta"], on["top_entropy_quantile"]) == (0.01, 0.2)
    assert (on["entropy_coef"], on["entropy_target"], on["entropy_coef_delta"], on["entropy_coef_max"]) == (0.1, 0.9, 0.01, 1)


def test_one_temperature_is_that_of_the_sampler_and_of_the_loss() -> None:
    assert arguments("rl.temperature=0.6")["temperature"] == 0.6
    assert {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}.items() <= arguments().items()


@pytest.mark.parametrize(
    ("overrides", "mode"),
    [
        ([], "none"),
        (["rl.importance.mode=sequence_mask"], "sequence_mask"),
        (["rl.dtype=bfloat16", "rl.launch.zero_stage=1"], "token_truncate"),
        (["rl.dtype=bfloat16", "rl.launch.zero_stage=1", "rl.importance.mode=none"], "none"),
        (["rl.importance.mode=sequence_mask", "rl.rollouts=transformers"], "none"),  # no engine's log-probs to correct for
    ],
)
def test_the_importance_correction_is_the_one_asked_for_or_follows_the_dtype(overrides: list[str], mode: str) -> None:
    found = arguments(*overrides)
    assert found["vllm_importance_sampling_correction"] == (mode != "none")
    if mode != "none":
        assert (found["vllm_importance_sampling_mode"], found["vllm_importance_sampling_clip_max"]) == (mode, 3.0)


def identity(*overrides: str) -> dict[str, Any]:
    return settings(*overrides).rl.identity()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rl.temperature=0.001", "rl.temperature"),
        ("rl.temperature=2.5", "rl.temperature"),
        ("evaluate.temperature=0.004", "evaluate.temperature"),
        ("evaluate.temperatures=[0.5, 2.5]", "evaluate.temperatures"),
        ("rl.advantage={use: pass_at_k, k: 16}", "leaves no two sets of k to compare"),
    ],
)
def test_what_vllm_would_refuse_or_change_and_what_would_teach_nothing_is_refused(override: str, said: str) -> None:
    with pytest.raises(PriorlabError, match=said):
        settings(override, "rl.samples_per_prompt=16")


def test_what_a_setting_leaves_inert_is_no_part_of_identity() -> None:
    assert identity("rl.importance.mode=none") == identity("rl.importance.cap=2") == identity()
    assert identity("rl.importance={mode: token_mask, cap: 2}") != identity("rl.importance.mode=token_mask")
    assert identity("rl.loss=cispo", "rl.clip_low=0.1") == identity("rl.loss=cispo")
    assert identity("rl.advantage=maxrl", "rl.scale_rewards=none") == identity("rl.advantage=maxrl")
    assert identity("rl.advantage=random", "rl.scale_rewards=none") != identity("rl.advantage=random")
    assert identity("rl.entropy.step=0.1") == identity()


def test_the_micro_batch_is_part_of_identity_where_trl_takes_means_over_it() -> None:
    for override in ("rl.loss=bnpo", "rl.entropy.coefficient=0.01", "rl.top_entropy_share=0.2"):
        assert identity(override, "rl.launch.micro_batch=128") != identity(override)
    assert identity("rl.launch.micro_batch=128") == identity()
