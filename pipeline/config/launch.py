"""How a training stage is spread over processes. None of it changes a result."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from pipeline.config.base import Config, Dtype, execution


class ZeroOptions(Config):
    """DeepSpeed's options of ZeRO that change when, where and in what portions data moves, by its names; null: its default."""

    overlap_comm: bool | None = execution(None, description="reduce gradients during backward (null: at stage 3)")
    reduce_bucket_size: int | None = execution(None, ge=1, description="elements reduced in a message")
    allgather_bucket_size: int | None = execution(None, ge=1, description="elements gathered in a message, at stages 1 and 2")
    use_multi_rank_bucket_allreduce: bool | None = execution(
        None, description="false: at stages 1 and 2, reduce each part to its owner, in more and smaller messages"
    )
    zero_hpz_partition_size: int | None = execution(
        None, ge=2, description="processes of a node, which at stage 3 keep a second copy of the parameters between them for backward"
    )
    stage3_prefetch_bucket_size: int | None = execution(None, ge=0, description="elements gathered ahead")
    stage3_max_live_parameters: int | None = execution(None, ge=0, description="elements held whole at a time")
    stage3_max_reuse_distance: int | None = execution(None, ge=0, description="elements until the next use up to which one stays whole")
    stage3_param_persistence_threshold: int | None = execution(None, ge=0, description="elements up to which a parameter stays whole")

    def given(self) -> dict[str, bool | int]:
        """Those that are set."""
        return {name: value for name, value in self if value is not None}


class Launch(Config):
    """How a training stage is spread over processes. Execution only: the same batch gives the same run."""

    processes: int = execution(1, ge=1)
    micro_batch: int = execution(16, ge=1, description="sequences per process and forward pass")
    zero_stage: Literal[0, 1, 2, 3] = execution(0)
    zero: ZeroOptions = execution(ZeroOptions())
    gradient_checkpointing: bool = execution(False)
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = execution(
        "sdpa", description="transformers' implementation; those of flash attention need a package and a GPU"
    )
    compile: bool = execution(False, description="compile each layer by torch.compile")
    threads: int = execution(1, ge=1, description="CPU threads per process")
    save_steps: int = execution(100, ge=1)
    log_steps: int = execution(10, ge=1)

    @model_validator(mode="after")
    def _saves_fall_on_logs(self) -> Launch:
        if self.save_steps % self.log_steps:
            raise ValueError(
                f"save_steps is {self.save_steps}; it must be a multiple of log_steps ({self.log_steps}), so that a resumed run logs "
                "the same averages as an uninterrupted one"
            )
        return self

    @model_validator(mode="after")
    def _nodes_are_whole(self) -> Launch:
        size = self.zero.zero_hpz_partition_size
        if size is not None and (self.zero_stage != 3 or self.processes % size):
            raise ValueError(
                f"zero.zero_hpz_partition_size is {size}, with zero_stage {self.zero_stage} and {self.processes} processes; it goes "
                "with stage 3 alone, and must divide the processes"
            )
        return self

    def check_dtype(self, dtype: Dtype) -> None:
        """Raises `ValueError` if this launch cannot train in a dtype."""
        if dtype == "float32" and self.attention.startswith("flash"):
            raise ValueError(f"launch.attention is {self.attention}, which has no float32; train in bfloat16, or take sdpa")
        if dtype == "bfloat16" and self.zero_stage == 0:
            raise ValueError(
                "dtype bfloat16 needs launch.zero_stage >= 1: stage 0 has no float32 weights to accumulate small updates in"
            )
