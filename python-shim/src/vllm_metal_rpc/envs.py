"""Every environment variable that the shim reads, with its default and meaning.

`metald` reads the same names; values are read when they are needed, never at import.
"""

import os
import re
from pathlib import Path
from typing import Final

from vllm_metal_rpc.errors import MetalRpcError

PREFIXES: Final = ("METAL_RPC_", "VLLM_METAL_", "VLLM_MLX_")
_FALSE: Final = ("0", "false", "no", "off")
_TCP: Final = re.compile(r"tcp://([\w.-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}", re.ASCII)


def endpoint() -> str:
    """`METAL_RPC_ENDPOINT`: `ipc://PATH`, a Unix socket, or `tcp://HOST:PORT`.

    The default is a socket in the user's runtime directory, by the daemon's own rule.
    """
    if value := os.environ.get("METAL_RPC_ENDPOINT"):
        if not value.startswith("ipc:///") and not _TCP.fullmatch(value):
            raise MetalRpcError(
                "METAL_RPC_ENDPOINT must be ipc://PATH with an absolute path, or tcp://HOST:PORT, "
                f"it is {value!r}"
            )
        return value
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    # Not tempfile.gettempdir(): the daemon's rule is TMPDIR, else /tmp, and both must agree.
    temporary = Path(os.environ.get("TMPDIR") or "/tmp") / f"metal-rpc-{os.getuid()}"
    folder = Path(runtime) / "metal-rpc" if runtime else temporary
    return f"ipc://{folder / 'metald.sock'}"


def token_file() -> Path | None:
    """`METAL_RPC_TOKEN_FILE`: what holds the token of a TCP endpoint; None for a Unix socket.

    Raises:
        MetalRpcError: The endpoint is TCP, and there is none.
    """
    server = endpoint()
    if not server.startswith("tcp:"):
        return None
    if value := os.environ.get("METAL_RPC_TOKEN_FILE"):
        return Path(value)
    raise MetalRpcError(
        f"{server} needs a token: name a file with the daemon's in METAL_RPC_TOKEN_FILE"
    )


def autostart() -> bool:
    """`METAL_RPC_AUTOSTART` (1): whether to start `metald` when nothing listens.

    Never where it is reached through TCP: that may be another machine.
    """
    return _flag("METAL_RPC_AUTOSTART", default=True) and endpoint().startswith("ipc:")


def daemon_path() -> str | None:
    """`METAL_RPC_DAEMON`: the `metald` to start; found on PATH if unset."""
    return os.environ.get("METAL_RPC_DAEMON") or None


def recovery_timeout_s() -> float:
    """`METAL_RPC_RECOVERY_TIMEOUT_S` (120): how long requests wait for a daemon to come back."""
    return _number("METAL_RPC_RECOVERY_TIMEOUT_S", default=120.0, low=0.0, high=float("inf"))


def weight() -> int:
    """`METAL_RPC_WEIGHT` (1): this frontend's share of the device, relative to other frontends'."""
    return _integer("METAL_RPC_WEIGHT", default=1, low=1, high=100)


def log_path() -> Path:
    """Where a daemon started by us writes: `$XDG_STATE_HOME/metal-rpc/metald.log`."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "metal-rpc" / "metald.log"


def cache_dir() -> Path:
    """`METAL_RPC_CACHE_DIR`: where converted models lie; `$XDG_CACHE_HOME/metal-rpc` if unset."""
    if value := os.environ.get("METAL_RPC_CACHE_DIR"):
        return Path(value).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metal-rpc"


def memory_fraction() -> float | None:
    """`VLLM_METAL_MEMORY_FRACTION`: overrides `--gpu-memory-utilization` when set."""
    if not os.environ.get("VLLM_METAL_MEMORY_FRACTION"):
        return None
    return _number("VLLM_METAL_MEMORY_FRACTION", default=0.9, low=0.0, high=1.0)


def block_size() -> int:
    """`VLLM_METAL_BLOCK_SIZE` (16): tokens in a KV-cache block, unless `--block-size` is given."""
    return _integer("VLLM_METAL_BLOCK_SIZE", default=16, low=1, high=1024)


def debug() -> bool:
    """`VLLM_METAL_DEBUG` (0): log the shim's own events at level DEBUG."""
    return _flag("VLLM_METAL_DEBUG", default=False)


def check_mlx() -> None:
    """`VLLM_METAL_USE_MLX` (1): `0` is refused.

    Raises:
        MetalRpcError: It is set to something false.
    """
    if not _flag("VLLM_METAL_USE_MLX", default=True):
        raise MetalRpcError(
            "VLLM_METAL_USE_MLX=0 is not supported: MLX is the only way in which metald runs "
            "models; unset the variable"
        )


def _flag(name: str, *, default: bool) -> bool:
    value = os.environ.get(name, "").strip().lower()
    return default if value == "" else value not in _FALSE


def _integer(name: str, *, default: int, low: int, high: int) -> int:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        raise MetalRpcError(f"{name} must be a whole number, it is {text!r}") from None
    if not low <= value <= high:
        raise MetalRpcError(f"{name} must be {low} to {high}, it is {value}")
    return value


def _number(name: str, *, default: float, low: float, high: float) -> float:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        raise MetalRpcError(f"{name} must be a number, it is {text!r}") from None
    if not low < value <= high:
        raise MetalRpcError(f"{name} must be above {low:g} and at most {high:g}, it is {text}")
    return value
