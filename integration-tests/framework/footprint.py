"""What a daemon takes, and whether it has given it back."""

import time
from dataclasses import dataclass
from typing import Final, Self

import psutil

from framework.daemon import Daemon

_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True)
class Footprint:
    """What can be counted exactly comes back exactly; memory does within what allocators keep."""

    num_sessions: int
    num_models: int
    used_kv_bytes: int
    num_files: int
    num_threads: int
    rss_bytes: int

    @classmethod
    def of(cls, daemon: Daemon) -> Self:
        """What it takes now."""
        report = daemon.status()
        process = psutil.Process(daemon.pid)
        return cls(
            num_sessions=len(report["sessions"]),
            num_models=len(report["models"]),
            used_kv_bytes=report["kv"]["used_bytes"],
            num_files=process.num_fds(),
            num_threads=process.num_threads(),
            rss_bytes=process.memory_info().rss,
        )

    def has_returned_to(self, before: "Footprint", most_growth_bytes: int) -> bool:
        """Whether everything is back that was taken since `before`."""
        return (
            self.num_sessions == before.num_sessions
            and self.num_models == before.num_models
            and self.used_kv_bytes == before.used_kv_bytes
            and self.num_files <= before.num_files
            and self.num_threads <= before.num_threads
            and self.rss_bytes <= before.rss_bytes + most_growth_bytes
        )


def wait_until_back(daemon: Daemon, before: Footprint, most_growth_bytes: int) -> Footprint:
    """Waits until the daemon takes no more than before."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not (now := Footprint.of(daemon)).has_returned_to(before, most_growth_bytes):
        assert time.monotonic() < deadline, f"{now} instead of {before}"
        time.sleep(0.1)
    return now
