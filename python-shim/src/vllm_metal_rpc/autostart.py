"""Starts `metald` when nothing listens.

The daemon is detached: its own session and log file, so it outlives the frontend that started it.
Several frontends may start one at the same time; `metald` takes a lock, and all but one exit at
once with `EXIT_ALREADY_RUNNING`.
"""

import logging
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

from vllm_metal_rpc import envs
from vllm_metal_rpc.errors import DaemonUnavailable

logger = logging.getLogger("vllm.metal_rpc")

EXIT_ALREADY_RUNNING: Final = 75
_LOG_TAIL_LINES: Final = 20
_LOG_TAIL_BYTES: Final = 16 << 10
_PROGRESS_INTERVAL_S: Final = 5.0


class Autostart:
    """Keeps at most one `metald` of ours on its way to listening."""

    def __init__(self, endpoint: str, log_path: Path | None = None) -> None:
        self._endpoint = endpoint
        self.log_path = log_path or envs.log_path()
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._started_at = 0.0
        self._next_progress_at = 0.0

    def ensure(self) -> None:
        """Starts a daemon, or looks after the one that was started before.

        Raises:
            DaemonUnavailable: There is no `metald` to start, or it ended before it listened.
        """
        if self._child is None:
            self._start()
            return
        status = self._child.poll()
        if status is None:
            self._log_progress()
        elif status == EXIT_ALREADY_RUNNING:
            # Another daemon holds the lock: it is about to listen, or about to end.
            self._child = None
        else:
            self._child = None
            raise DaemonUnavailable(self._describe_end(status))

    def connected(self) -> None:
        """Says that a daemon listens: the end of the child is news again from now on."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None

    def lost(self) -> None:
        """Says that the daemon is gone: a child that has ended was this daemon."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None

    def _start(self) -> None:
        command = [find_daemon(), "serve"]
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"METAL_RPC_ENDPOINT": self._endpoint},
                start_new_session=True,
                close_fds=True,
            )
        self._started_at = time.monotonic()
        self._next_progress_at = self._started_at + _PROGRESS_INTERVAL_S
        logger.info(
            "Started %s (pid %d); its log is %s", command[0], self._child.pid, self.log_path
        )

    def _log_progress(self) -> None:
        now = time.monotonic()
        if now >= self._next_progress_at:
            self._next_progress_at = now + _PROGRESS_INTERVAL_S
            logger.info(
                "Waiting for metald to listen on %s (%.0f s)",
                self._endpoint,
                now - self._started_at,
            )

    def _describe_end(self, status: int) -> str:
        end = f"exit code {status}" if status >= 0 else f"signal {-status}"
        lines = self._log_tail()
        tail = "\n".join(f"  {line}" for line in lines) if lines else "  (it wrote nothing)"
        return f"metald ended with {end} before it listened; the end of {self.log_path}:\n{tail}"

    def _log_tail(self) -> list[str]:
        """The last lines that the child wrote."""
        with self.log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-_LOG_TAIL_LINES:]


def find_daemon() -> str:
    """The `metald` to start: `METAL_RPC_DAEMON`, on PATH, or built in the repository around us.

    Raises:
        DaemonUnavailable: There is none.
    """
    if path := envs.daemon_path():
        if not os.access(path, os.X_OK):
            raise DaemonUnavailable(f"METAL_RPC_DAEMON names {path}, which cannot be executed")
        return path
    if path := shutil.which("metald"):
        return path
    # An editable install lies at <repository>/python-shim/src/vllm_metal_rpc.
    built = Path(__file__).resolve().parents[3] / "target" / "release" / "metald"
    if os.access(built, os.X_OK):
        return str(built)
    raise DaemonUnavailable(
        "no metald to start: it is not on PATH; set METAL_RPC_DAEMON to the binary, or start it "
        "yourself and set METAL_RPC_AUTOSTART=0"
    )
