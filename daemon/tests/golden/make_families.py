"""Writes a tiny random checkpoint per row of `families.json`, and what its reference makes of it.

`python make_families.py FOLDER` writes `FOLDER/NAME/` with `config.json` and `model.safetensors`,
as transformers saves them, and `golden.safetensors`: `token_ids` [96], 64 random ones and 32 greedy
ones after them, and `logits` [96, vocab_size] in float32. With names after it, of these rows alone.

The test `families` runs this once and keeps the folder until this file or the table changes.
"""

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from qwen_reference import QWenLMHeadModel
from transformers import AutoConfig, AutoModelForCausalLM

# What every row has, unless it says otherwise.
SHARED: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
NUM_PROMPT_TOKENS = 64
NUM_TOKENS = 96
# Least distance of the best two logits, in units of the largest: a greedy token must not hang on
# the order of a sum.
MIN_GAP = 2e-4


def randomize(model: torch.nn.Module) -> None:
    """Draws all parameters; those of norms around what leaves their input as it is.

    They are exact in bfloat16, so that a model in that format computes with the same ones.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "norm" in name or ".ln_" in name
            is_norm = is_norm and name.endswith("weight")
            stored_without_one = type(model).__name__.startswith("Gemma")
            parameter.normal_(1.0 if is_norm and not stored_without_one else 0.0, 0.25)
            parameter.copy_(parameter.bfloat16())


def to_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rounds weights to OCP's MXFP4: 32 floats of 4 bits share a power of two.

    Returns:
        Blocks `[.., groups, 16]`, the first of two values in the low bits; exponents `[.., groups]`;
        and what they stand for, like `weight`.
    """
    magnitudes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    groups = weight.unflatten(-1, (-1, 32))
    exponents = torch.ceil(torch.log2(groups.abs().amax(-1, keepdim=True) / 6))
    scaled = groups / 2**exponents
    codes = (scaled.abs().unsqueeze(-1) - magnitudes).abs().argmin(-1)
    values = magnitudes[codes] * torch.where(scaled < 0, -1.0, 1.0) * 2**exponents
    codes = (codes + 8 * (scaled < 0)).to(torch.uint8)
    blocks = codes[..., ::2] | codes[..., 1::2] << 4
    return blocks, (exponents.squeeze(-1) + 127).to(torch.uint8), values.flatten(-2)


def quantize_experts(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Rounds gpt-oss's experts to MXFP4.

    Returns:
        All tensors, with the experts as gpt-oss is published: outputs first.
    """
    tensors = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        if ".experts." in name and name.endswith("_proj"):
            blocks, scales, values = to_mxfp4(parameter.data.transpose(-1, -2))
            parameter.data.copy_(values.transpose(-1, -2))
            del tensors[name]
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def run(model: torch.nn.Module, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Continues a prompt greedily.

    Every forward has all the tokens that there will be, so that frequencies which depend on the
    length are the same in all of them; attention is causal, so the later ones do not matter.

    Returns:
        All tokens, the logits of each, and the least distance of the best two logits.
    """
    token_ids = torch.zeros(1, NUM_TOKENS, dtype=torch.int64)
    token_ids[0, : len(prompt)] = prompt
    gap = float("inf")
    for position in range(len(prompt), NUM_TOKENS):
        best = model(token_ids, use_cache=False).logits[0, position - 1].topk(2)
        token_ids[0, position] = best.indices[0]
        gap = min(gap, float(best.values[0] - best.values[1]))
    logits = model(token_ids, use_cache=False).logits[0]
    return token_ids[0], logits, gap / float(logits.abs().max())


def build(model_type: str, keys: dict[str, Any]) -> Any:
    """A model of the reference implementation, in float32."""
    if model_type == "qwen":
        return QWenLMHeadModel(keys)
    # The constructor changes the dictionaries that it is given.
    config = AutoConfig.for_model(model_type, **json.loads(json.dumps(keys)))
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def write(folder: Path, row: dict[str, Any]) -> None:
    """Writes the checkpoint of one row, and its golden."""
    for seed in range(100):
        torch.manual_seed(zlib.crc32(f"{row['name']} {seed}".encode()))
        model = build(row["model_type"], SHARED | row["config"])
        randomize(model)
        quantized = quantize_experts(model) if "mxfp4_experts" in row else None
        prompt = torch.randint(SHARED["vocab_size"], (NUM_PROMPT_TOKENS,))
        token_ids, logits, gap = run(model, prompt)
        if gap > MIN_GAP:
            break
    else:
        sys.exit(f"{row['name']}: no seed gives {MIN_GAP} between the best two logits")
    if quantized is not None:
        model.config.quantization_config = {"quant_method": "mxfp4"}
        model.save_pretrained(folder, state_dict=quantized)
    else:
        model.save_pretrained(folder)
    golden = {"token_ids": token_ids.to(torch.int32), "logits": logits.contiguous()}
    save_file(golden, folder / "golden.safetensors")


def main() -> None:
    """Writes rows below the folder that the command line names."""
    # Too small for threads to help.
    torch.set_num_threads(1)
    rows = json.loads(Path(__file__).with_name("families.json").read_text())
    folder, *names = sys.argv[1:]
    for row in rows:
        if names and row["name"] not in names:
            continue
        write(Path(folder) / row["name"], row)


if __name__ == "__main__":
    main()
