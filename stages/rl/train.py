"""The stage `rl`: from a checkpoint and a task's training problems to a policy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import GRPOConfig

from pipeline.config.rl import RLConfig
from pipeline.config.stages import RLStage
from pipeline.store.files import read_json
from stages.checkpoint import export_finished, save_export, verify_export
from stages.contract import Stage
from stages.corpus.tokenizer import check_prompts
from stages.engine import engine_arguments
from stages.rl.arguments import for_syncs, grpo_arguments
from stages.rl.problems import training_and_validation
from stages.rl.rollouts import PREFLIGHT_FILE
from stages.rl.trainer import RLTrainer
from stages.rl.validation import best_folder, best_step, validate
from stages.tasks import Problem, build_task
from stages.tasks.verifier import Verifier
from stages.training.process import adapt
from stages.training.ranks import meet
from stages.training.step_checkpoints import last_complete, seconds_until, step_of


def train(stage: Stage) -> dict[str, Any]:
    """Run or resume the stage; exports the policy and returns the record's metrics."""
    config = stage.config_as(RLStage)
    settings = config.rl
    base = stage.parent("checkpoint", config.step)
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    training, validation = training_and_validation(build_task(config.task), settings, config.seed)
    check_prompts(training + validation, tokenizer, config.task.max_prompt_tokens)
    checkpoint = last_complete(stage.folder.checkpoints, settings.launch, meet(stage.rank, settings.launch.processes))
    done = -1
    if checkpoint is not None:
        done, stage.earlier_seconds = step_of(checkpoint), seconds_until(checkpoint)
    rows = stage.rewind_metrics(done)
    if checkpoint is not None and done == settings.steps:
        if stage.rank == 0:
            _export(stage, settings, rows, lambda folder: export_finished(checkpoint, tokenizer, folder))
    else:
        _train(stage, config, base, tokenizer, training, validation, checkpoint, rows)
    if stage.rank == 0:
        verify_export(stage.folder.export)
    rows = stage.rows()
    last, best = stage.last_row(), _best(settings, rows)
    step_times = [row["step_time"] for row in rows if "step_time" in row]
    return {
        "steps": settings.steps,
        **({} if best is None else {"best_step": best}),
        "exported_step": best if settings.export == "best" else settings.steps,
        "rollouts": last["rollouts_generated"],
        "rollouts_used": last["rollouts_used"],
        "batch_fill": float(np.mean([row["batch_fill"] for row in rows if "batch_fill" in row])),
        **{f"preflight/{name}": share for name, share in (read_json(stage.folder.path / PREFLIGHT_FILE) or {}).items()},
        "reward": last["reward_raw"],
        "entropy": last["entropy"],
        "length": last["completions/mean_length"],
        **{name: value for row in rows for name, value in row.items() if name.startswith("validation/kl_")},
        "seconds_per_step": float(np.mean(step_times[1:] or step_times)),  # the first step warms up
    }


def _best(settings: RLConfig, rows: list[dict[str, float]]) -> int | None:
    return None if settings.validation is None else best_step(rows, settings.validation.best_k)


def _export(stage: Stage, settings: RLConfig, rows: list[dict[str, float]], write_last: Callable[[Path], None]) -> None:
    """The policy handed on; where there is validation, the other one of last and best beside it, in a folder of that name."""
    best = _best(settings, rows)

    def write(folder: Path) -> None:
        write_last(folder / "last" if settings.export == "best" else folder)
        if best is not None and stage.rank == 0:
            kept = best_folder(stage.folder.checkpoints, best)
            shutil.copytree(kept, folder if settings.export == "best" else folder / "best", dirs_exist_ok=True)

    stage.export(write)


def _train(
    stage: Stage,
    config: RLStage,
    base: Path,
    tokenizer: PreTrainedTokenizerBase,
    training: list[Problem],
    validation: list[Problem],
    checkpoint: Path | None,
    rows: list[dict[str, float]],
) -> None:
    """Train to the last step and export; `rows` are those that the checkpoint's past has logged."""
    settings = config.rl
    arguments = GRPOConfig(**grpo_arguments(stage, config))  # before the model: under ZeRO-3 transformers then loads it in partitions
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    adapt(model, settings.launch)
    with Verifier(partial(build_task, config.task), settings) as verifier:
        trainer = RLTrainer(
            stage=stage,
            base=base,
            engine_arguments=engine_arguments(
                settings.engine, base, settings.dtype, settings.kv_cache_gib, settings.gpu_memory_share, settings.processes_per_engine
            )
            | for_syncs(model, settings.engine),
            settings=settings,
            model=model,
            args=arguments,
            processing_class=tokenizer,
            problems=training,
            reward=Reward(training, verifier),
            validate=None if settings.validation is None else partial(validate, validation, settings.validation, verifier),
        )
        trainer.continue_from(rows)
        with stage.guard.saving():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        verifier.finish()

    if trainer.state.global_step != settings.steps:
        raise RuntimeError(f"trained {trainer.state.global_step} steps of {settings.steps}")
    _export(stage, settings, trainer.validations, lambda folder: save_export(trainer, tokenizer, folder))


class Reward:
    """1 for a verified response, else 0; `Rollouts` calls it. Signed as TRL's reward functions are. Logs the verifier's failures."""

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
