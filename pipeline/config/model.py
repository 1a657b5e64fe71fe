"""The models to train and their parameter counts: Qwen3 decoders, dense or with mixtures of experts.

A mixture of experts runs as `glm4_moe`: Qwen3's attention, sigmoid scores, and a bias per expert that steers routing but does not
weight the experts' outputs, as balancing without an auxiliary loss requires (Wang et al., arXiv 2408.15664). Transformers and vLLM both
read that bias (`e_score_correction_bias`) from a checkpoint; Qwen3's own mixture has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, execution, identity_since


class MoEConfig(Config):
    """A layer's feed-forward block as many small experts, of which each token passes through a few."""

    experts: int = Field(ge=2, description="routed experts per layer")
    active_experts: int = Field(ge=1, description="of these, per token")
    expert_width: int = Field(ge=1, description="inner width of one expert")
    shared_experts: int = Field(1, ge=1, description="that every token also passes through; vLLM's CPU kernels crash without any")
    dense_layers: int = Field(0, ge=0, description="leading layers without experts, of model.ffn_width")

    @model_validator(mode="after")
    def _experts_are_there(self) -> MoEConfig:
        if self.active_experts > self.experts:
            raise ValueError(f"active_experts ({self.active_experts}) exceeds experts ({self.experts})")
        return self


@dataclass(frozen=True)
class Parameters:
    """A model's parameter counts; `active` leaves out the experts that a token does not pass through.

    `embedding` is the input embedding and the output layer together, counted once if tied; both totals include it.
    """

    total: int
    active: int
    embedding: int


class ModelConfig(Config):
    """A Qwen3-like decoder, trained from scratch; the vocabulary comes from the corpus's tokenizer."""

    name: str = execution("qwen3")
    architecture: Literal["qwen3", "glm4_moe"] = "qwen3"
    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    ffn_width: int | None = Field(None, ge=1, description="inner width of dense layers")
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2, multiple_of=2)
    tied_embeddings: bool = True
    rope_base: float = Field(1e4, gt=0)
    max_positions: int = Field(ge=2)
    init_std: float = identity_since(
        0.02, gt=0, description="std of the initial weights; narrow models leave plateaus sooner at about 1/sqrt(width)"
    )
    moe: MoEConfig | None = identity_since(None, description="experts in place of dense feed-forward layers")

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self

    @model_validator(mode="after")
    def _architecture_fits(self) -> ModelConfig:
        if (self.moe is not None) != (self.architecture == "glm4_moe"):
            has = "has" if self.moe is None else "has no"
            raise ValueError(
                f"architecture {self.architecture!r} {has} experts; set moe together with architecture: glm4_moe, or leave both out"
            )
        if self.moe is not None and (self.width % 8 or self.moe.expert_width % 8):
            raise ValueError(
                f"width ({self.width}) and moe.expert_width ({self.moe.expert_width}) must be multiples of 8, as torch's grouped "
                "products need them"
            )
        if self.moe is not None and self.tied_embeddings:
            raise ValueError("tied_embeddings must be false for glm4_moe: vLLM's has a separate output layer and would not fill it")
        if self.moe is not None and self.moe.dense_layers >= self.layers:
            raise ValueError(f"moe.dense_layers ({self.moe.dense_layers}) leaves none of the {self.layers} layers for experts")
        if (self.ffn_width is None) != (self.dense_layers == 0):
            raise ValueError(
                f"ffn_width is {self.ffn_width}, and {self.dense_layers} of {self.layers} layers are dense; "
                "give it if some are, leave it out if none are"
            )
        return self

    @property
    def dense_layers(self) -> int:
        """How many layers have one feed-forward block of `ffn_width` instead of experts."""
        return self.layers if self.moe is None else self.moe.dense_layers

    def check_tensor_parallel(self, parts: int) -> None:
        """Raises `ValueError` if vLLM cannot split the model into so many parts. Of key and value heads it repeats what is missing."""
        sizes = {"heads": self.heads, "kv_heads": self.kv_heads, "ffn_width": self.ffn_width}
        sizes["moe.expert_width"] = None if self.moe is None else self.moe.expert_width
        for name, size in sizes.items():
            if size is not None and size % parts and not (name == "kv_heads" and parts % size == 0):
                raise ValueError(
                    f"rl.engine.tensor_parallel is {parts}, but model.{name} is {size}, which vLLM cannot split into {parts} equal "
                    "parts; set rl.engine.tensor_parallel to a divisor"
                )

    def parameters(self, vocabulary: int) -> Parameters:
        """Counts for a vocabulary of this size; router biases do not count."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads) + 2 * self.head_dim
        shared = self.layers * (attention + 2 * self.width) + self.width  # with two norms per layer, and the final one
        shared += self.dense_layers * 3 * self.width * (self.ffn_width or 0)
        embedding = vocabulary * self.width * (1 if self.tied_embeddings else 2)
        routed = active = 0
        if self.moe is not None:
            layers, expert = self.layers - self.moe.dense_layers, 3 * self.width * self.moe.expert_width
            shared += layers * (self.moe.experts * self.width + self.moe.shared_experts * expert)
            routed, active = layers * self.moe.experts * expert, layers * self.moe.active_experts * expert
        return Parameters(total=shared + embedding + routed, active=shared + embedding + active, embedding=embedding)
