"""Which formats of weights vLLM's configuration lets through, and what becomes of their paths."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm.engine.arg_utils import EngineArgs

from vllm_metal_rpc import quantization, torch_file
from vllm_metal_rpc.folders import model_folder as folder_to_read

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
MLX = {"group_size": 64, "bits": 4, "mode": "affine"}


def config_of(folder: Path | str, **arguments: Any) -> Any:
    return EngineArgs(model=str(folder), max_model_len=128, **arguments).create_engine_config()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METAL_RPC_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def quantised(model_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny model with more in its `config.json`."""

    def make(**values: Any) -> Path:
        folder = tmp_path / "quantised"
        folder.mkdir()
        for path in model_folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


SERVED: dict[str, tuple[dict[str, Any], str | None]] = {
    "mlx": ({"quantization": MLX, "quantization_config": MLX}, None),
    "mlx, as older versions write it": ({"quantization": {"group_size": 64, "bits": 4}}, None),
    "mlx mxfp4": ({"quantization_config": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, None),
    "awq": ({"quantization_config": AWQ}, None),
    "awq, named": ({"quantization_config": AWQ}, "awq"),
    "gptq": ({"quantization_config": GPTQ}, None),
    "gptq, named": ({"quantization_config": GPTQ}, "gptq"),
    "mxfp4": ({"quantization_config": {"quant_method": "mxfp4"}}, None),
}


@pytest.mark.parametrize("case", SERVED)
@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16", "float32"])
def test_quantised_checkpoints_pass_vllm(
    quantised: Callable[..., Path], case: str, dtype: str
) -> None:
    values, method = SERVED[case]
    config = config_of(quantised(**values), quantization=method, dtype=dtype)
    known = quantization.NAME if "quantization_config" in values else None
    assert config.model_config.quantization == known
    # The engine's process receives the configuration by pickle, and completes it once more.
    pickle.loads(pickle.dumps(config)).__post_init__()


REFUSED: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, None, "quantization fp8 .*MLX.*GGUF"),
    "bitsandbytes": (
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        None,
        "quantization bitsandbytes is not supported",
    ),
    "another than the checkpoint's": ({"quantization_config": AWQ}, "gptq", "awq.* does not match"),
    "while loading": ({}, "fp8", "quantization fp8 is not supported by metal-rpc"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_daemon_does_not_read_is_refused(
    quantised: Callable[..., Path], case: str
) -> None:
    values, method, text = REFUSED[case]
    with pytest.raises(ValueError, match=text):
        config_of(quantised(**values), quantization=method)


def read_by_daemon(folder: Path) -> Path:
    config = config_of(folder)
    return Path(folder_to_read(config.model_config, config.load_config))


def test_a_folder_with_safetensors_is_read_as_it_is(quantised: Callable[..., Path]) -> None:
    folder = quantised()
    (folder / "pytorch_model.bin").write_bytes(b"")
    save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
    assert read_by_daemon(folder) == folder


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    embedding = torch.randn(8, 4, dtype=torch.bfloat16)
    return {
        "embedding": embedding,
        # Checkpoints store tied weights under both names, and views.
        "head": embedding,
        "view": torch.randn(4, 6)[:, 1:3],
        "half": torch.randn(3).half(),
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_are_converted_once(
    quantised: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    legacy: bool,
) -> None:
    caplog.set_level("INFO", "vllm.metal_rpc")
    monkeypatch.setattr(torch_file, "_SHARD_SIZE_BYTES", 64)
    folder = quantised()
    file = folder / "pytorch_model.bin"
    torch.save(tensors(), file, _use_new_zipfile_serialization=not legacy)
    converted = read_by_daemon(folder)
    assert converted != folder
    assert (converted / "config.json").read_text() == (folder / "config.json").read_text()
    index = json.loads((converted / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    expected = tensors()
    assert set(index) == set(expected)
    for name, shard in index.items():
        assert torch.equal(load_file(converted / shard)[name], expected[name]), name
    assert read_by_daemon(folder) == converted
    own = [record for record in caplog.records if record.name == "vllm.metal_rpc"]
    assert len(own) == 1, "it was converted again"
    os.utime(file, (1, 1))
    assert read_by_daemon(folder) != converted, "the file has changed"


def test_torch_files_in_parts(quantised: Callable[..., Path]) -> None:
    folder = quantised()
    names = {}
    for number, (name, tensor) in enumerate(tensors().items()):
        file = f"pytorch_model-{number}.bin"
        torch.save({name: tensor}, folder / file)
        names[name] = file
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    converted = read_by_daemon(folder)
    read: dict[str, torch.Tensor] = {}
    for shard in converted.glob("*.safetensors"):
        read |= load_file(shard)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors().items())
    for bad in ("../outside.bin", "absent.bin"):
        index.write_text(json.dumps({"weight_map": {"a": bad}}))
        with pytest.raises(torch_file.BadTorchFile, match=bad):
            read_by_daemon(folder)


class Code:
    """What runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return (os.mkdir, (os.environ["METAL_RPC_TEST_MARK"],))


@pytest.mark.parametrize(
    "content", [{"a": Code()}, [torch.zeros(1)], {"a": 1}, b"no pickle"], ids=str
)
def test_a_torch_file_with_anything_but_tensors_is_refused(
    quantised: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any
) -> None:
    mark = tmp_path / "it has run"
    monkeypatch.setenv("METAL_RPC_TEST_MARK", str(mark))
    folder = quantised()
    file = folder / "pytorch_model.bin"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(torch_file.BadTorchFile, match=r"pytorch_model\.bin"):
        read_by_daemon(folder)
    assert not mark.exists()
