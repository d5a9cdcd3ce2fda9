"""`config.json` from the metadata of a GGUF file."""

from typing import Any

import transformers

# How llama.cpp names what transformers' configurations share.
_SHARED = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
}
_ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
# One layer in six of Gemma 3 sees the whole context; the others' rope has a base of its own.
_GEMMA3_PATTERN = 6
_GEMMA3_LOCAL_THETA = 10_000.0


def config(fields: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """Returns the configuration that the fields describe.

    Args:
        fields: all metadata of the file.
        tied: the file has no output layer apart from the embedding.

    Raises:
        ValueError: the architecture or its rope scaling is not known here; a guess would give a
            model that runs and answers wrongly.
    """
    architecture = fields["general.architecture"]
    if architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ValueError(f"architecture is not known: {architecture}; known: {known}")
    scaling = fields.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in fields:
        raise ValueError(f"rope scaling is not known here: {scaling}")
    model_type, model_class = _ARCHITECTURES[architecture]

    def field(name: str) -> Any:
        return fields[f"{architecture}.{name}"]

    theta = {"rope_type": "default", "rope_theta": field("rope.freq_base")}
    values = {
        "architectures": [model_class],
        "model_type": model_type,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        # The file has a float32 of the decimal number that the checkpoint was trained with.
        "rms_norm_eps": float(f"{field('attention.layer_norm_rms_epsilon'):.3g}"),
        "tie_word_embeddings": tied,
        "rope_parameters": theta,
        "dtype": "bfloat16",
        "transformers_version": transformers.__version__,
    }
    values |= {name: field(key) for key, name in _SHARED.items()}
    heads = values["num_attention_heads"]
    values["head_dim"] = fields.get(
        f"{architecture}.attention.key_length", values["hidden_size"] // heads
    )
    if architecture == "gemma3":
        values |= _gemma3(field("attention.sliding_window"), values["num_hidden_layers"], theta)
        values["query_pre_attn_scalar"] = values["head_dim"]
    else:
        values["hidden_act"] = "silu"
    return values | special_token_ids(fields)


def special_token_ids(fields: dict[str, Any]) -> dict[str, int]:
    """Returns the ids of the begin, end and padding tokens under their names in `config.json`."""
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    keys = {hf: f"tokenizer.ggml.{name}_token_id" for hf, name in names.items()}
    return {f"{hf}_token_id": fields[key] for hf, key in keys.items() if key in fields}


def _gemma3(window: int, num_layers: int, theta: dict[str, Any]) -> dict[str, Any]:
    kinds = ["sliding_attention"] * (_GEMMA3_PATTERN - 1) + ["full_attention"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": window,
        "layer_types": [kinds[index % _GEMMA3_PATTERN] for index in range(num_layers)],
        "rope_parameters": {
            "full_attention": theta,
            "sliding_attention": theta | {"rope_theta": _GEMMA3_LOCAL_THETA},
        },
    }
