"""vLLM inside the stage's own process, on CPU and GPU alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.base import Dtype
from pipeline.errors import PriorlabError
from stages.tasks import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
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


def check_prompts(problems: list[Problem], tokenizer: PreTrainedTokenizerBase, room: int) -> None:
    """Raises `PriorlabError` if a prompt cannot be cut, or into more than `room` tokens, which the engine would refuse in mid-run."""
    encoded = tokenizer([problem.prompt for problem in problems])["input_ids"]
    unknown = next((p for p, ids in zip(problems, encoded, strict=True) if tokenizer.unk_token_id in ids), None)
    if tokenizer.unk_token_id is not None and unknown is not None:
        raise PriorlabError(
            f"the prompt {unknown.prompt[:60]!r} has characters that the tokenizer does not know; choose another corpus.tokenizer"
        )
    lengths = [len(ids) for ids in encoded]
    if max(lengths) > room:
        raise PriorlabError(
            f"{sum(length > room for length in lengths)} of {len(problems)} prompts are longer than task.max_prompt_tokens = {room}, "
            f"the longest has {max(lengths)} tokens; set task.max_prompt_tokens={max(lengths)} or leave long problems out"
        )
