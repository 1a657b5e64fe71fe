"""A fresh model from its config."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoModelForCausalLM,
    Glm4MoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    set_seed,
)

from pipeline.config.model import ModelConfig


def build_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Randomly initialised float32 weights that depend on the seed alone.

    Built whole on every rank: DeepSpeed's zero.Init would draw different weights, which would make ZeRO-3 a different run. The price is
    host memory for one float32 copy per rank until DeepSpeed partitions it.
    """
    set_seed(seed)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return AutoModelForCausalLM.from_config(transformers_config(config, len(tokenizer), **special))


def transformers_config(config: ModelConfig, vocabulary: int, **more: Any) -> PreTrainedConfig:
    """The transformers config, for a vocabulary of that many tokens."""
    shared = {
        "vocab_size": vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.init_std,
        **more,
    }
    rope = {"rope_type": "default", "rope_theta": config.rope_base}
    if config.moe is None:
        return Qwen3Config(**shared, intermediate_size=config.ffn_width, rope_parameters=rope)
    return Glm4MoeConfig(
        **shared,
        # As in Qwen3, not GLM-4.5: query and key norms, this epsilon, rotation of whole heads, no extra layer that predicts a second
        # token.
        use_qk_norm=True,
        rms_norm_eps=1e-6,
        rope_parameters=rope | {"partial_rotary_factor": 1.0},
        num_mtp_layers=0,
        intermediate_size=config.ffn_width or config.moe.expert_width,  # unused in the second case
        moe_intermediate_size=config.moe.expert_width,
        n_routed_experts=config.moe.experts,
        num_experts_per_tok=config.moe.active_experts,
        n_shared_experts=config.moe.shared_experts,
        first_k_dense_replace=config.moe.dense_layers,
        # Experts are not grouped; the chosen ones' scores are scaled to sum to 1.
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
    )
