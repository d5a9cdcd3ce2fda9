"""Starts, watches and kills a real `metald`."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import psutil

from framework import paths

READY_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 60.0
SESSIONS_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.05
_LOG_TAIL_BYTES: Final = 8 << 10


def endpoint_in(folder: Path) -> str:
    """The endpoint of a daemon whose files lie in `folder`."""
    socket = folder / "metald.sock"
    # sockaddr_un of macOS has 104 bytes, the last of which ends the string.
    assert len(str(socket)) < 104, f"{socket} is too long for a socket"
    return f"ipc://{socket}"


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """The environment of everything that belongs to the daemon of `folder`.

    Variables of the person who runs the tests do not reach it.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("METAL_RPC_", "VLLM_METAL_"))
    }
    return inherited | {
        "METAL_RPC_ENDPOINT": endpoint_in(folder),
        "METAL_RPC_DAEMON": str(paths.metald()),
        "XDG_STATE_HOME": str(folder / "state"),
        **changes,
    }


def daemon_log(folder: Path) -> Path:
    """What a daemon writes that a shim has started in `folder`."""
    return folder / "state" / "metal-rpc" / "metald.log"


def status(folder: Path, **changes: str) -> dict[str, Any] | None:
    """What `metald status --json` says, or None when no daemon answers."""
    result = subprocess.run(
        [str(paths.metald()), "status", "--json"],
        env=environment(folder, **changes),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return json.loads(result.stdout) if result.returncode == 0 else None


def wait_for_status(folder: Path, **changes: str) -> dict[str, Any]:
    """Waits for a daemon to answer."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if (report := status(folder, **changes)) is not None:
            return report
        time.sleep(_POLL_S)
    raise TimeoutError(f"no daemon answers in {folder} after {READY_TIMEOUT_S:g} s")


def wait_for_sessions(folder: Path, num_sessions: int) -> dict[str, Any]:
    """Waits for the daemon to have so many; a token alone may be one that was on its way."""
    deadline = time.monotonic() + SESSIONS_TIMEOUT_S
    while len((report := wait_for_status(folder))["sessions"]) != num_sessions:
        assert time.monotonic() < deadline, report["sessions"]
        time.sleep(_POLL_S)
    return report


def log_tail(path: Path) -> str:
    """The end of a log, for messages of failure."""
    if not path.exists():
        return f"({path.name} does not exist)"
    return path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")


class Daemon:
    """A daemon of our own, in the foreground, with its log in a file."""

    def __init__(
        self, folder: Path, *flags: str, endpoint: str | None = None, **variables: str
    ) -> None:
        self.folder = folder
        self.endpoint = endpoint or endpoint_in(folder)
        self.log_path = folder / "metald.log"
        self._flags = flags
        self.variables = {"METAL_RPC_ENDPOINT": self.endpoint} | variables
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts it and waits until it answers, after the one that it may take over from."""
        command = [str(paths.metald()), "serve", "--endpoint", self.endpoint, *self._flags]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self.folder, **self.variables),
            )
        deadline = time.monotonic() + READY_TIMEOUT_S
        while (report := status(self.folder, **self.variables)) is None or report[
            "pid"
        ] != self.pid:
            if not self.is_running() or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"{self.endpoint} is not answered; log:\n{self.log()}")
            time.sleep(_POLL_S)

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return Path(self.endpoint.removeprefix("ipc://"))

    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process is not None and self._process.poll() is None

    def status(self) -> dict[str, Any]:
        """What `metald status --json` says."""
        report = status(self.folder, **self.variables)
        assert report is not None, f"the daemon does not answer; its log ends:\n{self.log()}"
        return report

    def kill(self) -> None:
        """`kill -9`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def send_signal(self, sent: signal.Signals) -> None:
        """Sends a signal, without waiting."""
        assert self._process is not None
        self._process.send_signal(sent)

    def stop(self) -> int:
        """SIGTERM. Returns the exit code."""
        self.send_signal(signal.SIGTERM)
        return self.wait_end()

    def wait_end(self) -> int:
        """Waits until it ends by itself. Returns the exit code."""
        assert self._process is not None
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"metald does not end; log:\n{self.log()}") from None

    def rss_bytes(self) -> int:
        """Memory that the daemon has touched."""
        return psutil.Process(self.pid).memory_info().rss

    def log(self) -> str:
        """The end of its log."""
        return log_tail(self.log_path)


def write_token(folder: Path, name: str = "token") -> Path:
    """A private file with a new token for TCP."""
    path = folder / name
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32) + "\n")
    return path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def kill_whoever_serves(folder: Path, sent: signal.Signals = signal.SIGKILL) -> None:
    """Sends a signal to the daemon that answers in `folder`, whoever started it."""
    os.kill(wait_for_status(folder)["pid"], sent)


@contextlib.contextmanager
def stopped_at_the_end(folder: Path) -> Iterator[None]:
    """Ends the daemon that a shim has started in `folder`."""
    try:
        yield
    finally:
        if (report := status(folder)) is not None:
            process = psutil.Process(report["pid"])
            process.terminate()
            process.wait(STOP_TIMEOUT_S)
