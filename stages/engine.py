"""vLLM inside the stage's own process, on CPU and GPU alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.base import Dtype

if TYPE_CHECKING:
    from vllm import LLM


def prepare(threads: int) -> None:
    """Environment of the engine; call before vllm is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # else engines side by side all bind to the first core
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(threads)  # before the engine turns this call into a no-op


def engine_arguments(dtype: Dtype, kv_cache_gib: int) -> dict[str, Any]:
    """What every engine of ours needs: the trainer's dtype (vLLM would pick bf16), nothing that could hold code, eager on CPU."""
    import torch

    arguments: dict[str, Any] = {"dtype": dtype, "load_format": "safetensors", "trust_remote_code": False}
    if not torch.cuda.is_available():
        arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": kv_cache_gib << 30}
    return arguments


def build_engine(checkpoint: Path, *, dtype: Dtype, seed: int, max_tokens: int, kv_cache_gib: int, gpu_memory_share: float) -> LLM:
    """An engine for a HF folder; `max_tokens` bounds prompt and response together. Its log-probs are those it samples with."""
    from vllm import LLM

    return LLM(
        model=str(checkpoint),
        seed=seed,
        max_model_len=max_tokens,
        gpu_memory_utilization=gpu_memory_share,
        disable_log_stats=True,
        logprobs_mode="processed_logprobs",
        **engine_arguments(dtype, kv_cache_gib),
    )
