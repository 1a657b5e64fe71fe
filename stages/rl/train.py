"""The stage `rl`: from a checkpoint and a task's training problems to a policy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import GRPOConfig

from pipeline.config.recipe import RLStage
from pipeline.store import read_json
from stages.checkpoint import export_finished, last_complete, save_export, step_of, verify_export
from stages.contract import Stage
from stages.engine import check_prompts, engine_arguments
from stages.evaluate.verify import Verifier
from stages.processes import trainer_arguments
from stages.rl.trainer import PREFLIGHT_FILE, RLTrainer
from stages.tasks import Problem, build_task


def train(stage: Stage) -> dict[str, Any]:
    """Run or resume the stage; exports the policy and returns the record's metrics."""
    config = stage.config_as(RLStage)
    settings = config.rl
    base = stage.parent("checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(base)
    problems = build_task(config.task).problems("rl", settings.problems, config.seed)
    check_prompts(problems, tokenizer, config.task.max_prompt_tokens)
    checkpoint = last_complete(stage.folder.checkpoints, settings.launch, remove_others=stage.rank == 0)
    if checkpoint is not None and step_of(checkpoint) == settings.steps:
        if stage.rank == 0:
            stage.export(lambda folder: export_finished(checkpoint, tokenizer, folder))
    else:
        _train(stage, config, base, tokenizer, problems, checkpoint)
    if stage.rank == 0:
        verify_export(stage.folder.export)
    rows = stage.rows()
    last = rows[-1]
    return {
        "steps": settings.steps,
        "rollouts": last["rollouts_generated"],
        "rollouts_used": last["rollouts_used"],
        **{f"preflight/{name}": share for name, share in (read_json(stage.folder.path / PREFLIGHT_FILE) or {}).items()},
        "reward": last["reward_raw"],
        "entropy": last["entropy"],
        "length": last["completions/mean_length"],
        "seconds_per_step": float(np.mean([row["step_time"] for row in rows[1:] or rows])),  # the first step warms up
    }


def _train(
    stage: Stage, config: RLStage, base: Path, tokenizer: PreTrainedTokenizerBase, problems: list[Problem], checkpoint: Path | None
) -> None:
    settings = config.rl
    arguments = _arguments(stage, config)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with Verifier(partial(build_task, config.task), settings) as verifier:
        trainer = RLTrainer(
            stage=stage,
            base=base,
            engine_arguments=engine_arguments(settings.dtype, settings.kv_cache_gib),
            settings=settings,
            model=model,
            args=arguments,
            processing_class=tokenizer,
            reward_funcs=Reward(problems, verifier),
            train_dataset=datasets.Dataset.from_list([{"prompt": p.prompt, "problem": i} for i, p in enumerate(problems)]),
        )
        stage.rewind_metrics(0 if checkpoint is None else step_of(checkpoint))
        if checkpoint is not None:
            trainer.rollouts_generated = int(stage.last_row()["rollouts_generated"])
            trainer.rollouts_used = int(stage.last_row()["rollouts_used"])
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        verifier.finish()

    if trainer.state.global_step != settings.steps:
        raise RuntimeError(f"trained {trainer.state.global_step} steps of {settings.steps}")
    stage.export(lambda folder: save_export(trainer, tokenizer, folder))


class Reward:
    """1 for a verified response, else 0; the name is what TRL logs it under. Logs the shares that the verifier failed on."""

    __name__ = "correct"

    def __init__(self, problems: list[Problem], verifier: Verifier) -> None:
        self.problems = problems
        self.verifier = verifier

    def __call__(self, completions: list[str], problem: list[int], log_metric: Callable[[str, float], None], **_: Any) -> list[float]:
        pairs = [(self.problems[index], text) for index, text in zip(problem, completions, strict=True)]
        counts = self.verifier.counts
        timeouts, errors = counts.timeouts, counts.errors
        rewards = [float(verdict.correct) for verdict in self.verifier.verify(pairs)]
        log_metric("verify/timeouts", (counts.timeouts - timeouts) / len(pairs))
        log_metric("verify/errors", (counts.errors - errors) / len(pairs))
        return rewards


def _arguments(stage: Stage, config: RLStage) -> GRPOConfig:
    settings = config.rl
    batch = settings.prompts_per_step * settings.samples_per_prompt // settings.updates_per_rollout
    shared = trainer_arguments(
        settings.optimizer, settings.launch, settings.dtype,
        steps=settings.steps, batch=batch, seed=config.seed, folder=stage.folder.checkpoints,
    )  # fmt: skip
    return GRPOConfig(
        **shared,
        steps_per_generation=shared["gradient_accumulation_steps"] * settings.updates_per_rollout,
        num_generations=settings.samples_per_prompt,
        temperature=settings.temperature,
        top_p=1.0,
        top_k=0,
        max_completion_length=settings.max_response_tokens,
        beta=0.0,  # no KL term
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        loss_type="dapo",  # token-level: every token of the batch counts the same
        scale_rewards=settings.scale_rewards,
        mask_truncated_completions=settings.mask_truncated,
        use_vllm=True,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=settings.gpu_memory_share,
        vllm_max_model_length=config.task.max_prompt_tokens + settings.max_response_tokens,
    )
