"""Fixtures that several folders share: one daemon, one server per configuration."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from framework import models
from framework.baseline import Baseline
from framework.client import Client
from framework.daemon import Daemon, free_port, stopped_at_the_end, write_token
from framework.reference import ReferenceModel
from framework.server import Server

SERVER_FLAGS = (
    "--dtype=bfloat16",
    "--max-model-len=1024",
    "--max-num-batched-tokens=256",
    "--max-num-seqs=32",
    "--generation-config=vllm",
    "--max-logprobs=-1",
    "--enable-trace-replay",
    "--enable-scale-out",
    # Without it xgrammar lets a model write blanks for as long as it likes.
    '--structured-outputs-config={"backend": "xgrammar", "disable_any_whitespace": true}',
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    '--reasoning-config={"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}',
)
# 79 blocks of 16 tokens hold the longest request, or 16 requests of the tests at once, but not 32.
SERVERS = {
    "sync": (
        "--no-async-scheduling",
        "--num-gpu-blocks-override=80",
        "--logprobs-mode=processed_logprobs",
    ),
    "async": ("--async-scheduling", "--num-gpu-blocks-override=80"),
}

FolderMaker = Callable[[], Path]


@pytest.fixture(scope="session")
def make_folder() -> Iterator[FolderMaker]:
    """Makes folders whose paths are short enough for a socket; private, as the daemon wants."""
    folders: list[Path] = []

    def make() -> Path:
        folders.append(Path(tempfile.mkdtemp(prefix="metal-rpc-", dir="/tmp")))
        return folders[-1]

    yield make
    for folder in folders:
        if not os.environ.get("METAL_RPC_KEEP_LOGS"):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def daemon(make_folder: FolderMaker) -> Iterator[Daemon]:
    """A daemon that outlives all tests; a test that ends it starts its own."""
    with Daemon(make_folder()) as running:
        yield running
        assert running.is_running(), f"a test has ended the daemon:\n{running.log()}"


@pytest.fixture(scope="session")
def remote_daemon(make_folder: FolderMaker) -> Iterator[Daemon]:
    """A daemon that is reached through TCP, by whoever has its `METAL_RPC_TOKEN_FILE`."""
    folder = make_folder()
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    variables = {
        "METAL_RPC_TOKEN_FILE": str(write_token(folder)),
        "XDG_RUNTIME_DIR": str(folder),
    }
    with Daemon(folder, "--allow-tcp", endpoint=endpoint, **variables) as running:
        yield running
        assert running.is_running(), f"a test has ended the daemon:\n{running.log()}"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2 135M: a real Llama with grouped-query attention and tied embeddings."""
    return models.real("smollm2-135m")


@pytest.fixture(scope="session")
def tokenizer(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def reference(smollm2: Path) -> ReferenceModel:
    return ReferenceModel(smollm2)


@pytest.fixture(scope="session")
def baseline(daemon: Daemon, smollm2: Path) -> Baseline:
    return Baseline(daemon.endpoint, smollm2)


@pytest.fixture(scope="session")
def tiny(make_folder: FolderMaker) -> Callable[[str], Path]:
    """Tiny random Llamas by name, each written once."""
    written: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in written:
            written[name] = models.tiny_llama(name, make_folder() / name)
        return written[name]

    return get


@pytest.fixture(scope="session", params=SERVERS)
def server(
    request: pytest.FixtureRequest, make_folder: FolderMaker, smollm2: Path
) -> Iterator[Server]:
    """A server of SmolLM2 in bfloat16 whose daemon was started by its shim."""
    folder = make_folder()
    flags = SERVERS[request.param]
    with stopped_at_the_end(folder), Server(smollm2, folder, *SERVER_FLAGS, *flags) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Client:
    """The `openai` package, as a user of the server has it."""
    return Client(server)


@pytest.fixture(scope="session")
def seen() -> dict[str, Any]:
    """What the tests of one server leave for those of the next, to be compared."""
    return {}
