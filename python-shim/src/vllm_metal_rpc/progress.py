"""Tells people how far a load has come, without filling the log."""

import logging
import time
from typing import Final

from vllm_metal_rpc.messages import LoadModel, LoadProgress, Message

logger = logging.getLogger("vllm.metal_rpc")

_INTERVAL_S: Final = 5.0
_STEP: Final = 0.10


class LoadLog:
    """Logs every tenth of a load, or every five seconds, whichever comes later than the last."""

    def __init__(self, request: Message) -> None:
        self._path = request.path if isinstance(request, LoadModel) else ""
        self._shown = 0.0
        self._shown_at = time.monotonic()

    def show(self, progress: LoadProgress) -> None:
        """Logs one message of the daemon, unless the last one was much the same."""
        share = progress.loaded_bytes / progress.total_bytes if progress.total_bytes else 1.0
        now = time.monotonic()
        if share - self._shown < _STEP and now - self._shown_at < _INTERVAL_S:
            return
        self._shown, self._shown_at = share, now
        logger.info(
            "Loading %s: %.0f %% of %.2f GiB",
            self._path,
            100 * share,
            progress.total_bytes / 2**30,
        )
