"""Step checkpoints: what a training stage resumes from."""

from __future__ import annotations

import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.nn import Module, Parameter
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from pipeline.config.launch import Launch
from pipeline.errors import DivergedError, PriorlabError, Stopped
from pipeline.store.files import damage, files_below, manifest_of, read_json, write_json_atomically
from stages.contract import COMPLETE, Stage
from stages.training.deepspeed_internals import own_part
from stages.training.ranks import Ranks

_WAIT_FOR_LOG_SECONDS = 10.0
_STEP = re.compile(r"checkpoint-\d+")
_KEPT = 2
_RESHARDED = (2, 3)
"""ZeRO stages at which a run may resume on a different number of processes: those tested against an uninterrupted run."""


class StepCheckpoints(TrainerCallback):
    """Marks a step checkpoint once all of it is written (a kill may fall between its files), and stops training when asked to.

    The mark holds the number of processes and the ZeRO stage that wrote it, the sha256 of its files, and what the stage has taken until
    then. The newest two checkpoints are kept. The callback also makes Trainer log the last step, and the one it stops at, whatever
    log_steps is.

    When asked to stop, training continues to the next logged step if that is seconds away, so that averages match an uninterrupted
    run's; else to the next multiple of `every` steps (RL's rollout batches). Several processes agree on how far it is at each logged
    step, and, where it is far, at each step on whether they are asked.
    """

    def __init__(self, stage: Stage, launch: Launch, *, every: int = 1) -> None:
        self.stage = stage
        self.launch = launch
        self.every = every
        self._ending = False
        self._step_started = time.monotonic()
        self._step_seconds = 0.0
        self._log_is_far = False
        """Whether the processes have agreed that steps are too long to wait for the next logged one."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        # Of a resumed run, Trainer would take these from the step checkpoint, whatever the launch says now.
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        now = time.monotonic()
        self._step_seconds, self._step_started = now - self._step_started, now
        if state.global_step == state.max_steps:
            control.should_log = True
        elif self._is_the_end(state.global_step):
            self._ending = control.should_log = control.should_save = True

    def _is_the_end(self, step: int) -> bool:
        to_log = -step % self.launch.log_steps
        if step % self.every:
            return False
        if self.launch.processes > 1:
            if to_log and not self._log_is_far:
                return False
            asked, seconds = zip(*gather_object([(self.stage.guard.stopping, self._step_seconds)]), strict=True)
            self._log_is_far = self.launch.log_steps * max(seconds) > _WAIT_FOR_LOG_SECONDS
            return any(asked)
        return self.stage.guard.stopping and (to_log == 0 or to_log * self._step_seconds > _WAIT_FOR_LOG_SECONDS)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Module, **_: object) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        broken = next((name for name, parameter in model.named_parameters() if not _is_finite(parameter)), None)
        if broken is not None:  # the loss was computed before the last update: it may still be finite
            raise DivergedError(
                f"{broken} has non-finite values after step {state.global_step}: training has diverged. {self.stage.good_checkpoint()}"
            )
        ranks = Ranks(self.stage.rank, self.launch.processes)
        if ranks.count > 1:
            torch.distributed.barrier()  # every process writes its RNG state last
        parts = ranks.gathered([manifest_of(folder, ranks.agreed(files_below(folder))[ranks.share])])
        if state.is_world_process_zero:
            manifest = {name: sha256 for part in parts for name, sha256 in part.items()}
            self.stage.guard.check()
            mark = {"layout": _layout(self.launch), "manifest": manifest, "seconds": round(self.stage.seconds, 2)}
            write_json_atomically(folder / COMPLETE, mark)
            known = by_step(folder.parent)  # Trainer would go by their times, which a clock set back would turn around
            for step in sorted(known)[:-_KEPT]:
                shutil.rmtree(known[step])
        if self._ending:
            raise Stopped(f"stopped as asked, after saving step {state.global_step}; the same command resumes there")


def _is_finite(parameter: Parameter) -> bool:
    return bool(own_part(parameter).isfinite().all())


def last_complete(folder: Path, launch: Launch, ranks: Ranks, *, any_processes: bool = False) -> Path | None:
    """The newest complete and undamaged step checkpoint; newer ones, half-written or damaged, are deleted.

    Raises `PriorlabError` if its optimizer state is sharded for a different ZeRO stage or number of processes. `any_processes` is for
    callers that reshard it: at ZeRO stages where that is known to work, the number of processes may differ.
    """
    ours, any_processes = _layout(launch), any_processes and launch.zero_stage in _RESHARDED
    steps = ranks.agreed(by_step(folder))
    for step in sorted(steps, reverse=True):
        mark, problems = ranks.agreed(_mark(steps[step])), ["it is half-written"]
        if mark is not None and mark["layout"] != (ours | {"processes": mark["layout"]["processes"]} if any_processes else ours):
            raise PriorlabError(
                f"{steps[step]} was written with {mark['layout']}, this run has {ours}; resume with those values of "
                f"launch, or start over with `priorlab stage {folder.parent.name} --force`"
            )
        if mark is not None:
            problems = ranks.gathered(damage(steps[step], dict(list(mark["manifest"].items())[ranks.share])))
            if not problems:
                return steps[step]
        if ranks.rank == 0:
            print(f"warning: step checkpoint {steps[step].name} is unusable and removed: {'; '.join(problems)}", file=sys.stderr)
            shutil.rmtree(steps[step])
    return None


def by_step(folder: Path) -> dict[int, Path]:
    """The step checkpoints in a folder, complete or not."""
    return {step_of(path): path for path in folder.glob("checkpoint-*") if path.is_dir() and _STEP.fullmatch(path.name)}


def is_split_otherwise(checkpoint: Path, launch: Launch) -> bool:
    """Whether a complete step checkpoint's optimizer state is sharded for a different number of processes."""
    mark = _mark(checkpoint)
    assert mark is not None
    return bool(mark["layout"] != _layout(launch))


def _mark(checkpoint: Path) -> dict[str, Any] | None:
    """What `StepCheckpoints` wrote last; None if it is missing or damaged."""
    try:
        mark = read_json(checkpoint / COMPLETE)
    except PriorlabError:
        return None
    return mark if isinstance(mark, dict) and {"layout", "manifest"} <= mark.keys() else None


def seconds_until(checkpoint: Path) -> float:
    """What the stage had taken when it wrote a complete step checkpoint."""
    return float((_mark(checkpoint) or {}).get("seconds", 0.0))


def _layout(launch: Launch) -> dict[str, int]:
    return {"processes": launch.processes, "zero_stage": launch.zero_stage}


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which it was saved, from its name."""
    return int(checkpoint.name.rpartition("-")[2])
