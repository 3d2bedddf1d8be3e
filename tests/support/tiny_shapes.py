"""Configs of every family whose sizes are all different, so that no term of a formula can pass for another.

Owns those configs; tests/support/models.py has the ones with weights worth running.
"""

from collections.abc import Callable, Mapping
from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)

SHAPE: Mapping[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 152,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 8
EXPERTS: Mapping[str, Any] = {"num_experts_per_tok": 3}

SHAPES: Mapping[str, Callable[[int], PreTrainedConfig]] = {
    "llama": lambda layers: LlamaConfig(**SHAPE, num_hidden_layers=layers),
    "mistral": lambda layers: MistralConfig(**SHAPE, num_hidden_layers=layers, sliding_window=WINDOW),
    "qwen2": lambda layers: Qwen2Config(**SHAPE, num_hidden_layers=layers),
    "qwen3": lambda layers: Qwen3Config(**SHAPE, num_hidden_layers=layers),
    "gemma2": lambda layers: Gemma2Config(
        **SHAPE, num_hidden_layers=layers, layer_types=["full_attention"] * layers, attn_logit_softcapping=5.0
    ),
    "gemma3": lambda layers: Gemma3TextConfig(
        **SHAPE, num_hidden_layers=layers, layer_types=["full_attention"] * layers
    ),
    "phi3": lambda layers: Phi3Config(**SHAPE, num_hidden_layers=layers),
    "qwen2_moe": lambda layers: Qwen2MoeConfig(
        **SHAPE,
        **EXPERTS,
        num_hidden_layers=layers,
        num_experts=8,
        moe_intermediate_size=40,
        shared_expert_intermediate_size=80,
    ),
    "mixtral": lambda layers: MixtralConfig(**SHAPE, **EXPERTS, num_hidden_layers=layers, num_local_experts=8),
}
