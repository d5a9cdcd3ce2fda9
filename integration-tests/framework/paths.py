"""Where the repository, the daemon and vLLM lie."""

import os
import sys
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
GOLDEN: Final = REPOSITORY / "protocol" / "golden"


def metald() -> Path:
    """The daemon under test: `METAL_RPC_DAEMON`, or the release build."""
    path = Path(os.environ.get("METAL_RPC_DAEMON") or REPOSITORY / "target" / "release" / "metald")
    if not os.access(path, os.X_OK):
        raise FileNotFoundError(f"no metald at {path}; build it with `cargo build --release`")
    return path


def vllm() -> Path:
    """The `vllm` command of the interpreter that runs the tests."""
    return Path(sys.executable).parent / "vllm"
