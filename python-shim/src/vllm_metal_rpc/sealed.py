"""A connection through a network: authenticated, and each message sealed."""

import os
import threading
import time
from pathlib import Path
from typing import Self

from vllm_metal_rpc import auth
from vllm_metal_rpc.client import Connection, Waker
from vllm_metal_rpc.errors import ConnectionLost, Unauthorized


class SealedConnection:
    """Like the `Connection` that it uses."""

    def __init__(self, connection: Connection, exchange: auth.Exchange) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._ours = exchange.seal(auth.FRONTEND)
        self._theirs = exchange.seal(auth.DAEMON)

    @classmethod
    def open(cls, endpoint: str, token_file: Path, waker: Waker, timeout_s: float) -> Self:
        """Connects, and has both sides prove that they hold the token in `token_file`.

        Raises:
            ConnectionLost: Nothing listens there, or what listens does not answer in time.
            MetalRpcError: One of the sides does not hold it, or there is none.
        """
        exchange = auth.Exchange(auth.read_token(token_file), os.urandom(auth.NONCE_BYTES))
        connection = Connection.open(endpoint, waker, timeout_s)
        deadline = time.monotonic() + timeout_s
        try:
            connection.send(exchange.knock)
            connection.send(exchange.respond(_await_frame(connection, deadline, endpoint)))
            exchange.check(_await_frame(connection, deadline, endpoint))
        except Unauthorized as error:
            connection.close()
            raise Unauthorized(f"{endpoint}: {error}") from None
        except BaseException:
            connection.close()
            raise
        return cls(connection, exchange)

    def send(self, message: bytes) -> None:
        """As `Connection.send`."""
        with self._lock:
            self._connection.send(self._ours.close(message))

    def receive(self, timeout_s: float) -> bytes | None:
        """As `Connection.receive`."""
        frame = self._connection.receive(timeout_s)
        if frame is None:
            return None
        try:
            return self._theirs.open(frame)
        except auth.BrokenSeal as error:
            raise ConnectionLost(str(error)) from error

    def close(self) -> None:
        """As `Connection.close`."""
        self._connection.close()


def _await_frame(connection: Connection, deadline: float, endpoint: str) -> bytes:
    while (remaining_s := deadline - time.monotonic()) > 0:
        frame = connection.receive(remaining_s)
        if frame is not None:
            return frame
    raise ConnectionLost(f"{endpoint} did not answer in time")
