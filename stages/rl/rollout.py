"""vLLM rollouts inside TRL's trainer: the two places where TRL's own colocated engine falls short.

TRL fixes the engine's arguments (bf16 whatever the checkpoint, a cache sized for GPUs), and its weight sync does not know the packed
linear layers of vLLM's CPU backend. `RolloutEngine` repairs both; on CUDA the sync is TRL's own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import trl.generation.vllm_generation as trl_vllm
import trl.trainer.grpo_trainer as trl_grpo
from trl.generation.vllm_generation import VLLMGeneration


class RolloutEngine(VLLMGeneration):
    """TRL's colocated engine with our arguments and a weight sync that works on CPU."""

    def __init__(self, *positional: Any, engine_arguments: dict[str, Any], **named: Any) -> None:
        self._engine_arguments = engine_arguments
        super().__init__(*positional, **named)

    def _init_vllm(self) -> None:
        with _replaced(trl_vllm, "LLM", functools.partial(trl_vllm.LLM, **self._engine_arguments)):
            super()._init_vllm()

    def sync_weights(self) -> None:
        """Push the trainer's weights into the engine and drop the prefix cache computed with the old ones."""
        if torch.cuda.is_available():
            super().sync_weights()
            return
        self.llm.collective_rpc(_reload, args=(list(self._iter_named_params()),))
        self.llm.reset_prefix_cache()


def _reload(worker: Any, weights: list[tuple[str, torch.Tensor]]) -> None:
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    worker.reload_weights(weights_iterator=iter(weights))
    # The CPU backend keeps a packed copy of the output layer; a tied one would go on sampling from the old weights, silently. Experts
    # are packed in place, but at the first load only: unpacked ones would be read as if they were packed.
    for module in worker.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
        elif isinstance(module, RoutedExperts):
            module.quant_method.moe_kernel.fused_experts.process_weights_after_loading(module)


@contextmanager
def rollouts_by(engine_arguments: dict[str, Any]) -> Iterator[None]:
    """While a GRPOTrainer is constructed, make it build a `RolloutEngine`; TRL 1.16 has no hook for it."""
    with _replaced(trl_grpo, "VLLMGeneration", functools.partial(RolloutEngine, engine_arguments=engine_arguments)):
        yield


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
