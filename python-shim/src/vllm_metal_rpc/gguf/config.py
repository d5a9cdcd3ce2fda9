"""`config.json` from the metadata of a GGUF file.

Keys are llama.cpp's on the left and transformers' on the right. What llama.cpp does not write,
because its code has it as a constant, is a constant here as well.

Source: llama.cpp `gguf-py/gguf/constants.py` and `src/llama-model.cpp`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vllm_metal_rpc.gguf import rope
from vllm_metal_rpc.gguf.file import GgufError, GgufFile

_SHARED: Final = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
_OPTIONAL: Final = {
    "feed_forward_length": "intermediate_size",
    "attention.head_count_kv": "num_key_value_heads",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    # Granite's.
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
# One layer in so many sees the whole context: the last of each period.
_GEMMA_PERIOD: Final = {"gemma2": 2, "gemma3": 6}
_OLMO3_PERIOD: Final = 4
_GEMMA3_LOCAL_THETA: Final = 10_000.0
# The largest of each, whose queries are scaled by another rule.
_GEMMA_27B_LAYERS: Final = {"gemma2": 46, "gemma3": 62}

# Reads what is special; the values that all architectures have are known by then.
_Extras = Callable[[GgufFile, dict[str, Any]], dict[str, Any]]


def _silu(_file: GgufFile, _values: dict[str, Any]) -> dict[str, Any]:
    return {"hidden_act": "silu"}


def _llama(file: GgufFile, _values: dict[str, Any]) -> dict[str, Any]:
    extras: dict[str, Any] = {"hidden_act": "silu"}
    if experts := file.get("expert_count"):
        # Mixtral calls itself a Llama.
        extras |= {
            "model_type": "mixtral",
            "architectures": ["MixtralForCausalLM"],
            "num_local_experts": experts,
        }
    elif "blk.0.attn_q.bias" in file.tensors:
        extras["attention_bias"] = "blk.0.attn_output.bias" in file.tensors
        if not extras["attention_bias"]:
            # Llama's blocks with Qwen's biases.
            extras |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    return extras


def _qwen2_moe(file: GgufFile, _values: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "num_experts": file.field("expert_count"),
        "norm_topk_prob": False,
        "qkv_bias": "blk.0.attn_q.bias" in file.tensors,
    }


def _qwen3_moe(file: GgufFile, values: dict[str, Any]) -> dict[str, Any]:
    # Not in every file, because all layers have experts.
    values.setdefault("intermediate_size", values["moe_intermediate_size"])
    return {"hidden_act": "silu", "num_experts": file.field("expert_count"), "norm_topk_prob": True}


def _phi2(file: GgufFile, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_act": "gelu_new",
        "layer_norm_eps": _decimal(file.field("attention.layer_norm_epsilon")),
        "partial_rotary_factor": file.field("rope.dimension_count") / values["head_dim"],
    }


def _phi3(file: GgufFile, values: dict[str, Any]) -> dict[str, Any]:
    window = file.get("attention.sliding_window") or 0
    has_window = 0 < window < values["max_position_embeddings"]
    return {
        "hidden_act": "silu",
        "sliding_window": window if has_window else None,
        "partial_rotary_factor": file.field("rope.dimension_count") / values["head_dim"],
        "original_max_position_embeddings": file.get("rope.scaling.original_context_length")
        or values["max_position_embeddings"],
    }


def _layer_types(num_layers: int, period: int) -> list[str]:
    kinds = ["sliding_attention"] * (period - 1) + ["full_attention"]
    return [kinds[index % period] for index in range(num_layers)]


def _gemma(file: GgufFile, values: dict[str, Any]) -> dict[str, Any]:
    num_layers, head_dim = values["num_hidden_layers"], values["head_dim"]
    is_27b = num_layers == _GEMMA_27B_LAYERS[file.architecture]
    extras = {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": file.field("attention.sliding_window"),
        "layer_types": _layer_types(num_layers, _GEMMA_PERIOD[file.architecture]),
        "query_pre_attn_scalar": values["hidden_size"] // values["num_attention_heads"]
        if is_27b
        else head_dim,
    }
    if file.architecture == "gemma2":
        return extras | {
            "attn_logit_softcapping": file.get("attn_logit_softcapping"),
            "final_logit_softcapping": file.get("final_logit_softcapping"),
        }
    local = {"rope_type": "default", "rope_theta": _GEMMA3_LOCAL_THETA}
    whole = values["rope_parameters"]
    return extras | {
        "rope_parameters": {"full_attention": whole, "sliding_attention": local},
    }


def _gpt_oss(file: GgufFile, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "num_local_experts": file.field("expert_count"),
        "intermediate_size": file.field("expert_feed_forward_length"),
        "sliding_window": file.field("attention.sliding_window"),
        "layer_types": _layer_types(values["num_hidden_layers"], 2),
        # The ends of its yarn are not whole numbers.
        "rope_parameters": values["rope_parameters"] | {"truncate": False},
    }


def _olmo2(file: GgufFile, values: dict[str, Any]) -> dict[str, Any]:
    extras: dict[str, Any] = {"hidden_act": "silu"}
    if window := file.get("attention.sliding_window"):
        # OLMo 3 calls itself OLMo 2. Its layers with a window are rotated without scaling.
        whole = values["rope_parameters"]
        local = {"rope_type": "default", "rope_theta": whole["rope_theta"]}
        extras |= {
            "model_type": "olmo3",
            "architectures": ["Olmo3ForCausalLM"],
            "sliding_window": window,
            "layer_types": _layer_types(values["num_hidden_layers"], _OLMO3_PERIOD),
            "rope_parameters": {"full_attention": whole, "sliding_attention": local},
        }
    return extras


@dataclass(frozen=True)
class _Architecture:
    """What transformers calls an architecture, and what is special about it."""

    model_type: str
    model_class: str
    extras: _Extras = _silu


_ARCHITECTURES: Final[Mapping[str, _Architecture]] = {
    "llama": _Architecture("llama", "LlamaForCausalLM", _llama),
    "qwen2": _Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen2moe": _Architecture("qwen2_moe", "Qwen2MoeForCausalLM", _qwen2_moe),
    "qwen3": _Architecture("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": _Architecture("qwen3_moe", "Qwen3MoeForCausalLM", _qwen3_moe),
    "phi2": _Architecture("phi", "PhiForCausalLM", _phi2),
    "phi3": _Architecture("phi3", "Phi3ForCausalLM", _phi3),
    "gemma2": _Architecture("gemma2", "Gemma2ForCausalLM", _gemma),
    "gemma3": _Architecture("gemma3_text", "Gemma3ForCausalLM", _gemma),
    "gpt-oss": _Architecture("gpt_oss", "GptOssForCausalLM", _gpt_oss),
    "smollm3": _Architecture("smollm3", "SmolLM3ForCausalLM"),
    "granite": _Architecture("granite", "GraniteForCausalLM"),
    "olmo2": _Architecture("olmo2", "Olmo2ForCausalLM", _olmo2),
}


def config(file: GgufFile) -> dict[str, Any]:
    """Returns the configuration that a file describes.

    Raises:
        GgufError: The architecture or its rope scaling is not known here; a guess would give
            a model that runs and answers wrongly.
    """
    known = _ARCHITECTURES.get(file.architecture)
    if known is None:
        names = ", ".join(_ARCHITECTURES)
        raise GgufError(
            f"{file.path}: architecture {file.architecture} is not supported; supported: {names}"
        )
    values: dict[str, Any] = {
        "architectures": [known.model_class],
        "model_type": known.model_type,
        "vocab_size": len(file.tokens),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": _dtype(file),
    }
    values |= {name: file.field(key) for key, name in _SHARED.items()}
    values |= {name: v for key, name in _OPTIONAL.items() if (v := file.get(key)) is not None}
    heads = values["num_attention_heads"]
    values["head_dim"] = file.get("attention.key_length") or values["hidden_size"] // heads
    if (epsilon := file.get("attention.layer_norm_rms_epsilon")) is not None:
        values["rms_norm_eps"] = _decimal(epsilon)
    values["rope_parameters"] = rope.parameters(file, values["head_dim"])
    return values | known.extras(file, values) | special_token_ids(file)


def special_token_ids(file: GgufFile) -> dict[str, int]:
    """Returns the ids of the begin, end and padding tokens under their names in `config.json`."""
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    keys = {hf: f"tokenizer.ggml.{name}_token_id" for hf, name in names.items()}
    return {f"{hf}_token_id": file.values[key] for hf, key in keys.items() if key in file.values}


def _decimal(value: float) -> float:
    """The file has a float32 of the decimal number that the checkpoint was trained with."""
    return float(f"{value:.3g}")


def _dtype(file: GgufFile) -> str:
    """What unquantised weights are held in: as they are stored; Gemma overflows in float16."""
    if file.float_type == "float16" and file.architecture.startswith("gemma"):
        return "bfloat16"
    return file.float_type
