"""GGUF files: what their headers become, and that vLLM takes their paths."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer
from vllm.engine.arg_utils import EngineArgs

from gguf_configs import CONFIGS, SHARED
from vllm_metal_rpc.folders import model_folder as folder_to_read
from vllm_metal_rpc.gguf import GgufError, folder_of
from vllm_metal_rpc.gguf.config import config
from vllm_metal_rpc.gguf.file import GgufFile


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
        kind: gguf.GGMLQuantizationType | None = None,
    ) -> Path:
        writer = gguf.GGUFWriter(tmp_path / name, architecture)
        keys = {f"{architecture}.{key}": value for key, value in (SHARED | (values or {})).items()}
        for key, value in (keys | (tokenizer or byte_level())).items():
            _add(writer, key, value)
        for tensor, data in (tensors or {"token_embd.weight": np.zeros((4, 32), "f4")}).items():
            writer.add_tensor(tensor, data, raw_dtype=kind)
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


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q5_1", "Q8_0", "Q6_K", "IQ4_XS", "MXFP4"])
def test_types_of_blocks_are_left_to_the_daemon(write: Writer, kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    _, size = gguf.GGML_QUANT_SIZES[number]
    blocks = np.zeros((4, size), "u1")
    path = write("llama", tensors={"token_embd.weight": blocks}, kind=number)
    assert GgufFile.read(path).tensors["token_embd.weight"][0] == number
    assert (folder_of(path) / "model.gguf").samefile(path)


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
