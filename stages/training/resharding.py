"""A step checkpoint for another number of processes, by way of DeepSpeed's universal checkpoints.

Under ZeRO each process writes its part of master weights and moments. A universal checkpoint has them whole, parameter by parameter, so
that any number of processes can load it. It lies beside the parts, and is made once: before the first step on the new number.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from stages.training.deepspeed_internals import repair_loaded_universal, write_universal

_BUILDING, _UNIVERSAL = "universal.part", "universal"
_LATEST = "latest_universal"


def reshard(checkpoint: Path, *, rank: int) -> None:
    """Write the universal form of a HF Trainer's step checkpoint, unless it is there. Every process must call it; one writes.

    Takes as much space as the checkpoint's optimizer state again, until the checkpoint is deleted.
    """
    if rank == 0 and not (checkpoint / _LATEST).exists():
        (parts,) = checkpoint.glob("global_step*")
        building = checkpoint / _BUILDING
        shutil.rmtree(building, ignore_errors=True)
        write_universal(parts, building / _UNIVERSAL)
        shutil.rmtree(checkpoint / _UNIVERSAL, ignore_errors=True)
        (building / _UNIVERSAL).replace(checkpoint / _UNIVERSAL)
        (building / _LATEST).replace(checkpoint / _LATEST)  # last: it is what says that all is there
        building.rmdir()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def load_universal(deepspeed: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's settings for a process that loads one; it saves as ever."""
    return deepspeed | {"checkpoint": {"load_universal": True}}


class AsItWas(TrainerCallback):
    """Gives the optimizer back what loading a universal checkpoint has changed."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, optimizer: Any, **_: object
    ) -> None:
        repair_loaded_universal(optimizer, args.weight_decay)
