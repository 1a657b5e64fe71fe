"""A fresh model from its config."""

from __future__ import annotations

from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, set_seed

from pipeline.config.training import ModelConfig


def build_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Randomly initialised float32 weights that depend on the seed alone.

    Built whole on every rank: under DeepSpeed's zero.Init a model starts from other weights than without, and ZeRO-3 would be another
    run. The price is host memory for one float32 copy per rank until DeepSpeed partitions it.
    """
    set_seed(seed)
    return AutoModelForCausalLM.from_config(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=config.ffn_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            tie_word_embeddings=config.tied_embeddings,
            initializer_range=config.init_std,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
