"""Writes tiny checkpoints, a folder each, and the logits that transformers computes with them.

Run with the versions that the files name: `python make_model_goldens.py`.

Weights are drawn from a seed and rounded to bfloat16, so every dtype that a test loads them as
holds the same values or (float16) values within its own rounding.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

SHARED: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
# Folders by name, which starts with the family.
CASES: dict[str, dict[str, Any]] = {
    # Grouped heads, tied embeddings: SmolLM2 and Llama 3.2.
    "llama-tied": {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    # Llama 3.1: its rope, an untied head, one key-value head.
    "llama-llama3": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    # Every bias, as many key-value heads as heads, heads wider than hidden_size / num_heads.
    "llama-biased": {
        "num_attention_heads": 2,
        "head_dim": 24,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    },
    # A temperature on sine and cosine.
    "llama-yarn": {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None},
}
NUM_TOKENS = 37


def write(folder: Path, keys: dict[str, Any], seed: int) -> None:
    """Writes one checkpoint, and the logits of a random prompt beside it."""
    torch.manual_seed(seed)
    family = folder.name.partition("-")[0]
    # The constructor changes the dictionaries that it is given.
    config = AutoConfig.for_model(family, **json.loads(json.dumps(SHARED | keys)))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.25)
    model = model.to(torch.bfloat16)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    (folder / "model.safetensors").chmod(0o644)
    token_ids = torch.randint(SHARED["vocab_size"], (1, NUM_TOKENS))
    with torch.no_grad():
        # Rope's buffers must not go through bfloat16, so the model is made again.
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        logits = model(token_ids).logits[0]
    golden = {
        "family": family,
        "made_by": "daemon/tests/golden/make_model_goldens.py",
        "with": {"transformers": transformers.__version__, "torch": torch.__version__},
        "seed": seed,
        "token_ids": token_ids[0].tolist(),
        # Seven digits: what a float32 holds.
        "logits": [[float(f"{value:.7g}") for value in row] for row in logits.tolist()],
    }
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")


def main() -> None:
    """Writes all cases beside this file."""
    for seed, (name, keys) in enumerate(CASES.items()):
        write(Path(__file__).with_name(name), keys, seed)


if __name__ == "__main__":
    main()
