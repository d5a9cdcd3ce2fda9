"""Writes GGUF files as llama.cpp would, each with what its numbers stand for.

`python make_gguf.py formats FOLDER` writes a tiny Llama per type of blocks, with a plain twin, as
`make_formats.py` does for the other formats. Blocks are random bytes with scales that make sense;
the twin is what the `gguf` package makes of them.

`python make_gguf.py families SOURCE FOLDER` writes the checkpoints of `make_families.py` below
SOURCE as GGUF, in float32, under the names that the `gguf` package knows.
"""

import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from make_formats import (
    CONFIG,
    EXPERTS,
    MATRICES,
    NORMS,
    ROUTER,
    SPARSE_CONFIG,
    SPARSE_MATRICES,
    TABLES,
    router,
    stack,
    write_plain,
)
from safetensors.torch import load_file

# Where a block has its scale, for weights of some 0.1; where it has a minimum, in units of what makes
# weights neither positive nor negative on the whole, if it has one; and whether the scale has a sign.
BLOCKS: dict[Type, tuple[int, float, tuple[int, float] | None, bool]] = {
    Type.Q4_0: (0, 1 / 8, None, True),
    Type.Q4_1: (0, 1 / 8, (2, -7.5), True),
    Type.Q5_0: (0, 1 / 16, None, True),
    Type.Q5_1: (0, 1 / 16, (2, -15.5), True),
    Type.Q8_0: (0, 1 / 128, None, True),
    Type.Q2_K: (80, 1 / 45, (82, 1.5), False),
    Type.Q3_K: (108, 1 / 128, None, True),
    Type.Q4_K: (0, 1 / 945, (2, 7.5), False),
    Type.Q5_K: (0, 1 / 1953, (2, 15.5), False),
    Type.Q6_K: (208, 1 / 4096, None, True),
    Type.IQ4_NL: (0, 1 / 127, None, True),
    Type.IQ4_XS: (0, 1 / 4064, None, True),
}
# Those that are written with experts, too.
SPARSE_TYPES = (Type.Q4_0, Type.Q8_0, Type.Q4_K, Type.Q6_K, Type.MXFP4)
FLOATS = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}
NUM_HEADS, NUM_KV_HEADS = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
# By `model_type`.
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "phi": gguf.MODEL_ARCH.PHI2,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "olmo3": gguf.MODEL_ARCH.OLMO2,
}
# Architectures whose rope turns neighbours, so that llama.cpp moves rows.
PAIRED = (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.SMOLLM3, gguf.MODEL_ARCH.GRANITE)


def pairs_of_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of queries or keys as llama.cpp stores them.

    Source: llama.cpp `convert_hf_to_gguf.py`, `LlamaModel.permute`.
    """
    halves = weight.reshape(num_heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def random_blocks(kind: Type, shape: tuple[int, int]) -> np.ndarray:
    """Random bytes with scales for weights of some 0.1."""
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = torch.randint(
        0, 256, (shape[0], shape[1] // weights, size), dtype=torch.uint8
    )
    if kind == Type.MXFP4:
        blocks[..., 0] = torch.randint(119, 124, blocks.shape[:2])
        return blocks.flatten(1).numpy()
    at, scale, minimum, is_signed = BLOCKS[kind]
    scales = torch.randn(blocks.shape[:2]).clamp(-2, 2) * 0.1 * scale
    scales = scales if is_signed else scales.abs()
    blocks[..., at : at + 2] = scales.half()[..., None].view(torch.uint8)
    if minimum is not None:
        at, ratio = minimum
        blocks[..., at : at + 2] = (scales * ratio).half()[..., None].view(torch.uint8)
    return blocks.flatten(1).numpy()


def layer(kind: Type, shape: tuple[int, int]) -> tuple[np.ndarray, torch.Tensor]:
    """A matrix as it is stored, and its weights."""
    if kind in FLOATS:
        weight = (torch.randn(shape) * 0.08).to(FLOATS[kind])
        return weight.contiguous().view(torch.uint8).numpy(), weight.float()
    blocks = random_blocks(kind, shape)
    return blocks, torch.from_numpy(gguf.dequantize(blocks, kind).copy())


def gguf_writer(
    path: Path, architecture: gguf.MODEL_ARCH, config: dict[str, Any]
) -> Any:
    """A file with the metadata that its tensors depend on."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(
        config.get("num_key_value_heads") or config["num_attention_heads"]
    )
    # What every file has, and nobody here needs.
    writer.add_token_list([f"<{index}>" for index in range(64)])
    writer.add_token_scores([float(index) for index in range(64)])
    writer.add_bool("some.flag", True)
    writer.add_chat_template("x" * 10_000)
    return writer


