"""vLLM inside the stage's own process, on CPU and GPU alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.base import Dtype
from pipeline.config.engine import Engine
from pipeline.errors import PriorlabError
from pipeline.store.files import read_mapping
from stages.device import free_memory, has_gpu, memory_share

if TYPE_CHECKING:
    from vllm import LLM

_SMALL = 256 << 20
"""Bytes of weights below which an engine runs eagerly by default: compiling and capturing graphs takes longer than it would save."""


def prepare(threads: int) -> None:
    """Environment of the engine; call before vllm is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # else engines side by side all bind to the first core
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # In float32, vLLM's attention is in Triton, which would multiply in TF32: log-probs would differ from the trainer's by .001.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    import torch

    if not has_gpu():
        torch.set_num_threads(threads)  # before the engine turns this call into a no-op


def close(engine: LLM) -> None:
    """Give back the memory that an engine holds; it samples no more."""
    engine.llm_engine.engine_core.shutdown()
    free_memory()


def engine_arguments(
    settings: Engine, checkpoint: Path, dtype: Dtype, kv_cache_gib: int, gpu_memory_share: float, parts: int = 1
) -> dict[str, Any]:
    """What every engine of ours needs: the trainer's dtype (vLLM would pick bf16), nothing that could hold code, eager on CPU.

    `parts`: processes that share the weights.

    Also sets what vLLM reads from the environment.
    """
    arguments: dict[str, Any] = {"dtype": dtype, "load_format": "safetensors", "trust_remote_code": False}
    if not has_gpu():
        return arguments | {"enforce_eager": True, "kv_cache_memory_bytes": kv_cache_gib << 30}
    import torch

    saved = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    told = read_mapping(checkpoint / "config.json")
    half = told.get("dtype", told.get("torch_dtype")) in ("bfloat16", "float16")  # the second is what older versions write
    weights = saved // (2 if half else 4) * (4 if dtype == "float32" else 2) // parts
    room = int(gpu_memory_share * memory_share() * torch.cuda.mem_get_info()[1]) if memory_share() < 1 else None
    return arguments | gpu_arguments(settings, weights, room)


def gpu_arguments(settings: Engine, weights: int, room: int | None = None) -> dict[str, Any]:
    """`engine_arguments` that are for GPUs alone, from the bytes of the model's weights; `room`: bytes of a shared GPU for the engine.

    Raises `PriorlabError` if the room is too small.
    """
    os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = str(int(settings.flashinfer_sampler))
    eager = weights < _SMALL if settings.eager is None else settings.eager
    arguments: dict[str, Any] = {"enforce_eager": eager}
    if not eager:
        arguments["cudagraph_capture_sizes"] = list(settings.cuda_graphs)
    if settings.attention is not None:
        arguments["attention_backend"] = settings.attention
    if settings.prefix_caching is not None:
        arguments["enable_prefix_caching"] = settings.prefix_caching
    if room is not None:
        # Else vLLM measures what is free, and gives up if a neighbour frees memory meanwhile. Activations need some of it too.
        cache = (room - weights) // 2
        if cache <= 0:
            raise PriorlabError(
                f"the engine may use {room / 2**30:.1f} GiB of the GPU that this stage shares, and the weights alone take "
                f"{weights / 2**30:.1f}; lower cluster.stages_per_gpu, or raise gpu_memory_share"
            )
        arguments["kv_cache_memory_bytes"] = cache
    return arguments


def build_engine(
    checkpoint: Path,
    *,
    dtype: Dtype,
    seed: int,
    max_tokens: int,
    kv_cache_gib: int,
    gpu_memory_share: float,
    settings: Engine | None = None,
) -> LLM:
    """An engine for a HF folder; `max_tokens` bounds prompt and response together. Its log-probs are those it samples with."""
    from vllm import LLM

    return LLM(
        model=str(checkpoint),
        seed=seed,
        max_model_len=max_tokens,
        gpu_memory_utilization=gpu_memory_share * memory_share(),
        disable_log_stats=True,
        logprobs_mode="processed_logprobs",
        **engine_arguments(settings or Engine(), checkpoint, dtype, kv_cache_gib, gpu_memory_share),
    )
