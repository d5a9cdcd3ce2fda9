"""One ZeroMQ connection to the daemon. The only file that names `zmq`.

A connection is used by two threads. The engine's main thread sends steps on it directly, because
handing each frame to another thread would cost two thread switches and a wait for the GIL. The
I/O thread receives, or the main thread while it waits for a step (`receiving.py`). ZeroMQ sockets
are not thread-safe, so every call on one is made under a lock, and who receives waits on the
socket's file descriptor, never inside the socket.

That descriptor is edge-triggered, and *any* call on the socket may consume the edge. Hence the
rule: whoever has called `send` looks at `EVENTS` before it lets go of the lock if somebody waits,
and wakes who waits if there is something to read.

# Invariants
- A connection is opened once and never reconnects: a routing id that outlives its peer would reach
  another daemon with this one's session.
- `receive` is called by one thread at a time.
"""

import contextlib
import math
import os
import select
import threading
import time
from typing import Final, Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from vllm_metal_rpc.errors import ConnectionLost, MetalRpcError

# As in protocol/src/limits.rs: larger frames are dropped by ZeroMQ before they are allocated.
MAX_MESSAGE_BYTES: Final = 64 << 20
# A sealed message is a little longer.
_MAX_FRAME_BYTES: Final = MAX_MESSAGE_BYTES + 64
# Longer than any wait here: a failed attempt is reported, and repeated by us, not by ZeroMQ.
_RECONNECT_INTERVAL_MS: Final = 3_600_000
# Not EVENT_DISCONNECTED: ZeroMQ reports it before it hands over the peer's last messages, and
# EVENT_CONNECT_RETRIED after that.
_REFUSED: Final = int(
    zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Waker:
    """Ends another thread's wait: a pipe, because macOS has no eventfd."""

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._write_fd, False)

    def wake(self) -> None:
        """Ends the current wait, or the next one if there is none. Any thread."""
        # A full pipe means that a wake-up is already on its way.
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_fd, b"\0")

    def drain(self) -> None:
        """Forgets the wake-ups so far."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)

    def wait(self, timeout_s: float) -> None:
        """Sleeps, unless woken."""
        if select.select([self.fd], [], [], timeout_s)[0]:
            self.drain()

    def close(self) -> None:
        """Gives the descriptors back."""
        os.close(self.fd)
        os.close(self._write_fd)


class Connection:
    """A DEALER socket that is connected, until it is not."""

    def __init__(self, endpoint: str, waker: Waker) -> None:
        self._waker = waker
        self._lock = threading.Lock()
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        # With IMMEDIATE, ZeroMQ would throw away unread messages when the peer closes.
        self._socket.setsockopt(zmq.IMMEDIATE, 0)
        self._socket.setsockopt(zmq.IPV6, 1)
        self._socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_INTERVAL_MS)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
        self._monitor = self._socket.get_monitor_socket(_REFUSED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._poller = zmq.Poller()
        self._poller.register(self._socket.getsockopt(zmq.FD), zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._poller.register(waker.fd, zmq.POLLIN)
        self._endpoint = endpoint
        self._is_lost = False
        # Whether who receives has found nothing. Guarded by the lock.
        self._is_awaited = False

    @classmethod
    def open(cls, endpoint: str, waker: Waker, timeout_s: float) -> Self:
        """Connects.

        Raises:
            ConnectionLost: Nothing listens there, or what listens does not speak ZMTP in time.
            MetalRpcError: It is not ours.
        """
        check_owner(endpoint)
        connection = cls(endpoint, waker)
        try:
            connection._connect(timeout_s)
        except BaseException:
            connection.close()
            raise
        return connection

    def send(self, frame: bytes) -> None:
        """Sends one message without waiting. Any thread.

        Raises:
            ConnectionLost: `receive` has seen the end of the connection.
        """
        if self._is_lost:
            raise ConnectionLost(f"cannot send to {self._endpoint}: the daemon has closed it")
        with self._lock:
            try:
                self._socket.send(frame, zmq.NOBLOCK)
                must_wake = self._is_awaited and self._is_readable()
            except zmq.ZMQError as error:
                raise ConnectionLost(f"cannot send to {self._endpoint}: {error}") from error
        if must_wake:
            self._waker.wake()

    def receive(self, timeout_s: float) -> bytes | None:
        """Waits for one message.

        Returns:
            The message, or None when the time is over or somebody has woken us.

        Raises:
            ConnectionLost: The daemon has closed the connection, and all its messages were read.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            frame = self._receive_now()
            if frame is not None:
                return frame
            if self._is_lost:
                raise ConnectionLost(f"the daemon closed the connection to {self._endpoint}")
            remaining_s = deadline - time.monotonic()
            ready = dict(self._poller.poll(_to_ms(max(0.0, remaining_s))))
            if self._monitor in ready and self._next_event() & _REFUSED:
                # Its last messages may have come between the look at the socket and this event.
                self._is_lost = True
                continue
            if remaining_s <= 0:
                return None
            if self._waker.fd in ready:
                self._waker.drain()
                return self._receive_now()

    def close(self) -> None:
        """Drops the connection and whatever was not sent yet. Repeated calls do nothing."""
        with self._lock:
            if not self._context.closed:
                self._socket.disable_monitor()
                self._context.destroy(linger=0)

    def _connect(self, timeout_s: float) -> None:
        self._socket.connect(self._endpoint)
        deadline = time.monotonic() + timeout_s
        while True:
            event = self._next_event()
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return
            if event & _REFUSED:
                raise ConnectionLost(f"nothing listens on {self._endpoint}")
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise ConnectionLost(f"{self._endpoint} did not answer within {timeout_s:g} s")
            self._monitor.poll(_to_ms(remaining_s))

    def _receive_now(self) -> bytes | None:
        with self._lock:
            self._is_awaited = not self._is_readable()
            if self._is_awaited:
                return None
            frame: bytes = self._socket.recv(zmq.NOBLOCK)
            return frame

    def _is_readable(self) -> bool:
        """Whether a message can be received. Call with the lock held."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def _next_event(self) -> int:
        """The next event of the connection's life; 0 if nothing happened."""
        if not self._monitor.poll(0):
            return 0
        event: int = recv_monitor_message(self._monitor)["event"]
        return event


def check_owner(endpoint: str) -> None:
    """Looks whose socket it is, before prompts are sent into it.

    Whoever is first to create a socket in a public folder could otherwise read them.

    Raises:
        MetalRpcError: It is another user's.
    """
    if not endpoint.startswith("ipc://"):
        return
    path = endpoint.removeprefix("ipc://")
    try:
        owner = os.lstat(path).st_uid
    except OSError:
        # Connecting says what is wrong.
        return
    if owner not in (0, os.geteuid()):
        raise MetalRpcError(
            f"{path} belongs to user {owner} and not to user {os.geteuid()}; remove it, or set "
            "METAL_RPC_ENDPOINT to a socket of your own"
        )


def _to_ms(seconds: float) -> int:
    """Whole milliseconds, rounded up: a wait never ends before its time and then spins."""
    return math.ceil(seconds * 1000)
