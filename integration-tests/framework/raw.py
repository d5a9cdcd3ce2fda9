"""A peer whose every byte the test chooses, written from ZeroMQ's specifications 23 and 37."""

import socket
from pathlib import Path
from typing import Final, Self

from framework import wire
from framework.frontend import REPLY_TIMEOUT_S
from framework.wire import Body, Reply

MORE, LONG, COMMAND = 1, 2, 4
HELLO: Final[Body] = {
    "min_protocol_version": 1,
    "max_protocol_version": 1,
    "vllm_version": "0.33.0",
    "frontend": "raw",
    "pid": 1,
    "weight": 1,
}
GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


def frame(body: bytes, flags: int = 0) -> bytes:
    """A frame as it travels."""
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return announced(len(body), flags) + body


def announced(num_bytes: int, flags: int = 0) -> bytes:
    """The header of a long frame."""
    return bytes((flags | LONG,)) + num_bytes.to_bytes(8, "big")


def ready(socket_type: bytes = b"DEALER", identity: bytes = b"") -> bytes:
    """The command that ends the greeting."""
    properties = {b"Socket-Type": socket_type, b"Identity": identity}
    encoded = b"".join(
        bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value
        for name, value in properties.items()
    )
    return frame(b"\x05READY" + encoded, COMMAND)


class RawPeer:
    """A connection to a daemon's Unix socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(REPLY_TIMEOUT_S)
        self._socket.connect(str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def greet(self, identity: bytes = b"") -> Self:
        """Becomes a DEALER of ZMTP 3.1."""
        self.send(GREETING)
        self.send(ready(identity=identity))
        self.read_greeting()
        return self

    def read_greeting(self) -> None:
        """Reads the daemon's side of it."""
        assert self._read(len(GREETING))[:11] == GREETING[:11]
        flags, body = self.read_frame()
        assert flags == COMMAND
        assert body == b"\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER"

    def send(self, data: bytes) -> None:
        """Sends bytes."""
        self._socket.sendall(data)

    def ask(self, name: str, **body: object) -> Reply:
        """Sends a request outside of sessions and reads its answer."""
        self.send(frame(wire.encode_request(name, b"", 1, body)))
        return self.read_reply()

    def read_frame(self) -> tuple[int, bytes]:
        """The next frame: its flags, without that of its length, and its body."""
        (flags,) = self._read(1)
        length = int.from_bytes(self._read(8 if flags & LONG else 1), "big")
        return flags & ~LONG, self._read(length)

    def read_reply(self) -> Reply:
        """The next message."""
        flags, body = self.read_frame()
        assert flags == 0
        return wire.decode_reply(body)

    def wait_closed(self) -> None:
        """Waits until the daemon has closed the connection, past what it has said before."""
        try:
            while self._socket.recv(1 << 16):
                pass
        except ConnectionResetError:
            # It was closed before everything was read that we had sent.
            pass

    def _read(self, num_bytes: int) -> bytes:
        data = b""
        while len(data) < num_bytes:
            received = self._socket.recv(num_bytes - len(data))
            assert received, f"the connection ends after {data!r}"
            data += received
        return data
