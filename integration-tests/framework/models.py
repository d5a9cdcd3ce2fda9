"""Checkpoints: real ones through `scripts/get-model`, tiny ones with random weights."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from framework import paths

# Seed of all random weights.
SEED: Final = 4
# The token of `tiny_with_tokenizer` whose embedding is not a number.
NAN_TOKEN: Final = 300
_TINY: Final[dict[str, Any]] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3_ROPE: Final = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Small, so that a short context crosses all three regions of the scaling.
    "original_max_position_embeddings": 64,
}
# What differs from `_TINY`, by name.
TINY_LLAMAS: Final[dict[str, dict[str, Any]]] = {
    "gqa": {},
    "mha-tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "mqa-wide-heads": {"num_key_value_heads": 1, "head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3-rope": {"rope_parameters": _LLAMA3_ROPE},
    "linear-rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "odd-vocabulary": {"vocab_size": 333},
}


def real(name: str) -> Path:
    """A real model's folder, fetched once."""
    command = [str(paths.REPOSITORY / "scripts" / "get-model"), name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)} failed:\n{result.stderr}"
    return Path(result.stdout.splitlines()[-1])


def tiny_llama(name: str, folder: Path, *, max_shard_size: str = "50GB", **changes: Any) -> Path:
    """A random Llama of a shape from `TINY_LLAMAS`, changed or as it is, in float32."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(LlamaConfig(**(_TINY | TINY_LLAMAS[name] | changes)))
    _make_decisive(model)
    folder.mkdir(parents=True)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def _make_decisive(model: PreTrainedModel) -> None:
    """Spreads the weights: with transformers' small ones the logits all but tie."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            elif "embed_tokens" in name:
                # Small: tied embeddings would otherwise repeat the last token for ever.
                weight.normal_(0.0, 0.05)
            else:
                weight.normal_(0.0, 0.2)


def tiny_with_tokenizer(folder: Path, tokenizer: Path, **changes: Any) -> Path:
    """A tiny Llama that `vllm serve` takes, and one of whose tokens makes its logits NaN.

    The vocabulary is a part of the tokenizer's, so prompts have to be token ids.
    """
    tiny_llama("gqa", folder, **changes)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][NAN_TOKEN] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for path in tokenizer.glob("*token*"):
        (folder / path.name).symlink_to(path.resolve())
    return folder


def with_config(model: Path, folder: Path, **changes: object) -> Path:
    """A copy of a checkpoint (of links to it) with another `config.json`."""
    _link_all(model, folder)
    config = json.loads((model / "config.json").read_text()) | changes
    _replace(folder / "config.json", json.dumps(config).encode())
    return folder


def with_legacy_rope(model: Path, folder: Path) -> Path:
    """A copy whose config says `rope_theta` and `rope_scaling`, as checkpoints before 2026 do."""
    config = json.loads((model / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    _link_all(model, folder)
    _replace(folder / "config.json", json.dumps(config).encode())
    return folder


def truncated(model: Path, folder: Path) -> Path:
    """A copy whose weights end in the middle."""
    _link_all(model, folder)
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    _replace(weights, data[: len(data) // 2])
    return folder


def with_weights(
    model: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> Path:
    """A copy with weights changed in place by `change`."""
    _link_all(model, folder)
    weights = load_file(model / "model.safetensors")
    change(weights)
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _link_all(model: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in model.iterdir():
        (folder / path.name).symlink_to(path.resolve())


def _replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)
