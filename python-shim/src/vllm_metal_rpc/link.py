"""One open session on one connection: numbering, set-up exchanges, heartbeats.

A link ends with its connection; what outlives it is in `session.py`. Messages are numbered from 1
in the order in which they leave, whichever thread sends them.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec

from vllm_metal_rpc import codec, messages
from vllm_metal_rpc.client import Connection, Waker
from vllm_metal_rpc.errors import (
    ConnectionLost,
    DaemonLeft,
    ErrorCode,
    MetalRpcError,
    ProtocolViolation,
    Scope,
    daemon_error,
)
from vllm_metal_rpc.messages import Message
from vllm_metal_rpc.progress import LoadLog
from vllm_metal_rpc.sealed import SealedConnection

_CONNECT_TIMEOUT_S: Final = 5.0
_HELLO_TIMEOUT_S: Final = 10.0
_FAREWELL_TIMEOUT_S: Final = 1.0
# Above every number that a session reaches.
_BURIAL_SEQ: Final = 1 << 62
_LEFT_BEHIND: Final = (ErrorCode.UNKNOWN_SESSION, ErrorCode.SHUTTING_DOWN)

_M = TypeVar("_M", bound=Message)


class Closing(Exception):
    """The session is to be closed, whatever it is doing."""


@dataclass(frozen=True)
class Server:
    """Where a daemon is, with what it takes to get in.

    Attributes:
        endpoint: `ipc://PATH` or `tcp://HOST:PORT`.
        token_file: What holds the token that TCP needs; None for a Unix socket.
    """

    endpoint: str
    token_file: Path | None = None


@dataclass(frozen=True)
class Lease:
    """How often to say something, and how long a silence may last, in seconds."""

    heartbeat_s: float = _HELLO_TIMEOUT_S
    silence_s: float = _HELLO_TIMEOUT_S


class Link:
    """A session as one daemon process knows it.

    Any thread may call `send`, one at a time `receive`, the I/O thread alone everything else.
    """

    def __init__(
        self,
        connection: Connection | SealedConnection,
        waker: Waker,
        closing: threading.Event,
    ) -> None:
        self._connection = connection
        self._waker = waker
        self._closing = closing
        self._lock = threading.Lock()
        self._token = messages.NO_SESSION
        self._seq = 0
        self._lease = Lease()
        self._last_sent_at = 0.0
        self._unanswered_since: float | None = None
        self._heard_at = time.monotonic()

    @classmethod
    def connect(cls, server: Server, waker: Waker, closing: threading.Event) -> Self:
        """Connects, without a word of the protocol yet.

        Raises:
            ConnectionLost: Nothing listens there.
            MetalRpcError: It is not ours, or we are not its.
        """
        endpoint, token_file = server.endpoint, server.token_file
        connection: Connection | SealedConnection
        if token_file is None:
            connection = Connection.open(endpoint, waker, _CONNECT_TIMEOUT_S)
        else:
            connection = SealedConnection.open(endpoint, token_file, waker, _CONNECT_TIMEOUT_S)
        return cls(connection, waker, closing)

    def say_hello(self, hello: messages.Hello) -> messages.Welcome:
        """Opens the session.

        Raises:
            DaemonError: The daemon does not want us.
            ConnectionLost: It went away or fell silent.
        """
        welcome = self.exchange(hello, messages.Welcome)
        with self._lock:
            self._token = welcome.session
            self._lease = Lease(welcome.heartbeat_ms / 1000, welcome.lease_ms / 1000)
        self.welcome = welcome
        return welcome

    def send(self, request: Message) -> int:
        """Sends a message and returns its number. Any thread.

        A connection that is gone is not an error here: the I/O thread is told, and answers what
        waits.
        """
        with self._lock:
            self._seq += 1
            frame = codec.encode_request(request, self._token, self._seq)
            try:
                self._connection.send(frame)
            except ConnectionLost:
                self._waker.wake()
            self._last_sent_at = time.monotonic()
            return self._seq

    def exchange(self, request: Message, expected: type[_M]) -> _M:
        """Sends a message of the set-up and waits for its answer, however long a load takes.

        Raises:
            DaemonError: The daemon refused it.
            ConnectionLost: The daemon went away or fell silent.
        """
        self._unanswered_since = time.monotonic()
        seq = self.send(request)
        progress = LoadLog(request)
        while True:
            received = self.receive()
            if received is None or received[1] != seq:
                continue
            reply = received[0]
            if isinstance(reply, messages.LoadProgress):
                progress.show(reply)
            elif isinstance(reply, messages.ErrorReply):
                raise daemon_error(reply.code, reply.scope, reply.message)
            elif isinstance(reply, expected):
                return reply
            else:
                raise ProtocolViolation(
                    f"{type(request).__name__} was answered by {type(reply).__name__}"
                )

    def repeat(self, request: Message, before: Message) -> None:
        """Says to a new daemon what the last one has answered with `before`.

        The size of the cache is known by now. So memory is not asked for by this frontend's share,
        which counts what others hold: they may return in another order than they came.

        Raises:
            ProtocolViolation: The model's cache has another format now, and vLLM cannot follow.
        """
        if isinstance(request, messages.ReserveMemory):
            request = messages.ReserveMemory(memory_fraction=1.0)
        reply = self.exchange(request, type(before))
        if (
            isinstance(reply, messages.ModelLoaded)
            and isinstance(before, messages.ModelLoaded)
            and reply.kv_cache_specs != before.kv_cache_specs
        ):
            raise ProtocolViolation(
                "the daemon came back with another KV-cache format for the same model; restart "
                "this frontend"
            )

    def receive(self) -> tuple[Message, int] | None:
        """Receives one message; keeps the lease while there is none.

        Returns:
            The message and the number of what it answers, or None when there may be something
            else to do.

        Raises:
            ConnectionLost: The daemon went away, is about to, forgot us, or fell silent.
        """
        if self._closing.is_set():
            raise Closing
        frame = self._connection.receive(self._keep_lease())
        if frame is None:
            self._check_silence()
            return None
        self._unanswered_since = None
        self._heard_at = time.monotonic()
        try:
            reply, seq = codec.decode_reply(frame)
        except msgspec.DecodeError as error:
            raise ProtocolViolation(f"the daemon sent what is not a reply: {error}") from error
        if isinstance(reply, messages.Pong):
            return None
        if seq == _BURIAL_SEQ:
            return None
        if isinstance(reply, messages.ErrorReply):
            if reply.code in _LEFT_BEHIND:
                raise DaemonLeft(reply.message)
            if reply.scope == Scope.DAEMON:
                raise ConnectionLost(reply.message)
        return reply, seq

    def silent_s(self) -> float:
        """How long the daemon has been silent, in seconds."""
        return time.monotonic() - self._heard_at

    def bury(self, last: "Link") -> None:
        """Closes the session of a connection that was lost, if this daemon still has it.

        It would hold its share of the memory until its lease runs out.
        """
        if last.welcome.epoch == self.welcome.epoch:
            frame = codec.encode_request(messages.Goodbye(), last._token, _BURIAL_SEQ)
            self._connection.send(frame)

    def say_goodbye(self) -> None:
        """Closes the session; waits a moment, so that the message is not lost with the socket."""
        seq = self.send(messages.Goodbye())
        deadline = time.monotonic() + _FAREWELL_TIMEOUT_S
        try:
            while (remaining_s := deadline - time.monotonic()) > 0:
                frame = self._connection.receive(remaining_s)
                if frame is not None and codec.decode_reply(frame)[1] == seq:
                    return
        except (MetalRpcError, msgspec.DecodeError):
            return

    def close(self) -> None:
        """Drops the connection."""
        with self._lock:
            self._connection.close()

    def _keep_lease(self) -> float:
        """Sends a Ping if it is time for one; returns the seconds until the next."""
        now = time.monotonic()
        due_s = self._last_sent_at + self._lease.heartbeat_s - now
        if due_s > 0:
            return due_s
        if self._token:
            if self._unanswered_since is None:
                self._unanswered_since = now
            self.send(messages.Ping())
        return self._lease.heartbeat_s

    def _check_silence(self) -> None:
        """Looks whether the daemon has left us without an answer for longer than a lease.

        Called when there is nothing to receive: answers that wait for a slow thread of ours do
        not count as silence.
        """
        since = self._unanswered_since
        if since is not None and time.monotonic() - since > self._lease.silence_s:
            raise ConnectionLost(f"the daemon was silent for {self._lease.silence_s:g} s")
