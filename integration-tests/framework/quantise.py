"""Real weights rounded to 4 bits, in the layouts of AWQ and GPTQ.

Rounding to the nearest step of each group of 64 is not what those methods do, but what they store
looks the same, and a small model still answers.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

GROUP_SIZE: Final = 64
# Where AWQ puts the integers of eight outputs in a word.
_AWQ_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)

# Integers and zero points `[groups or inputs, outputs]`, and scales, as tensors of a checkpoint.
_Layout = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]


def _packed(values: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Eight values along the last axis in a word of 32 bits."""
    eights = values.to(torch.int64).unflatten(-1, (-1, 8))[..., list(order)]
    words = (eights << (4 * torch.arange(8))).sum(-1)
    # The same bits with a sign.
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _awq(integers: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> dict[str, Any]:
    return {
        "qweight": _packed(integers, _AWQ_ORDER),
        "qzeros": _packed(zeros, _AWQ_ORDER),
        "scales": scales,
    }


def _gptq(integers: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> dict[str, Any]:
    return {
        "qweight": _packed(integers.T).T.contiguous(),
        # The first version of the format stores one less.
        "qzeros": _packed(zeros - 1),
        "scales": scales,
        "g_idx": torch.arange(len(integers), dtype=torch.int32) // GROUP_SIZE,
    }


_LAYOUTS: Final[dict[str, tuple[_Layout, dict[str, Any]]]] = {
    "awq": (_awq, {"version": "gemm", "zero_point": True}),
    "gptq": (_gptq, {"desc_act": False, "sym": False}),
}


def quantise(model: Path, folder: Path, method: str) -> Path:
    """A copy of a checkpoint whose linear layers are in the layout of `method`."""
    layout, config = _LAYOUTS[method]
    folder.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(model / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = weight
            continue
        parts = layout(*_rounded(weight.float().T))
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{kind}": tensor.contiguous() for kind, tensor in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for path in model.iterdir():
        if path.name not in ("model.safetensors", "config.json"):
            (folder / path.name).symlink_to(path.resolve())
    whole = json.loads((model / "config.json").read_text())
    whole["quantization_config"] = {
        "quant_method": method,
        "bits": 4,
        "group_size": GROUP_SIZE,
    } | config
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


def _rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers, zero points and scales of `weight` `[inputs, outputs]`."""
    groups = weight.unflatten(0, (-1, GROUP_SIZE))
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-6).half()
    zeros = (-low / scales.float()).round().clamp(1, 15)
    integers = (groups / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 15)
    return integers.flatten(0, 1), zeros, scales
