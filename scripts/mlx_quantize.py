"""Quantises a Hugging Face folder as mlx-lm's `convert` does: MLX's affine layout."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_ROWS = 1 << 14


def quantize(source: Path, folder: Path, *, bits: int, group_size: int) -> None:
    """Writes a copy of `source` into `folder` whose matrices are quantised."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != "model.safetensors":
            shutil.copyfile(path, folder / path.name)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if weight.ndim == 2 and weight.shape[1] % group_size == 0:
            # By rows: the integers of a large vocabulary would take gigabytes.
            parts = [
                quantize_matrix(rows, bits=bits, group_size=group_size)
                for rows in weight.split(_ROWS)
            ]
            packed, scales, biases = (torch.cat(part) for part in zip(*parts, strict=True))
            module = name.removesuffix(".weight")
            tensors |= {name: packed, f"{module}.scales": scales, f"{module}.biases": biases}
        else:
            tensors[name] = weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "mlx"})
    config = json.loads((source / "config.json").read_text())
    # mlx-lm writes it under both names.
    for key in ("quantization", "quantization_config"):
        config[key] = {"group_size": group_size, "bits": bits, "mode": "affine"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def quantize_matrix(
    weight: torch.Tensor, *, bits: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns packed integers, scales and biases.

    Shapes:
        weight: `[outputs, inputs]`; packed `[outputs, inputs * bits / 32]` uint32, scales and
            biases `[outputs, inputs / group_size]` of the weight's dtype.

    Source: MLX `affine_quantize` (mlx/ops.cpp).
    """
    groups = weight.float().unflatten(1, (-1, group_size))
    low, high = groups.amin(-1), groups.amax(-1)
    is_low_larger = low.abs() > high.abs()
    scales = ((high - low) / (2**bits - 1)).clamp(min=1e-7)
    scales = torch.where(is_low_larger, scales, -scales)
    # The end of larger magnitude is met exactly, and so is zero.
    edge = torch.where(is_low_larger, low, high)
    steps = torch.round(edge / scales)
    scales = torch.where(steps == 0, scales, edge / steps)
    biases = torch.where(steps == 0, torch.zeros_like(edge), edge)
    scales, biases = scales.to(weight.dtype), biases.to(weight.dtype)
    integers = (groups - biases.float()[..., None]) / scales.float()[..., None]
    integers = integers.round().clamp(0, 2**bits - 1).to(torch.int64).flatten(1)
    return pack(integers, bits), scales, biases


def pack(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns the integers' bits one after the other, from the lowest of the first word on.

    Shapes:
        integers: `[rows, n]` int64; the result `[rows, n * bits / 32]` uint32.
    """
    # 32 integers are `bits` words.
    chunks = integers.unflatten(1, (-1, 32))
    words = torch.zeros(*chunks.shape[:2], bits, dtype=torch.int64)
    for index in range(32):
        word, shift = divmod(index * bits, 32)
        words[..., word] |= chunks[..., index] << shift & 0xFFFF_FFFF
        if shift + bits > 32:
            words[..., word + 1] |= chunks[..., index] >> (32 - shift)
    return words.flatten(1).to(torch.uint32)
