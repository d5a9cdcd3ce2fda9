"""Whose turn it is to receive: the thread that waits for a step, or else the I/O thread.

An answer that the I/O thread receives has to wake the thread that waits for it, and both want the
interpreter's lock: a thread switch or two in every step. So who waits for a step's future receives
meanwhile, and the I/O thread stays away from the socket as long as steps come.

# Invariants
- One thread receives at a time.
- Whatever ends a connection is raised in the I/O thread, whoever has met it, and ends no other.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from vllm_metal_rpc.client import Waker
from vllm_metal_rpc.link import Link

# After so long without a step, or with one that nobody waits for, the I/O thread receives.
_QUIET_S: Final = 0.1


class StepFuture(Future[Any]):
    """A step's future: whoever waits for it without a bound receives meanwhile.

    Args:
        receive_until_done: Receives in the calling thread, until this future is resolved or
            somebody else has to resolve it.
    """

    def __init__(self, receive_until_done: Callable[[Future[Any]], None]) -> None:
        super().__init__()
        self._receive_until_done = receive_until_done

    def result(self, timeout: float | None = None) -> Any:
        """See `concurrent.futures.Future`."""
        if timeout is None and not self.done():
            self._receive_until_done(self)
        return super().result(timeout)


class Receiving:
    """The turns."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._waker = Waker()
        self._active_at = -_QUIET_S
        # What has ended a connection, and which: the next one must not end by it.
        self._ending: tuple[Link, Exception] | None = None

    def step_left(self) -> None:
        """Says that somebody is about to wait for a step."""
        self._active_at = time.monotonic()

    def wake(self) -> None:
        """Ends the wait of the I/O thread."""
        self._waker.wake()

    def receive_until_done(
        self,
        future: Future[Any],
        current: Callable[[], Link | None],
        receive: Callable[[Link], None],
    ) -> None:
        """The turn of a thread that waits for a step.

        Args:
            future: The step's.
            current: The link of the moment; None while there is none.
            receive: Receives once.
        """
        with self._turn:
            while not future.done():
                link = current()
                if link is None or self._ending_of(link) is not None:
                    break
                try:
                    receive(link)
                except Exception as error:
                    self._ending = (link, error)
                    self._waker.wake()
            self._active_at = time.monotonic()

    def receive_if_nobody_does(self, link: Link, receive: Callable[[Link], None]) -> None:
        """The turn of the I/O thread, or a wait for it.

        Raises:
            Exception: What this thread, or another, has met while it received from this link.
        """
        is_active = time.monotonic() - self._active_at < _QUIET_S
        if is_active or not self._turn.acquire(blocking=False):
            self._waker.wait(_QUIET_S)
        else:
            try:
                receive(link)
            except Exception as error:
                # Before the turn is another's: who waits must not receive from what is closed next.
                self._ending = (link, error)
            finally:
                self._turn.release()
        ending = self._ending_of(link)
        if ending is not None:
            raise ending

    def _ending_of(self, link: Link) -> Exception | None:
        ending = self._ending
        return ending[1] if ending is not None and ending[0] is link else None
