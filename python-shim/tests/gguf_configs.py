"""Headers of GGUF files, and the configurations that they stand for."""

import math
from typing import Any

import numpy as np

SHARED: dict[str, Any] = {
    "context_length": 512,
    "embedding_length": 64,
    "block_count": 3,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500_000.0,
}


def llama3_factors(factor: float) -> np.ndarray:
    """As llama.cpp's converter computes them."""
    factors = []
    for i in range(0, 16, 2):
        wavelength = 2 * math.pi * 500_000.0 ** (i / 16)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, "f4")


EMBEDDING = {"token_embd.weight": np.zeros((4, 32), "f4")}
THETA = {"rope_theta": 500_000.0}
DEFAULT_ROPE = THETA | {"rope_type": "default"}
MOE = {"expert_count": 8, "expert_used_count": 2}
# By name: architecture, what differs from SHARED, tensors, and what must be in the configuration.
CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, np.ndarray], dict[str, Any]]] = {
    "llama": (
        "llama",
        {},
        EMBEDDING,
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_parameters": DEFAULT_ROPE,
            "hidden_act": "silu",
            "dtype": "float32",
        },
    ),
    "llama with a head": (
        "llama",
        {"attention.key_length": 32},
        EMBEDDING | {"output.weight": np.zeros((4, 32), "f2")},
        {"tie_word_embeddings": False, "head_dim": 32, "dtype": "float16"},
    ),
    "llama 3.1": (
        "llama",
        {},
        EMBEDDING | {"rope_freqs.weight": llama3_factors(8.0)},
        {
            "rope_parameters": THETA
            | {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        },
    ),
    "yarn": (
        "qwen3",
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 128,
        },
        EMBEDDING,
        {
            "model_type": "qwen3",
            "rope_parameters": THETA
            | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        },
    ),
    "linear": (
        "llama",
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        EMBEDDING,
        {"rope_parameters": THETA | {"rope_type": "linear", "factor": 4.0}},
    ),
    "mixtral": (
        "llama",
        MOE,
        EMBEDDING,
        {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen2": ("qwen2", {}, EMBEDDING, {"model_type": "qwen2"}),
    "qwen2moe": (
        "qwen2moe",
        MOE | {"expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48},
        EMBEDDING | {"blk.0.attn_q.bias": np.zeros(64, "f4")},
        {
            "model_type": "qwen2_moe",
            "num_experts": 8,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
            "norm_topk_prob": False,
            "qkv_bias": True,
        },
    ),
    "qwen3moe": (
        "qwen3moe",
        MOE | {"expert_feed_forward_length": 32, "feed_forward_length": None},
        EMBEDDING,
        {"model_type": "qwen3_moe", "num_experts": 8, "norm_topk_prob": True},
    ),
    "phi2": (
        "phi2",
        {
            "attention.layer_norm_epsilon": 1e-5,
            "attention.layer_norm_rms_epsilon": None,
            "rope.dimension_count": 8,
        },
        EMBEDDING,
        {"model_type": "phi", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    ),
    "phi3": (
        "phi3",
        {
            "rope.dimension_count": 16,
            "attention.sliding_window": 100,
            "rope.scaling.original_context_length": 256,
            "rope.scaling.attn_factor": 1.25,
        },
        EMBEDDING
        | {
            "rope_factors_long.weight": np.full(8, 2.0, "f4"),
            "rope_factors_short.weight": np.full(8, 1.0, "f4"),
        },
        {
            "model_type": "phi3",
            "sliding_window": 100,
            "partial_rotary_factor": 1.0,
            "original_max_position_embeddings": 256,
            "rope_parameters": THETA
            | {
                "rope_type": "longrope",
                "long_factor": [2.0] * 8,
                "short_factor": [1.0] * 8,
                "original_max_position_embeddings": 256,
                "attention_factor": 1.25,
            },
        },
    ),
    "gemma2": (
        "gemma2",
        {
            "attention.sliding_window": 100,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "attention.key_length": 32,
        },
        EMBEDDING,
        {
            "model_type": "gemma2",
            "hidden_activation": "gelu_pytorch_tanh",
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma3": (
        "gemma3",
        {"block_count": 7, "attention.sliding_window": 100},
        EMBEDDING,
        {
            "model_type": "gemma3_text",
            "sliding_window": 100,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": DEFAULT_ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
    ),
    "gpt-oss": (
        "gpt-oss",
        MOE
        | {
            "expert_feed_forward_length": 48,
            "attention.sliding_window": 100,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 128,
        },
        EMBEDDING | {"blk.0.attn_q.bias": np.zeros(64, "f4")},
        {
            "model_type": "gpt_oss",
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "intermediate_size": 48,
            "attention_bias": True,
            "sliding_window": 100,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": THETA
            | {
                "rope_type": "yarn",
                "factor": 32.0,
                "original_max_position_embeddings": 128,
                "truncate": False,
            },
        },
    ),
    "smollm3": ("smollm3", {}, EMBEDDING, {"model_type": "smollm3"}),
    "granite": (
        "granite",
        {
            "attention.scale": 0.5,
            "embedding_scale": 12.0,
            "residual_scale": 0.25,
            "logit_scale": 8.0,
        },
        EMBEDDING,
        {
            "model_type": "granite",
            "attention_multiplier": 0.5,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.25,
            "logits_scaling": 8.0,
        },
    ),
    "olmo2": ("olmo2", {}, EMBEDDING, {"model_type": "olmo2"}),
    "olmo3": (
        "olmo2",
        {
            "block_count": 5,
            "attention.sliding_window": 100,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 128,
        },
        EMBEDDING,
        {
            "model_type": "olmo3",
            "architectures": ["Olmo3ForCausalLM"],
            "sliding_window": 100,
            "layer_types": [
                *["sliding_attention"] * 3,
                "full_attention",
                "sliding_attention",
            ],
            "rope_parameters": {
                "full_attention": THETA
                | {
                    "rope_type": "yarn",
                    "factor": 8.0,
                    "original_max_position_embeddings": 128,
                },
                "sliding_attention": DEFAULT_ROPE,
            },
        },
    ),
}
