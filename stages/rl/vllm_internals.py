"""The one place where RL reaches below vLLM's public surface, for engines on a CPU.

Written for vllm 0.31.0. `tests/unit/test_internals.py` fails when what is reached into changes. vllm-project/vllm#48312 collects what
reloading weights gets wrong for RL. No issue is filed on the CPU backend's packed copies of weights, nor on its shared memory's name.
"""

from __future__ import annotations

from typing import Any

import torch


def without_shared_memory() -> None:
    """Have the parts of an engine talk through gloo. vLLM itself uses shared memory, which stays behind and, where a launcher
    starts the stages, has the same name for the engines of all stages on a machine.
    """
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    CpuCommunicator._all_group_ranks_share_shm_group_name = lambda _: False


def reload_weights(worker: Any, weights: list[tuple[str, torch.Tensor]]) -> None:
    """Load weights, named as in a checkpoint, into an engine's worker, and pack anew what vLLM packs at the first load only."""
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    worker.reload_weights(weights_iterator=iter(weights))
    # A tied output layer would go on sampling from the old weights, silently; experts, which are packed in place, would be read as if
    # they were packed.
    for module in worker.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
        elif isinstance(module, RoutedExperts):
            module.quant_method.moe_kernel.fused_experts.process_weights_after_loading(module)
