"""A socket between a frontend and the daemon, which can stop passing on what it gets.

Both ends then have a connection that is open and silent, as after a cut cable.
"""

import socket
import threading
from pathlib import Path
from typing import Self


class Relay:
    """Listens in `folder`, passes every connection on to `endpoint`."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        path = folder / "relay.sock"
        self.endpoint = f"ipc://{path}"
        self._target = endpoint.removeprefix("ipc://")
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._sockets = [self._listener]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._flows.set()
        for open_socket in self._sockets:
            open_socket.close()

    def stall(self) -> None:
        """Keeps what arrives from now on."""
        self._flows.clear()

    def resume(self) -> None:
        """Passes it on."""
        self._flows.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._target)
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self._flows.wait()
                sink.sendall(data)
        except OSError:
            return
