"""Every place where stages reach below DeepSpeed's public surface.

Written for deepspeed 0.19.8. `tests/unit/test_internals.py` fails when what is reached into changes.

| reached into | for | upstream |
|---|---|---|
| `ops.__compatible_ops__`, an entry replaced | no compiler at the first start on CPU | deepspeedai/DeepSpeed#7625 asks for a choice |
| `checkpoint.ds_to_universal.main`, called | a step checkpoint for any number of processes | a command only, no issue filed |
| `param_groups` and `state` of the optimizer within its own, repaired | two slips in loading one under ZeRO-3 | no issue filed |
| `DeepSpeedEngine.clip_fp32_gradients`, replaced, and `_global_grad_norm`, set | the gradient's norm at ZeRO stage 0 | no issue filed |
| `ds_tensor` and `ds_numel` of parameters, read | this process's part and the whole size under ZeRO-3 | no issue filed |
"""

from __future__ import annotations

import contextlib
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Parameter


def without_shared_memory_collectives() -> None:
    """Have CPU processes talk through gloo: DeepSpeed would compile its own collectives for two minutes at the first start."""
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False


def keep_norm_of_stage_0(engine: Any) -> None:
    """Have `get_global_grad_norm` tell the norm at ZeRO stage 0 too, where DeepSpeed clips by it and forgets it."""
    from deepspeed.runtime.utils import clip_grad_norm_

    def clip_fp32_gradients() -> None:
        engine._global_grad_norm = clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping(), mpu=engine.mpu)

    engine.clip_fp32_gradients = clip_fp32_gradients


def own_part(parameter: Parameter) -> Tensor:
    """What this process holds of a parameter: under ZeRO-3 its partition, else all of it."""
    return getattr(parameter, "ds_tensor", parameter)


def whole_size(parameter: Parameter) -> int:
    """Number of elements of a parameter, under ZeRO-3 too."""
    return getattr(parameter, "ds_numel", parameter.numel())


def write_universal(parts: Path, to: Path) -> None:
    """Put the parts of a ZeRO checkpoint together in the folder `to`; `latest_universal`, beside it, then names it."""
    from deepspeed.checkpoint.ds_to_universal import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(
            Namespace(
                input_folder=str(parts),
                output_folder=str(to),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,  # of ZeRO 1 and 2: a header that Megatron writes, and nobody else
            )
        )


def repair_loaded_universal(optimizer: Any, weight_decay: float) -> None:
    """Undo two slips of DeepSpeed in loading a universal checkpoint under ZeRO-3. Neither stops a run, both change it.

    All groups of parameters get the settings of the first: norms would decay from then on. And all share one count of steps, which each
    group's update raises, so that AdamW corrects young averages too little (losses off by 1e-4 five steps on, with two groups).
    """
    for group, decay in zip(optimizer.param_groups, (weight_decay, 0.0), strict=True):  # Trainer's two groups
        group["weight_decay"] = decay
    adamw = optimizer.optimizer.optimizer  # within accelerate's and DeepSpeed's
    for kept in adamw.state.values():
        kept["step"] = kept["step"].clone()
