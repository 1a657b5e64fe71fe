"""One process of a training stage: rendezvous, DeepSpeed settings, threads. The same for pre-training and RL, CPU and GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.base import Dtype
from pipeline.config.launch import Launch
from pipeline.config.training import AdamWConfig
from stages.device import has_gpu, keep_to_share

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.integrations import HfDeepSpeedConfig

LONGEST_WAIT_SECONDS = 3 * 3600
"""For another process. The first one checks what it is given against its sha256s while the others wait: 2 TB take longer than
Trainer's half an hour. A process that ends does not have to be waited for: its launcher ends the others."""


def prepare(threads: int) -> None:
    """Call before using torch: sets the environment of a single process (else torchrun does) and CPU settings."""
    if "RANK" not in os.environ:
        # DeepSpeed looks for MPI when these are absent. Port 0 is whichever is free when torch listens: stages side by side must not
        # share one, and a port picked here may be taken by then.
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    quiet()
    import torch

    if has_gpu():
        keep_to_share()
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        torch.set_num_threads(threads)
        from stages.training.deepspeed_internals import without_shared_memory_collectives

        without_shared_memory_collectives()


def quiet() -> None:
    """Turn libraries' progress bars off: the stage reports its own progress."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def deepspeed_config(launch: Launch, dtype: Dtype) -> dict[str, Any]:
    """DeepSpeed's settings; "auto" values are filled in by HF Trainer from its own arguments."""
    zero: dict[str, Any] = {"stage": launch.zero_stage, **launch.zero.given()}
    if launch.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True  # without it nothing is saved
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "wall_clock_breakdown": False,
        "steps_per_print": 2**31 - 1,
    }


@contextmanager
def whole_models(config: HfDeepSpeedConfig | None) -> Iterator[None]:
    """Inside, transformers loads models whole, as ones that are not trained must be; under ZeRO-3 (`config`) it partitions them."""
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            set_hf_deepspeed_config(config)


def adapt(model: PreTrainedModel, launch: Launch) -> None:
    """Have the model attend and run as the launch says. Layers are compiled one by one, as all are alike; the loss compiles itself."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.set_attn_implementation(launch.attention)
    for layer in model.modules() if launch.compile else ():
        if isinstance(layer, GradientCheckpointingLayer):  # what every layer of transformers' models is
            layer.compile()


def trainer_arguments(
    optimizer: AdamWConfig, launch: Launch, dtype: Dtype, *, steps: int, batch: int, seed: int, folder: Path
) -> dict[str, Any]:
    """What HF Trainer's and TRL's arguments share; `batch` counts sequences per optimizer step over all processes."""
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": launch.micro_batch,
        "gradient_accumulation_steps": batch // (launch.processes * launch.micro_batch),
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {
            "num_decay_steps": optimizer.decay_steps, "decay_type": optimizer.decay, "min_lr_ratio": optimizer.final_ratio,
        },
        "warmup_steps": optimizer.warmup_steps,
        "optim": "adamw_torch_fused",
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.clip_norm,
        "bf16": dtype == "bfloat16",
        "gradient_checkpointing": launch.gradient_checkpointing,
        "deepspeed": deepspeed_config(launch, dtype),
        "seed": seed,
        "save_strategy": "steps",
        "save_steps": launch.save_steps,
        "logging_steps": launch.log_steps,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not has_gpu(),
        "ddp_timeout": LONGEST_WAIT_SECONDS,
    }  # fmt: skip
