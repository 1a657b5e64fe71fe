"""A prior with its mean weight divided out, so that one learning rate and one bound on gradients mean the same under every objective.

An objective whose weights average .3 has gradients of .3 the size. AdamW's steps hardly depend on that, since it divides by their size;
clipping and the first steps do. Here each step's loss is divided by the mean weight of the step before, over all tokens of all
processes. That number is known before the step begins, however its batch is split; the first step is divided by 1. Once nearly all is
learned, weights may vanish (those of coverage underflow to 0): nothing is divided by less than .001.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from pipeline.store.files import read_json, write_json_atomically
from stages.objective.head import LossHead

_FILE = "mean_weight.json"
_LEAST = 1e-3


class Normalization(TrainerCallback):
    """Keeps the head's `mean_weight`. Add it before the callback that marks step checkpoints as complete, which hold the number."""

    def __init__(self, head: LossHead, resume_from: Path | None) -> None:
        self.head = head
        if resume_from is not None:
            head.mean_weight = float(read_json(resume_from / _FILE) or 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        weight = self.head.take_weight()
        if args.world_size > 1:
            torch.distributed.all_reduce(weight)
        tokens, total = weight.tolist()
        self.head.mean_weight = max(total / tokens, _LEAST)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.is_world_process_zero:
            write_json_atomically(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE, self.head.mean_weight)
