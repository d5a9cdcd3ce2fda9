"""What one loss of the daemon costs, in the parts in which people can do something about it."""

import logging
import time
from dataclasses import dataclass, field

logger = logging.getLogger("vllm.metal_rpc")


@dataclass
class Outage:
    """From the last sign of life of one daemon to the first step that the next one answers.

    Attributes:
        reason: Why we think that it is gone.
        is_crash: Whether it went without saying so, or because of a step.
        silent_s: How long it had been silent when we noticed, in seconds.
        num_attempts: How often we have tried to open a session since.
        num_lost: Steps that were never answered.
    """

    reason: str
    is_crash: bool
    silent_s: float
    num_attempts: int = 0
    num_lost: int = 0
    _noticed_at: float = field(default_factory=time.monotonic)
    _connected_at: float = 0.0
    _ready_at: float = 0.0

    def connected(self) -> None:
        """A daemon has said Welcome."""
        self._connected_at = time.monotonic()

    def ready(self, num_lost: int) -> None:
        """It has our model and cache."""
        self._ready_at = time.monotonic()
        self.num_lost = num_lost

    def answered(self) -> None:
        """It has answered a step: says what everything took."""
        now = time.monotonic()
        logger.info(
            "Recovered in %.3f s: noticing %.3f s, start %.3f s, load %.3f s, recompute %.3f s "
            "until the first step (%d steps lost, %d attempts; %s)",
            self.silent_s + now - self._noticed_at,
            self.silent_s,
            self._connected_at - self._noticed_at,
            self._ready_at - self._connected_at,
            now - self._ready_at,
            self.num_lost,
            self.num_attempts,
            self.reason,
        )
