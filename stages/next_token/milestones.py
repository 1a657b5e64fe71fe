"""Intermediate checkpoints: weights of some steps, kept during training and exported beside the last.

A resumed run need not write them again: each is complete before the step checkpoint of its step, or of any later one, is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from stages.checkpoint import verify_export
from stages.contract import MILESTONES, Stage


class KeepMilestones(TrainerCallback):
    """After each of `steps`, `write` saves the model to a folder. Every rank takes part; one writes."""

    def __init__(self, stage: Stage, steps: Collection[int], write: Callable[[Path], None]) -> None:
        self.stage = stage
        self.steps = frozenset(steps)
        self.write = write

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.global_step not in self.steps:
            return
        building = self.stage.folder.checkpoints / "milestone.part"
        if self.stage.rank != 0:
            self.write(building)
            return
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        self.write(building)
        kept = _kept(self.stage, state.global_step)
        shutil.rmtree(kept, ignore_errors=True)  # of an attempt killed after this step and resumed before it
        building.replace(kept)


def export_milestones(stage: Stage, steps: Collection[int], folder: Path) -> None:
    """Copy what was kept into the export; for one rank to call."""
    for step in steps:
        target = folder / MILESTONES / str(step)
        shutil.copytree(_kept(stage, step), target)
        verify_export(target)


def _kept(stage: Stage, step: int) -> Path:
    return stage.folder.checkpoints / f"milestone-{step}"
