"""Writes a tiny random Llama in every format of quantised weights, each with its plain twin.

`python make_formats.py FOLDER` writes `FOLDER/NAME/`, a checkpoint in that format, and
`FOLDER/NAME/plain/`, the same weights in float32: what its numbers stand for. Numbers are drawn as
they are stored, so nothing here quantises anything.

The test `formats` runs this once and keeps the folder until this file changes.
"""

import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HIDDEN, KV, VOCAB = 256, 128, 64
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
LAYER = "model.layers.0"
# Outputs and inputs of every matrix.
MATRICES = {
    f"{LAYER}.self_attn.q_proj": (HIDDEN, HIDDEN),
    f"{LAYER}.self_attn.k_proj": (KV, HIDDEN),
    f"{LAYER}.self_attn.v_proj": (KV, HIDDEN),
    f"{LAYER}.self_attn.o_proj": (HIDDEN, HIDDEN),
    f"{LAYER}.mlp.gate_proj": (HIDDEN, HIDDEN),
    f"{LAYER}.mlp.up_proj": (HIDDEN, HIDDEN),
    f"{LAYER}.mlp.down_proj": (HIDDEN, HIDDEN),
}
# The same model with experts, which mlx-lm has in stacks: outputs of the first expert first.
NUM_EXPERTS = 4
SPARSE_CONFIG = CONFIG | {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": NUM_EXPERTS,
    "num_experts_per_tok": 2,
}
EXPERTS = f"{LAYER}.block_sparse_moe.switch_mlp."
ROUTER = f"{LAYER}.block_sparse_moe.gate"
SPARSE_MATRICES = {
    **{name: shape for name, shape in MATRICES.items() if ".mlp." not in name},
    **{
        f"{EXPERTS}{kind}_proj": (NUM_EXPERTS * HIDDEN, HIDDEN)
        for kind in ("gate", "up", "down")
    },
}
TABLES = {"model.embed_tokens": (VOCAB, HIDDEN), "lm_head": (VOCAB, HIDDEN)}
NORMS = [f"{LAYER}.input_layernorm", f"{LAYER}.post_attention_layernorm", "model.norm"]
# The tensors of a layer as they are stored, and its weights.
Layer = tuple[dict[str, torch.Tensor], torch.Tensor]
# A format: makes a layer of a shape.
Format = Callable[[tuple[int, int]], Layer]


