"""GGUF files: what their headers become, and that vLLM takes their paths."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer
from vllm.engine.arg_utils import EngineArgs

from vllm_metal_rpc.folders import model_folder as folder_to_read
from vllm_metal_rpc.gguf import GgufError, folder_of
from vllm_metal_rpc.gguf.config import config
from vllm_metal_rpc.gguf.file import GgufFile

SHARED: dict[str, Any] = {
    "context_length": 512,
    "embedding_length": 64,
    "block_count": 3,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500_000.0,
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METAL_RPC_CACHE_DIR", str(tmp_path / "cache"))


Writer = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes a file with keys of an architecture, a vocabulary, and tensors."""

    def make(
        architecture: str,
        values: dict[str, Any] | None = None,
        tokenizer: dict[str, Any] | None = None,
        tensors: dict[str, np.ndarray] | None = None,
        name: str = "model.gguf",
    ) -> Path:
        writer = gguf.GGUFWriter(tmp_path / name, architecture)
        keys = {f"{architecture}.{key}": value for key, value in (SHARED | (values or {})).items()}
        for key, value in (keys | (tokenizer or byte_level())).items():
            _add(writer, key, value)
        for tensor, data in (tensors or {"token_embd.weight": np.zeros((4, 32), "f4")}).items():
            writer.add_tensor(tensor, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return make


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def byte_level(pre: str = "llama-bpe") -> dict[str, Any]:
    """Bytes, two merges, and special tokens."""
    letters = [chr(i) for i in range(33, 127)] + ["Ġ"]
    tokens = [*letters, "he", "hel", "<|begin|>", "<|end|>", "<tool>"]
    types = [1] * (len(tokens) - 3) + [3, 3, 4]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["h e", "he l"],
        "tokenizer.ggml.bos_token_id": len(tokens) - 3,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }


def sentencepiece(**values: Any) -> dict[str, Any]:
    """Pieces with scores, bytes for what is not among them."""
    pieces = ["▁", "h", "e", "he", "▁he", "  "]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], *pieces]
    types = [2, 3, 3] + [6] * 256 + [1] * 5 + [4]
    scores = [0.0] * 259 + [-5.0, -6.0, -7.0, -2.0, -1.0, -1000.0]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | values


def llama3_factors(factor: float) -> np.ndarray:
    """As llama.cpp's converter computes them."""
    factors = []
    for i in range(0, 16, 2):
        wavelength = 2 * math.pi * 500_000.0 ** (i / 16)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, "f4")


