"""Tells people how far a load has come, without filling the log."""

import logging
import time
from typing import Final

from vllm_metal_rpc.messages import LoadModel, LoadProgress, Message

logger = logging.getLogger("vllm.metal_rpc")

_INTERVAL_S: Final = 5.0


class LoadLog:
    """Logs each tenth of a load, and every five seconds when it is slow."""

    def __init__(self, request: Message) -> None:
        self._path = request.path if isinstance(request, LoadModel) else ""
        self._shown_tenths = 0
        self._started_at = self._shown_at = time.monotonic()

    def show(self, progress: LoadProgress) -> None:
        """Logs one message of the daemon, unless the last one was much the same."""
        total = max(1, progress.total_bytes)
        tenths = 10 * progress.loaded_bytes // total
        now = time.monotonic()
        if tenths <= self._shown_tenths and now - self._shown_at < _INTERVAL_S:
            return
        self._shown_tenths, self._shown_at = tenths, now
        logger.info(
            "Loading %s: %d %% of %.2f GiB, %.1f s",
            self._path,
            100 * progress.loaded_bytes // total,
            progress.total_bytes / 2**30,
            now - self._started_at,
        )