def close(writer: Any) -> None:
    """Writes everything."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_format(folder: Path, kind: Type, *, with_experts: bool) -> None:
    """A Llama, or a Mixtral, whose matrices are all of one type."""
    (folder / "plain").mkdir(parents=True)
    config = SPARSE_CONFIG if with_experts else CONFIG
    writer = gguf_writer(folder / "model.gguf", gguf.MODEL_ARCH.LLAMA, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    plain = {}
    for name, shape in ((SPARSE_MATRICES if with_experts else MATRICES) | TABLES).items():
        stored, weight = layer(kind, shape)
        heads = {"q_proj": NUM_HEADS, "k_proj": NUM_KV_HEADS}.get(
            name.rpartition(".")[2]
        )
        if heads:
            # Rows are blocks of their own, so those of the twin can be moved instead.
            weight = weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        if name.startswith(EXPERTS):
            to = f"blk.0.ffn_{name.removeprefix(EXPERTS).removesuffix('_proj')}_exps"
            stored = stack(name, torch.from_numpy(stored)).numpy()
        else:
            to = names.get_name(name)
        writer.add_tensor(f"{to}.weight", stored, raw_dtype=kind)
        plain[f"{name}.weight"] = stack(name, weight.float()).contiguous()
    if with_experts:
        plain[f"{ROUTER}.weight"] = router()
        writer.add_tensor("blk.0.ffn_gate_inp.weight", plain[f"{ROUTER}.weight"].numpy())
    for name in NORMS:
        norm = 1 + 0.2 * torch.randn(CONFIG["hidden_size"])
        writer.add_tensor(f"{names.get_name(name)}.weight", norm.numpy())
        plain[f"{name}.weight"] = norm
    close(writer)
    (folder / "config.json").write_text(json.dumps(config))
    write_plain(folder / "plain", plain, config)


def stacked(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a checkpoint, those of all experts of a layer as one."""
    experts: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        before, is_expert, after = name.partition(".experts.")
        if not is_expert:
            yield name, tensor
            continue
        number, _, kind = after.partition(".")
        experts.setdefault(f"{before}.experts.{kind}", {})[int(number)] = tensor
    for name, parts in experts.items():
        yield name, torch.stack([parts[number] for number in sorted(parts)])


def mxfp4_blocks(blocks: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """Rows of GGUF's blocks: the exponent, then a byte for the codes `i` and `i + 16`."""
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2)
    pairs = codes[..., :16] | codes[..., 16:] << 4
    return torch.cat([exponents[..., None], pairs], -1).flatten(-2)


def of_gpt_oss(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of gpt-oss: of its experts, rows of gate and up in stacks of their own."""
    for name, tensor in tensors.items():
        if name.endswith(".sinks"):
            yield f"{name}.weight", tensor
            continue
        stem, is_expert, kind = name.partition(".mlp.experts.")
        if not is_expert:
            yield name, tensor
            continue
        if kind.endswith("_scales"):
            continue
        value, suffix = tensor, "weight"
        if kind.endswith("_blocks"):
            value = mxfp4_blocks(tensor, tensors[name.removesuffix("blocks") + "scales"])
        elif kind.endswith("_bias"):
            suffix = "bias"
        else:
            value = tensor.transpose(1, 2)
        stem = f"{stem}.mlp.experts"
        if kind.startswith("gate_up"):
            yield f"{stem}.gate_proj.{suffix}", value[:, ::2]
            yield f"{stem}.up_proj.{suffix}", value[:, 1::2]
        else:
            yield f"{stem}.down_proj.{suffix}", value


def write_family(source: Path, folder: Path) -> None:
    """A checkpoint as llama.cpp's converter writes it."""
    config = json.loads((source / "config.json").read_text())
    architecture = ARCHITECTURES.get(config["model_type"])
    if architecture is None:
        return
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    writer = gguf_writer(folder / "model.gguf", architecture, config)
    num_layers = config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(architecture, num_layers)
    usual = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, num_layers)
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    tensors = load_file(source / "model.safetensors")
    is_gpt_oss = config["model_type"] == "gpt_oss"
    for name, tensor in (of_gpt_oss if is_gpt_oss else stacked)(tensors):
        is_packed = tensor.dtype == torch.uint8
        value = tensor if is_packed else tensor.float()
        module = name.split(".")[-2]
        if architecture in PAIRED and module in heads:
            value = pairs_of_halves(value, heads[module])
        if config["model_type"].startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        if name.endswith("shared_expert_gate.weight"):
            value = value.squeeze()
        # The converter calls Mixtral's experts as Llama's authors did.
        known = name.replace("block_sparse_moe.experts", "feed_forward.experts")
        known = known.removeprefix("model.") if known != name else name
        # Layers without experts have the usual names.
        to = next(
            filter(
                None, (n.get_name(known, (".weight", ".bias")) for n in (names, usual))
            ),
            None,
        )
        assert to is not None, f"{name} of {config['model_type']} has no name in GGUF"
        kind = Type.MXFP4 if is_packed else Type.F32
        writer.add_tensor(to, value.contiguous().numpy(), raw_dtype=kind)
    close(writer)


def main() -> None:
    """Writes what the command line asks for."""
    torch.set_num_threads(1)
    what, *folders = sys.argv[1:]
    if what == "families":
        source, folder = map(Path, folders)
        for path in sorted(source.iterdir()):
            write_family(path, folder / path.name)
        return
    types = [*FLOATS, *BLOCKS, Type.MXFP4]
    for kind, with_experts in [(t, False) for t in types] + [(t, True) for t in SPARSE_TYPES]:
        name = f"gguf-{kind.name.lower()}{'-experts' * with_experts}"
        torch.manual_seed(zlib.crc32(name.encode()))
        write_format(Path(folders[0]) / name, kind, with_experts=with_experts)


if __name__ == "__main__":
    main()