EMBEDDING = {"token_embd.weight": np.zeros((4, 32), "f4")}
THETA = {"rope_theta": 500_000.0}
DEFAULT_ROPE = THETA | {"rope_type": "default"}
MOE = {"expert_count": 8, "expert_used_count": 2}
# By name: architecture, what differs from SHARED, tensors, and what must be in the configuration.
CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, np.ndarray], dict[str, Any]]] = {
    "llama": (
        "llama",
        {},
        EMBEDDING,
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_parameters": DEFAULT_ROPE,
            "hidden_act": "silu",
            "dtype": "float32",
        },
    ),
    "llama with a head": (
        "llama",
        {"attention.key_length": 32},
        EMBEDDING | {"output.weight": np.zeros((4, 32), "f2")},
        {"tie_word_embeddings": False, "head_dim": 32, "dtype": "float16"},
    ),
    "llama 3.1": (
        "llama",
        {},
        EMBEDDING | {"rope_freqs.weight": llama3_factors(8.0)},
        {
            "rope_parameters": THETA
            | {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        },
    ),
    "yarn": (
        "qwen3",
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 128,
        },
        EMBEDDING,
        {
            "model_type": "qwen3",
            "rope_parameters": THETA
            | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        },
    ),
    "linear": (
        "llama",
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        EMBEDDING,
        {"rope_parameters": THETA | {"rope_type": "linear", "factor": 4.0}},
    ),
    "mixtral": (
        "llama",
        MOE,
        EMBEDDING,
        {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen2": ("qwen2", {}, EMBEDDING, {"model_type": "qwen2"}),
    "qwen2moe": (
        "qwen2moe",
        MOE | {"expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48},
        EMBEDDING | {"blk.0.attn_q.bias": np.zeros(64, "f4")},
        {
            "model_type": "qwen2_moe",
            "num_experts": 8,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
            "norm_topk_prob": False,
            "qkv_bias": True,
        },
    ),
    "qwen3moe": (
        "qwen3moe",
        MOE | {"expert_feed_forward_length": 32, "feed_forward_length": None},
        EMBEDDING,
        {"model_type": "qwen3_moe", "num_experts": 8, "norm_topk_prob": True},
    ),
    "phi2": (
        "phi2",
        {
            "attention.layer_norm_epsilon": 1e-5,
            "attention.layer_norm_rms_epsilon": None,
            "rope.dimension_count": 8,
        },
        EMBEDDING,
        {"model_type": "phi", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    ),
    "phi3": (
        "phi3",
        {
            "rope.dimension_count": 16,
            "attention.sliding_window": 100,
            "rope.scaling.original_context_length": 256,
            "rope.scaling.attn_factor": 1.25,
        },
        EMBEDDING
        | {
            "rope_factors_long.weight": np.full(8, 2.0, "f4"),
            "rope_factors_short.weight": np.full(8, 1.0, "f4"),
        },
        {
            "model_type": "phi3",
            "sliding_window": 100,
            "partial_rotary_factor": 1.0,
            "original_max_position_embeddings": 256,
            "rope_parameters": THETA
            | {
                "rope_type": "longrope",
                "long_factor": [2.0] * 8,
                "short_factor": [1.0] * 8,
                "original_max_position_embeddings": 256,
                "attention_factor": 1.25,
            },
        },
    ),
    "gemma2": (
        "gemma2",
        {
            "attention.sliding_window": 100,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "attention.key_length": 32,
        },
        EMBEDDING,
        {
            "model_type": "gemma2",
            "hidden_activation": "gelu_pytorch_tanh",
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma3": (
        "gemma3",
        {"block_count": 7, "attention.sliding_window": 100},
        EMBEDDING,
        {
            "model_type": "gemma3_text",
            "sliding_window": 100,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": DEFAULT_ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
    ),
    "smollm3": ("smollm3", {}, EMBEDDING, {"model_type": "smollm3"}),
    "granite": (
        "granite",
        {
            "attention.scale": 0.5,
            "embedding_scale": 12.0,
            "residual_scale": 0.25,
            "logit_scale": 8.0,
        },
        EMBEDDING,
        {
            "model_type": "granite",
            "attention_multiplier": 0.5,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.25,
            "logits_scaling": 8.0,
        },
    ),
    "olmo2": ("olmo2", {}, EMBEDDING, {"model_type": "olmo2"}),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations(write: Writer, case: str) -> None:
    architecture, values, tensors, expected = CONFIGS[case]
    made = config(GgufFile.read(write(architecture, values, tensors=tensors)))
    assert {key: made.get(key) for key in expected} == expected
    assert made["vocab_size"] == len(byte_level()["tokenizer.ggml.tokens"])
    # transformers, which vLLM reads it with, takes it as it is.
    parsed = AutoConfig.for_model(**json.loads(json.dumps(made)))
    assert parsed.hidden_size == 64
    assert parsed.eos_token_id == made["eos_token_id"]


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, np.ndarray], str]] = {
    "architecture": ("bloom", {}, {}, {}, "architecture bloom .*supported: llama, qwen2"),
    "rope scaling": ("llama", {"rope.scaling.type": "su"}, {}, {}, "rope scaling su"),
    "frequencies": (
        "llama",
        {},
        {},
        {"rope_freqs.weight": np.full(8, 3.0, "f4")},
        "rope_freqs.weight is not supported",
    ),
    "a missing key": ("llama", {"block_count": None}, {}, {}, "no key llama.block_count"),
    "pre-tokenizer": ("llama", {}, byte_level("new"), {}, "pre-tokenizer new .*--tokenizer"),
    "tokenizer": (
        "llama",
        {},
        sentencepiece() | {"tokenizer.ggml.model": "t5"},
        {},
        "tokenizer t5",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_described_is_refused(write: Writer, case: str) -> None:
    architecture, values, tokenizer, tensors, text = REFUSED[case]
    with pytest.raises(GgufError, match=text):
        folder_of(write(architecture, values, tokenizer, tensors))


def test_damaged_files_are_refused(write: Writer) -> None:
    path = write("llama")
    good = path.read_bytes()
    for data in (b"", b"GGUF", b"nonsense", good[:100], good[:500]):
        path.write_bytes(data)
        with pytest.raises(GgufError, match="cannot be read as GGUF"):
            folder_of(path)


def tokenizer_of(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder_of(path))


def test_byte_level_tokenizers(write: Writer) -> None:
    tokenizer = tokenizer_of(write("llama"))
    ids = tokenizer("hell <tool>")["input_ids"]
    # Llama 3 begins with its token although the file does not say so.
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["<|begin|>", "hel", "l", "Ġ", "<tool>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hell <tool>"
    assert tokenizer.eos_token == "<|end|>"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False)
    assert chat == "he"


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("smollm", "12", ["1", "2"]),
        ("qwen2", "he12", ["he", "1", "2"]),
        ("gpt-2", "he", ["he"]),
    ],
)
def test_pre_tokenizers(write: Writer, pre: str, text: str, expected: list[str]) -> None:
    tokenizer = tokenizer_of(write("llama", tokenizer=byte_level(pre)))
    assert tokenizer.tokenize(text) == expected


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_tokenizers(write: Writer, prefix: bool) -> None:
    values = {"tokenizer.ggml.add_space_prefix": prefix}
    tokenizer = tokenizer_of(write("llama", tokenizer=sentencepiece(**values)))
    ids = tokenizer("he heü")["input_ids"]
    first = "▁he" if prefix else "he"
    tokens = ["<s>", first, "▁he", "<0xC3>", "<0xBC>"]
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.decode(ids, skip_special_tokens=True) == "he heü"


def test_a_file_is_served_by_its_path(write: Writer) -> None:
    path = write("llama")
    arguments = EngineArgs(model=str(path), max_model_len=128)
    vllm_config = arguments.create_engine_config()
    model = vllm_config.model_config
    assert model.served_model_name == str(path)
    folder = Path(folder_to_read(model, vllm_config.load_config))
    assert (folder / "model.gguf").resolve() == path.resolve()
    assert Path(model.tokenizer) == folder == folder_of(path)
    # Another tokenizer is the user's to choose.
    other = EngineArgs(model=str(path), tokenizer=str(folder), max_model_len=64)
    assert other.create_engine_config().model_config.max_model_len == 64


def test_a_changed_file_gets_another_folder(write: Writer) -> None:
    first = folder_of(write("llama"))
    second = folder_of(write("llama", {"block_count": 4, "context_length": 1024}))
    assert first != second
    assert json.loads((second / "config.json").read_text())["num_hidden_layers"] == 4


def test_all_parts_of_a_file_are_read(write: Writer, tmp_path: Path) -> None:
    first = write("llama", name="m-00001-of-00002.gguf")
    with pytest.raises(GgufError, match=r"m-00002-of-00002\.gguf is not there"):
        folder_of(first)
    second = tmp_path / "m-00002-of-00002.gguf"
    second.write_bytes(b"GGUF")
    folder = folder_of(second)
    assert folder == folder_of(first)
    assert sorted(path.name for path in folder.glob("*.gguf")) == [first.name, second.name]
