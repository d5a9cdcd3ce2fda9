"""Rotary embedding as the header of a GGUF file describes it.

llama.cpp has Llama 3's scaling not as parameters but as a tensor of factors, one a frequency. The
parameters are found again by computing the factors of those that are in use.

Source: llama.cpp `convert_hf_to_gguf.py`; transformers `modeling_rope_utils.py`.
"""

import math
from typing import Any, Final

from vllm_metal_rpc.gguf.file import GgufError, GgufFile

_DEFAULT_THETA: Final = 10_000.0
# What Llama 3.1 and 3.2 are scaled by; the rest of the parameters has never differed.
_LLAMA3_FACTORS: Final = (8.0, 16.0, 32.0)
_LLAMA3: Final = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_KINDS: Final = ("none", "linear", "yarn", "longrope")


def parameters(file: GgufFile, head_dim: int) -> dict[str, Any]:
    """Returns `rope_parameters`.

    Raises:
        GgufError: The scaling is not known here.
    """
    theta = {"rope_theta": file.get("rope.freq_base") or _DEFAULT_THETA}
    if "rope_freqs.weight" in file.tensors:
        return theta | _llama3(file, head_dim, theta["rope_theta"])
    kind = file.get("rope.scaling.type") or "none"
    factor = file.get("rope.scaling.factor")
    original = file.get("rope.scaling.original_context_length")
    if "rope_factors_long.weight" in file.tensors:
        return theta | _longrope(file, original)
    if kind == "none" or (kind == "linear" and factor in (None, 1.0)):
        return theta | {"rope_type": "default"}
    if kind == "linear":
        return theta | {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        scaling = {"rope_type": "yarn", "factor": factor}
        if original is not None:
            scaling["original_max_position_embeddings"] = original
        return theta | scaling
    raise GgufError(
        f"{file.path}: rope scaling {kind} is not supported; supported: {', '.join(_KINDS)}"
    )


def _longrope(file: GgufFile, original: int | None) -> dict[str, Any]:
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": file.floats("rope_factors_long.weight"),
        "short_factor": file.floats("rope_factors_short.weight"),
    }
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    if (attention := file.get("rope.scaling.attn_factor")) is not None:
        scaling["attention_factor"] = attention
    return scaling


def _llama3(file: GgufFile, head_dim: int, theta: float) -> dict[str, Any]:
    stored = file.floats("rope_freqs.weight")
    for factor in _LLAMA3_FACTORS:
        expected = _llama3_factors(factor, head_dim, theta)
        if len(stored) == len(expected) and all(
            math.isclose(a, b, rel_tol=1e-4) for a, b in zip(stored, expected, strict=True)
        ):
            return _LLAMA3 | {"factor": factor}
    raise GgufError(
        f"{file.path}: rope_freqs.weight is not supported: it is not Llama 3's scaling by "
        f"{', '.join(f'{factor:g}' for factor in _LLAMA3_FACTORS)}"
    )


def _llama3_factors(factor: float, head_dim: int, theta: float) -> list[float]:
    """What each frequency is divided by."""
    old_len = float(_LLAMA3["original_max_position_embeddings"])  # type: ignore[arg-type]
    low, high = 1.0, 4.0
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (index / head_dim)
        if wavelength < old_len / high:
            factors.append(1.0)
        elif wavelength > old_len / low:
            factors.append(factor)
        else:
            smooth = (old_len / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
