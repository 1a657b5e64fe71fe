"""A recipe in the words of TRL's trainer and of the engine that samples for it."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.config.rl import RolloutEngine
from pipeline.config.stages import RLStage
from stages.contract import Stage
from stages.device import has_gpu, memory_share
from stages.training.process import trainer_arguments


def grpo_arguments(stage: Stage, config: RLStage) -> dict[str, Any]:
    """The recipe in the words of TRL's `GRPOConfig`. What decides results is written out, so that no default of TRL's does."""
    settings = config.rl
    batch = settings.prompts_per_step * settings.samples_per_prompt // settings.updates_per_rollout
    shared = trainer_arguments(
        settings.optimizer, settings.launch, settings.dtype,
        steps=settings.steps, batch=batch, seed=config.seed, folder=stage.folder.checkpoints,
    )  # fmt: skip
    return shared | {
        # Sampling: from the whole distribution, since the loss takes log-probs for those of the sampler.
        "steps_per_generation": shared["gradient_accumulation_steps"] * settings.updates_per_rollout,
        "num_generations": settings.samples_per_prompt,
        "max_completion_length": settings.max_response_tokens,
        "temperature": settings.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
        # TRL decodes whole responses itself; the engine would do so token by token, a sixth of its time for small models.
        "generation_kwargs": {"detokenize": False} if settings.rollouts == "vllm" else None,
        "shuffle_dataset": True,
        # Advantages of kind group and random; the others are ours.
        "scale_rewards": settings.scale_rewards,
        "multi_objective_aggregation": "sum_then_normalize",
        "reward_weights": None,
        # The loss.
        "loss_type": "grpo" if settings.loss == "gspo" else settings.loss,
        "importance_sampling_level": "sequence" if settings.loss in ("gspo", "luspo") else "token",
        "num_iterations": 1,
        "epsilon": settings.clip_low,
        # The bound on the ratio itself in cispo, on its distance from 1 in the others.
        "epsilon_high": settings.clip_high + (settings.loss == "cispo"),
        "delta": None,
        "mask_truncated_completions": settings.mask_truncated,
        "top_entropy_quantile": settings.top_entropy_share,
        "off_policy_mask_threshold": None,
        "sapo_temperature_neg": 1.05,
        "sapo_temperature_pos": 1.0,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
        # Beside it.
        "beta": settings.kl,
        "use_bias_correction_kl": True,
        "sync_ref_model": False,
        "entropy_coef": settings.entropy.coefficient,
        "use_adaptive_entropy": settings.entropy.target is not None,
        "entropy_target": settings.entropy.target or 0.0,
        "entropy_coef_min": 0.0,
        "entropy_coef_max": settings.entropy.largest,
        "entropy_coef_delta": settings.entropy.step,
        "router_aux_loss_coef": 0.0,  # experts are balanced without one, in pre-training alone
        # Numerics.
        "disable_dropout": True,
        "cast_lm_head_to_fp32": False,
        "vllm_importance_sampling_correction": settings.correction != "none",
        "vllm_importance_sampling_mode": "token_truncate" if settings.correction == "none" else settings.correction,
        "vllm_importance_sampling_clip_max": settings.importance.cap,
        "vllm_importance_sampling_clip_min": None,
        # The engine.
        "use_vllm": settings.rollouts == "vllm",
        "vllm_mode": "colocate",
        "vllm_model_impl": "vllm",
        "vllm_gpu_memory_utilization": settings.gpu_memory_share * memory_share(),
        "vllm_tensor_parallel_size": settings.processes_per_engine,
        "vllm_enable_sleep_mode": settings.engine.sleep and has_gpu(),
        "vllm_max_model_length": config.task.max_prompt_tokens + settings.longest_response,
    }


def for_syncs(model: torch.nn.Module, engine: RolloutEngine) -> dict[str, Any]:
    """Arguments of an engine whose weights are replaced as the policy learns; a dense model's needs none.

    A sleeping engine must keep router biases, which TRL does not sync: they are buffers to transformers, parameters to vLLM. And on
    some GPUs vLLM would lay experts out anew once they are loaded, into which TRL then writes them as they were; Triton's kernels
    take them as they are.
    """
    biases = [name for name, _ in model.named_buffers() if name.endswith("e_score_correction_bias")]
    kept = {"sleep_preserve_parameter_names": biases} if biases and engine.sleep else {}
    return kept | ({"moe_backend": "triton"} if biases and has_gpu() else {})