def pack(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """Bits one after the other along the last axis, from the lowest of the first byte on."""
    shifts = torch.arange(bits)
    stream = (integers[..., None] >> shifts & 1).flatten(-2).unflatten(-1, (-1, 8))
    return (stream << torch.arange(8)).sum(-1).to(torch.uint8)


def words(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bytes as little-endian words."""
    return packed.contiguous().view(dtype)


def integers(shape: tuple[int, ...], bits: int) -> torch.Tensor:
    """Random integers."""
    return torch.randint(0, 2**bits, shape)


def scales(shape: tuple[int, ...], bits: int, dtype: torch.dtype) -> torch.Tensor:
    """Random scales of both signs, for weights of some 0.1."""
    return (torch.randn(shape).clamp(-2, 2) * 0.2 / 2**bits).to(dtype)


def spread(values: torch.Tensor, group: int) -> torch.Tensor:
    """One value a group as one a weight."""
    return values.float().repeat_interleave(group, -1)


def mlx(bits: int, group: int, dtype: torch.dtype = torch.bfloat16) -> Format:
    """MLX's affine format."""

    def make(shape: tuple[int, int]) -> Layer:
        outputs, inputs = shape
        q = integers(shape, bits)
        s = scales((outputs, inputs // group), bits, dtype)
        b = (s * -(2 ** (bits - 1) - 0.5)).to(dtype)
        tensors = {
            "weight": words(pack(q, bits), torch.uint32),
            "scales": s,
            "biases": b,
        }
        return tensors, q * spread(s, group) + spread(b, group)

    return make


def mxfp4(names: tuple[str, str] = ("weight", "scales")) -> Format:
    """OCP's MXFP4 as MLX packs it, or as gpt-oss is published."""
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])

    def make(shape: tuple[int, int]) -> Layer:
        outputs, inputs = shape
        q = integers(shape, 4)
        exponents = torch.randint(119, 124, (outputs, inputs // 32))
        weight = torch.cat([table, -table])[q] * spread(2.0 ** (exponents - 127), 32)
        packed = pack(q, 4)
        packed = words(packed, torch.uint32) if names[0] == "weight" else packed
        return {names[0]: packed, names[1]: exponents.to(torch.uint8)}, weight

    return make


def zero_pointed(
    shape: tuple[int, int], bits: int, group: int
) -> tuple[torch.Tensor, ...]:
    """Integers `[inputs, outputs]`, zero points and scales `[groups, outputs]`, and the weights."""
    outputs, inputs = shape
    group = inputs if group == -1 else group
    q = integers((inputs, outputs), bits)
    zeros = integers((inputs // group, outputs), bits).clamp(min=1)
    s = scales((inputs // group, outputs), bits, torch.float16)
    weight = (q - zeros.repeat_interleave(group, 0)) * s.float().repeat_interleave(
        group, 0
    )
    return q, zeros, s, weight.T.contiguous()


def awq(group: int) -> Format:
    """AWQ's `gemm` layout: eight outputs of an input in a word, in its own order."""
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])

    def packed(values: torch.Tensor) -> torch.Tensor:
        return words(
            pack(values.unflatten(1, (-1, 8))[..., order].flatten(1), 4), torch.int32
        )

    def make(shape: tuple[int, int]) -> Layer:
        q, zeros, s, weight = zero_pointed(shape, 4, group)
        return {"qweight": packed(q), "qzeros": packed(zeros), "scales": s}, weight

    return make


def gptq(bits: int, group: int, *, is_first_version: bool = True) -> Format:
    """GPTQ: several inputs of an output in a word; the first version stores zero points less one."""

    def make(shape: tuple[int, int]) -> Layer:
        q, zeros, s, weight = zero_pointed(shape, bits, group)
        inputs = shape[1]
        stored = zeros - 1 if is_first_version else zeros
        tensors = {
            "qweight": words(pack(q.T, bits), torch.int32).T.contiguous(),
            "qzeros": words(pack(stored, bits), torch.int32),
            "scales": s,
            "g_idx": torch.arange(inputs, dtype=torch.int32)
            // (inputs if group == -1 else group),
        }
        return tensors, weight

    return make


def dense(shape: tuple[int, int]) -> Layer:
    """Not quantised."""
    weight = (torch.randn(shape) * 0.08).to(torch.bfloat16)
    return {"weight": weight}, weight.float()


def affine_config(bits: int, group: int, **overrides: Any) -> dict[str, Any]:
    """As mlx-lm writes it."""
    return {"quantization": {"group_size": group, "bits": bits} | overrides}


def method(name: str, **values: Any) -> dict[str, Any]:
    """As all others write it."""
    return {"quantization_config": {"quant_method": name} | values}


def gptq_config(bits: int, group: int, version: str) -> dict[str, Any]:
    """What the tensors of GPTQ cannot tell."""
    values = {
        "bits": bits,
        "group_size": group,
        "desc_act": False,
        "checkpoint_format": version,
    }
    return method("gptq", **values)


# Per format: what `config.json` says, and how the matrices, and the embedding and the head, are
# stored.
FORMATS: dict[str, tuple[dict[str, Any], Format, Format]] = {
    "mlx-2bit": (affine_config(2, 32), mlx(2, 32), mlx(2, 32)),
    "mlx-3bit": (affine_config(3, 64), mlx(3, 64), mlx(3, 64)),
    "mlx-4bit": (affine_config(4, 64), mlx(4, 64), mlx(4, 64)),
    "mlx-4bit-f32": (affine_config(4, 128), mlx(4, 128, torch.float32), dense),
    "mlx-5bit": (affine_config(5, 32), mlx(5, 32), mlx(5, 32)),
    "mlx-6bit": (affine_config(6, 64), mlx(6, 64), mlx(6, 64)),
    "mlx-8bit": (
        affine_config(8, 128),
        mlx(8, 128, torch.float16),
        mlx(8, 128, torch.float16),
    ),
    "mlx-mxfp4": (affine_config(4, 32, mode="mxfp4"), mxfp4(), mxfp4()),
    "awq": (method("awq", bits=4, group_size=128, version="gemm"), awq(128), dense),
    "awq-64": (method("awq", w_bit=4, q_group_size=64), awq(64), dense),
    "gptq": (gptq_config(4, 128, "gptq"), gptq(4, 128), dense),
    "gptq-whole": (gptq_config(4, -1, "gptq"), gptq(4, -1), dense),
    "gptq-8bit": (
        gptq_config(8, 32, "gptq_v2"),
        gptq(8, 32, is_first_version=False),
        dense,
    ),
}
# Those that are written with experts, too.
SPARSE_FORMATS = ("mlx-4bit", "mlx-8bit", "mlx-mxfp4")
# Layers of `mlx-mixed` that are not like the others: fused layers then consist of two matrices.
MIXED = {
    f"{LAYER}.self_attn.v_proj": mlx(6, 32),
    f"{LAYER}.mlp.gate_proj": dense,
    f"{LAYER}.self_attn.o_proj": mlx(8, 64),
}


def write(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    plain: dict[str, torch.Tensor],
) -> None:
    """Writes a checkpoint, and its twin, which is like it but for what it says of formats."""
    (folder / "plain").mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    unquantized = {key: value for key, value in config.items() if "quantization" not in key}
    write_plain(folder / "plain", plain, unquantized)


def write_plain(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Writes a twin."""
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def layers(
    matrices: dict[str, tuple[int, int]],
    formats: dict[str, Format],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of all layers, as they are stored and as floats."""
    tensors, plain = {}, {}
    for name, shape in (matrices | TABLES).items():
        stored, weight = formats[name](shape)
        tensors |= {f"{name}.{kind}": stack(name, tensor) for kind, tensor in stored.items()}
        plain[f"{name}.weight"] = stack(name, weight.float())
    for name in NORMS:
        plain[f"{name}.weight"] = tensors[f"{name}.weight"] = 1 + 0.2 * torch.randn(
            HIDDEN
        )
    return tensors, plain


def stack(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Rows by expert, if they are experts'."""
    is_stack = name.startswith(EXPERTS)
    return tensor.unflatten(0, (NUM_EXPERTS, -1)) if is_stack else tensor


def main(folder: Path) -> None:
    """Writes all of them."""
    for name, (config, matrix, table) in FORMATS.items():
        torch.manual_seed(zlib.crc32(name.encode()))
        formats = dict.fromkeys(MATRICES, matrix) | dict.fromkeys(TABLES, table)
        write(folder / name, CONFIG | config, *layers(MATRICES, formats))
    torch.manual_seed(7)
    formats = dict.fromkeys(MATRICES | TABLES, mlx(4, 64)) | MIXED
    overrides = {name: {"bits": 6, "group_size": 32} for name in MIXED}
    config = CONFIG | affine_config(4, 64, **overrides)
    write(folder / "mlx-mixed", config, *layers(MATRICES, formats))
    for name in SPARSE_FORMATS:
        torch.manual_seed(zlib.crc32(f"{name} experts".encode()))
        config, matrix, table = FORMATS[name]
        formats = dict.fromkeys(SPARSE_MATRICES, matrix) | dict.fromkeys(TABLES, table)
        tensors, plain = layers(SPARSE_MATRICES, formats)
        tensors[f"{ROUTER}.weight"] = plain[f"{ROUTER}.weight"] = router()
        write(folder / f"{name}-experts", SPARSE_CONFIG | config, tensors, plain)


def router() -> torch.Tensor:
    """Scores of the experts."""
    return torch.randn(NUM_EXPERTS, HIDDEN) * 0.2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
