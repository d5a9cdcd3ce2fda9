"""Starts `metald` when nothing listens.

vLLM ends every process below its engine when it stops, and the daemon has to outlive the frontend
that started it. So the daemon is the child of `metald start`, a short-lived process that ends as
soon as the daemon listens. Several frontends may start one at the same time: `metald` takes a lock,
and all but one end at once with `EXIT_ALREADY_RUNNING`.
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
_PROGRESS_INTERVAL_S: Final = 5.0


class Autostart:
    """Keeps at most one `metald start` of ours running."""

    def __init__(self, endpoint: str, log_path: Path | None = None) -> None:
        self.log_path = log_path or envs.log_path()
        self._endpoint = endpoint
        self._starter: subprocess.Popen[str] | None = None
        self._started_at = 0.0
        self._next_progress_at = 0.0

    def ensure(self) -> None:
        """Starts a daemon, or looks after the start that is under way.

        Raises:
            DaemonUnavailable: There is no `metald` to start, or it ended before it listened.
        """
        if self._starter is None:
            self._start()
            return
        status = self._starter.poll()
        if status is None:
            self._log_progress()
            return
        words = self._starter.communicate()[1].strip()
        self._starter = None
        # It listens; or another one does, or did until now.
        if status in (0, EXIT_ALREADY_RUNNING):
            return
        end = f"exit code {status}" if status > 0 else f"signal {-status}"
        raise DaemonUnavailable(
            f"metald cannot be started ({end}; its log is {self.log_path}): "
            f"{words or 'it wrote nothing'}"
        )

    def connected(self) -> None:
        """Says that a daemon listens, whatever the start has come to."""
        if self._starter is not None and self._starter.poll() is not None:
            self._starter.communicate()
            self._starter = None

    def _start(self) -> None:
        command = [find_daemon(), "start", "--log", str(self.log_path)]
        self._starter = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=os.environ | {"METAL_RPC_ENDPOINT": self._endpoint},
            start_new_session=True,
        )
        self._started_at = time.monotonic()
        self._next_progress_at = self._started_at + _PROGRESS_INTERVAL_S
        logger.info("Starting %s; its log is %s", command[0], self.log_path)

    def _log_progress(self) -> None:
        now = time.monotonic()
        if now >= self._next_progress_at:
            self._next_progress_at = now + _PROGRESS_INTERVAL_S
            logger.info(
                "Waiting for metald to listen on %s (%.0f s)",
                self._endpoint,
                now - self._started_at,
            )


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
