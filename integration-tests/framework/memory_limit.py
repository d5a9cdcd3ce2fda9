"""Takes memory away from a process that runs. Linux alone can do that."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import pytest

needs_memory_limit: Final = pytest.mark.skipif(
    not hasattr(psutil, "RLIMIT_DATA"), reason="needs Linux's limits of another process"
)


@contextlib.contextmanager
def no_more_memory(pid: int, spare_bytes: int) -> Iterator[None]:
    """Meanwhile the process may take so much more than it has, and no more."""
    process = psutil.Process(pid)
    before = process.rlimit(psutil.RLIMIT_DATA)
    process.rlimit(psutil.RLIMIT_DATA, (_data_bytes(pid) + spare_bytes, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_DATA, before)


def _data_bytes(pid: int) -> int:
    """Its private memory that can be written, touched or not: what the limit counts."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmData:"))
    return int(kib) * 1024
