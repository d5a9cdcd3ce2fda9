"""Writes the tiny checkpoints that tests load, spoil and serve, a folder each.

Run with transformers 5.20: `python make_checkpoints.py`. What models compute is tested with
those of `make_families.py`, which are not stored.

Weights are drawn from a seed and rounded to bfloat16, so every dtype that a test loads them as
holds the same values or (float16) values within its own rounding.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SHARED: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
# Folders by name, which starts with the family's, with the seed of each.
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    # Grouped heads, tied embeddings: SmolLM2 and Llama 3.2.
    "llama-tied": (
        0,
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    # Every bias, as many key-value heads as heads, heads wider than hidden_size / num_heads.
    "llama-biased": (
        2,
        {
            "num_attention_heads": 2,
            "head_dim": 24,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": 10000.0,
                "factor": 4.0,
            },
        },
    ),
    # A layer that sees everything between two that see six tokens.
    "ministral-windows": (
        3,
        {
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
        },
    ),
}


def write(folder: Path, keys: dict[str, Any], seed: int) -> None:
    """Writes one checkpoint."""
    torch.manual_seed(seed)
    model_type = folder.name.partition("-")[0]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(SHARED | keys)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.25)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    (folder / "model.safetensors").chmod(0o644)


def main() -> None:
    """Writes all of them beside this file."""
    for name, (seed, keys) in CASES.items():
        write(Path(__file__).with_name(name), keys, seed)


if __name__ == "__main__":
    main()
