"""A step checkpoint for another number of processes, by way of DeepSpeed's universal checkpoints.

Under ZeRO each process writes its part of master weights and moments. A universal checkpoint has them whole, parameter by parameter, so
that any number of processes can load it. It lies beside the parts, and is made once: before the first step on the new number.
Written for DeepSpeed 0.19.8.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

_BUILDING, _UNIVERSAL = "universal.part", "universal"
_LATEST = "latest_universal"


def reshard(checkpoint: Path, *, rank: int) -> None:
    """Write the universal form of a HF Trainer's step checkpoint, unless it is there. Every process must call it; one writes.

    Takes as much space as the checkpoint's optimizer state again, until the checkpoint is deleted.
    """
    if rank == 0 and not (checkpoint / _LATEST).exists():
        from deepspeed.checkpoint.ds_to_universal import main

        (parts,) = checkpoint.glob("global_step*")
        building = checkpoint / _BUILDING
        shutil.rmtree(building, ignore_errors=True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(
                Namespace(
                    input_folder=str(parts),
                    output_folder=str(building / _UNIVERSAL),
                    num_extract_workers=1,
                    num_merge_workers=1,
                    keep_temp_folder=False,
                    strict=True,
                    inject_missing_state=True,  # of ZeRO 1 and 2: a header that Megatron writes, and nobody else
                )
            )
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
    """Undoes two slips of DeepSpeed in loading a universal checkpoint under ZeRO-3. Neither stops a run, both change it.

    All groups of parameters get the settings of the first: norms would decay from then on. And all share one count of steps, which each
    group's update raises: AdamW would take its young averages for old ones (losses off by 1e-4 five steps on, with two groups).
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, optimizer: Any, **_: object
    ) -> None:
        for group, decay in zip(optimizer.param_groups, (args.weight_decay, 0.0), strict=True):  # Trainer's two groups
            group["weight_decay"] = decay
        adamw = optimizer.optimizer.optimizer  # within accelerate's and DeepSpeed's
        for kept in adamw.state.values():
            kept["step"] = kept["step"].clone()
