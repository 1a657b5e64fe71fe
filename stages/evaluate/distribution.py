"""The shape of the token distribution on held-out text: cross-entropy, entropy, head and tail mass, per block and temperature."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.config.base import Dtype
from stages.contract import Stage
from stages.corpus.pack import Blocks
from stages.device import free_memory, has_gpu
from stages.objective.reference import distribution_statistics

_BATCH_TOKENS = 8192
_BATCH_LOGITS = 1 << 28
"""A GiB in float32, of which the statistics take several times as much."""


def heldout_statistics(
    stage: Stage, checkpoint: Path, blocks: Blocks, *, count: int, head_k: int, dtype: Dtype, temperatures: Sequence[float] = (1.0,)
) -> dict[float, dict[str, list[float]]]:
    """By temperature T, which divides the logits: the mean per block of each statistic (nats, or probability) over its predicted
    tokens, for the first `count` blocks.
    """
    device = "cuda" if has_gpu() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False)
    model = model.to(device).eval()
    rows_per_batch = max(1, min(_BATCH_TOKENS, _BATCH_LOGITS // model.config.vocab_size) // blocks.block_size)
    statistics: dict[float, dict[str, list[float]]] = {at: defaultdict(list) for at in temperatures}
    count = min(count, len(blocks))
    for start in range(0, count, rows_per_batch):
        ids = blocks.rows(list(range(start, min(start + rows_per_batch, count)))).to(device)
        _add(statistics, model, ids, head_k)
        stage.progress(start, count, "held-out blocks")
    del model
    free_memory()
    return statistics


@torch.inference_mode()
def _add(statistics: dict[float, dict[str, list[float]]], model: PreTrainedModel, ids: Tensor, head_k: int) -> None:
    """Append the means of the blocks `ids`, (blocks, tokens)."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    for at, found in statistics.items():
        for name, values in distribution_statistics(logits if at == 1 else logits.float() / at, ids[:, 1:], head_k).items():
            found[name].extend(values.double().mean(dim=1).tolist())
