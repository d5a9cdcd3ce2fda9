"""Every test has its own socket and knows nothing of the user's environment."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_daemon import FakeDaemon, Script

# vLLM's engine in the test's own process: one import of torch for all tests.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith(("METAL_RPC_", "VLLM_METAL_", "VLLM_MLX_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("METAL_RPC_ENDPOINT", f"ipc://{tmp_path}/d.sock")
    monkeypatch.setenv("METAL_RPC_AUTOSTART", "0")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def endpoint() -> str:
    return os.environ["METAL_RPC_ENDPOINT"]


@pytest.fixture
def daemon(endpoint: str) -> Iterator[FakeDaemon]:
    with FakeDaemon(endpoint, Script()) as fake:
        yield fake


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_model

    return tiny_model.make(tmp_path_factory.mktemp("tiny"))
