"""Real weights rounded to 4 bits, in the layouts of AWQ, GPTQ and MLX's MXFP4.

Rounding to the nearest step of each group is not what the first two do, but what they store looks
the same, and a small model still answers.
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

# Of MXFP4: inputs that share a power of two, and the positive values of a code.
_MXFP4_GROUP_SIZE: Final = 32
_E2M1: Final = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])

# A weight `[inputs, outputs]` as tensors of a checkpoint.
_Layout = Callable[[torch.Tensor], dict[str, torch.Tensor]]


def _packed(values: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Eight values along the last axis in a word of 32 bits."""
    eights = values.to(torch.int64).unflatten(-1, (-1, 8))[..., list(order)]
    words = (eights << (4 * torch.arange(8))).sum(-1)
    # The same bits with a sign.
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _awq(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    integers, zeros, scales = _rounded(weight)
    return {
        "qweight": _packed(integers, _AWQ_ORDER),
        "qzeros": _packed(zeros, _AWQ_ORDER),
        "scales": scales,
    }


def _gptq(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    integers, zeros, scales = _rounded(weight)
    return {
        "qweight": _packed(integers.T).T.contiguous(),
        # The first version of the format stores one less.
        "qzeros": _packed(zeros - 1),
        "scales": scales,
        "g_idx": torch.arange(len(integers), dtype=torch.int32) // GROUP_SIZE,
    }


def _mxfp4(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    groups = weight.T.unflatten(-1, (-1, _MXFP4_GROUP_SIZE))
    # The largest value of a group becomes one of 4 to 8, of which 6 is the last that there is.
    exponents = groups.abs().amax(-1).clamp(min=1e-30).log2().floor() - 2
    values = groups / exponents.exp2()[..., None]
    codes = (values.abs()[..., None] - _E2M1).abs().argmin(-1) + 8 * (values < 0)
    return {
        "weight": _packed(codes.flatten(-2)).view(torch.uint32),
        "scales": (exponents + 127).to(torch.uint8),
    }


_ZERO_POINTED: Final = {"bits": 4, "group_size": GROUP_SIZE}
# By name: the layout, and what the configuration says of it.
_LAYOUTS: Final[dict[str, tuple[_Layout, dict[str, Any]]]] = {
    "awq": (
        _awq,
        _ZERO_POINTED | {"quant_method": "awq", "version": "gemm", "zero_point": True},
    ),
    "gptq": (_gptq, _ZERO_POINTED | {"quant_method": "gptq", "desc_act": False, "sym": False}),
    "mxfp4": (_mxfp4, {"bits": 4, "group_size": _MXFP4_GROUP_SIZE, "mode": "mxfp4"}),
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
        parts = layout(weight.float().T)
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{kind}": tensor.contiguous() for kind, tensor in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for path in model.iterdir():
        if path.name not in ("model.safetensors", "config.json"):
            (folder / path.name).symlink_to(path.resolve())
    whole = json.loads((model / "config.json").read_text())
    whole["quantization_config"] = config
    if "mode" in config:
        # MLX writes it under both names.
        whole["quantization"] = config
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
