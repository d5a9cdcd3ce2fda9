"""Makes a Hugging Face folder of a GGUF file: config, tokenizer, and weights.

The weights are the file itself, which metald reads, or bfloat16 safetensors for whom it must be
comparable with other programs.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import save_file
from vllm_metal_rpc.gguf import write_folder

# Names of tensors: GGUF's, then transformers'. `{}` is the number of the block.
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
# Gemma has four norms a block, and GGUF calls the third what others call their second.
_GEMMA_NAMES = _NAMES | {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}


def convert(gguf_path: Path, folder: Path, *, weights: bool) -> None:
    """Writes config, tokenizer, chat template and weights into `folder`.

    Args:
        gguf_path: the file.
        folder: does not exist yet.
        weights: as bfloat16 safetensors; else the file is put (linked, if it can be) into the
            folder.

    Raises:
        GgufError: the file's architecture or tokenizer is not known.
    """
    folder.mkdir(parents=True)
    write_folder(gguf_path, folder)
    if not weights:
        os.link(gguf_path, folder / "model.gguf")
        return
    values = json.loads((folder / "config.json").read_text())
    tensors = dict(bfloat16_tensors(gguf.GGUFReader(gguf_path), values))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def bfloat16_tensors(
    reader: gguf.GGUFReader, values: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the dequantised tensors under transformers' names.

    Raises:
        ValueError: a tensor's name is not known here.
    """
    is_gemma = values["model_type"].startswith("gemma")
    names = _GEMMA_NAMES if is_gemma else _NAMES
    heads = {"q_proj": values["num_attention_heads"], "k_proj": values["num_key_value_heads"]}
    for tensor in reader.tensors:
        stem, _, kind = tensor.name.rpartition(".")
        block = stem.split(".")[1] if stem.startswith("blk.") else ""
        known = names.get(stem.replace(f".{block}.", ".{}.", 1) if block else stem)
        if known is None:
            raise ValueError(f"tensor is not known: {tensor.name}")
        name = known.format(block)
        weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        module = name.rpartition(".")[2]
        if values["model_type"] == "llama" and module in heads:
            weight = rotate_halves(weight, heads[module])
        if is_gemma and module.endswith("norm"):
            # GGUF has what the norm multiplies with; Gemma's checkpoints have that less one.
            weight -= 1
        yield f"{name}.{kind}", weight.to(torch.bfloat16)


def rotate_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorders a projection from GGUF's interleaved rotary pairs to transformers' two halves.

    Shapes:
        weight: `[num_heads * head_dim, hidden_size]` or without the last, as is the result.
    """
    rows = weight.shape[0]
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)
