"""How vLLM runs on GPUs, in the stages that sample. On a CPU it always runs layer by layer, with the backend that vLLM has for CPUs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from pipeline.config.base import Config, execution

CUDA_GRAPHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""A third of vLLM's own sizes, which take as long to capture as a small model takes to sample. A step wastes a third at most."""


class Engine(Config):
    """Settings of vLLM that change its speed and its start."""

    eager: bool | None = execution(
        None, description="run layer by layer, without torch.compile and CUDA graphs; default: where the weights take less than 256 MiB"
    )
    cuda_graphs: tuple[Annotated[int, Field(ge=1)], ...] = execution(
        CUDA_GRAPHS,
        min_length=1,
        description="numbers of concurrent responses that CUDA graphs are captured for; others run as the next of these",
    )
    attention: str | None = execution(
        None, min_length=1, description="attention backend, by vLLM's name, e.g. FLASH_ATTN; default: what vLLM finds best"
    )
    flashinfer_sampler: bool = execution(
        False, description="FlashInfer's kernels for top-p, which are compiled when first used; at top_p 1 they do nothing"
    )
    prefix_caching: bool | None = execution(None, description="keep what prompts have in common; default: vLLM's own")

    @field_validator("cuda_graphs")
    @classmethod
    def _sizes_rise(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if list(sizes) != sorted(set(sizes)):
            raise ValueError(f"cuda_graphs is {list(sizes)}; the sizes must rise")
        return sizes
