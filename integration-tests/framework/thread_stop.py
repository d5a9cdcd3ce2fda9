"""Stops one thread of another process where it waits, as a hung driver would: a debugger attaches.

Linux alone lets one thread be stopped while the others go on.
"""

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_DETACH: Final = 17
# Of waitpid: threads as well.
_WALL: Final = 0x40000000
_SLEEP_TIMEOUT_S: Final = 10.0
_DEATH_TIMEOUT_S: Final = 60.0


def threads(pid: int, name: str) -> list[int]:
    """The threads of a process that have this name, oldest first."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    named = [int(task.name) for task in tasks if (task / "comm").read_text().strip() == name]
    return sorted(named)


@contextmanager
def stopped(thread: int) -> Iterator[None]:
    """Stops a thread of a child process. What is done meanwhile has to end that process."""
    _wait_for_sleep(thread)
    _ptrace(_SEIZE, thread)
    _ptrace(_INTERRUPT, thread)
    os.waitpid(thread, _WALL)
    try:
        yield
        _wait_for_death(thread)
    except BaseException:
        # It may have died all the same.
        with suppress(ProcessLookupError):
            _ptrace(_DETACH, thread)
        raise


def _wait_for_sleep(thread: int) -> None:
    """One that is not asleep may hold the lock of the socket through which others say goodbye."""
    deadline = time.monotonic() + _SLEEP_TIMEOUT_S
    while _state(thread) != "S":
        if time.monotonic() > deadline:
            raise TimeoutError(f"thread {thread} does not wait for anything")
        time.sleep(0.001)


def _state(thread: int) -> str:
    """One letter, behind the name, which may hold anything."""
    return Path(f"/proc/{thread}/stat").read_text().rpartition(") ")[2][0]


def _wait_for_death(thread: int) -> None:
    """A dead thread stays, and its process with it, until its debugger has looked at it."""
    deadline = time.monotonic() + _DEATH_TIMEOUT_S
    while time.monotonic() < deadline:
        found, status = os.waitpid(thread, _WALL | os.WNOHANG)
        if found and (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
            return
        time.sleep(0.02)
    raise TimeoutError(f"thread {thread} goes on living")


def _ptrace(request: int, thread: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(request, thread, None, None) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace({request:#x}) of thread {thread}: {os.strerror(error)}")
