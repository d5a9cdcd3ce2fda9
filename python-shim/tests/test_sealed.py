"""The connection through a network, against the other half of the exchange."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from vllm_metal_rpc import auth
from vllm_metal_rpc.client import Waker
from vllm_metal_rpc.errors import ConnectionLost, Unauthorized
from vllm_metal_rpc.sealed import SealedConnection

SECRET = b"s" * 64
CHALLENGE = b"\x02" + bytes(32)


class Gate:
    """The daemon's side, with its token; answers each message with itself."""

    def __init__(self, socket: zmq.Socket, token: bytes) -> None:
        self._socket = socket
        self._token = token
        self.changes: Callable[[bytes], bytes] = lambda frame: frame
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        identity, knock = self._socket.recv_multipart()
        both = auth.Exchange(self._token, knock[2:])
        self._send(identity, CHALLENGE)
        expected = both.respond(CHALLENGE)
        identity, response = self._socket.recv_multipart()
        if response != expected:
            return self._send(identity, b"\x05no")
        self._send(identity, b"\x04" + both._mac(b"proof", auth.DAEMON))
        theirs, ours = both.seal(auth.FRONTEND), both.seal(auth.DAEMON)
        while True:
            identity, frame = self._socket.recv_multipart()
            message = theirs.open(frame)
            self._send(identity, self.changes(ours.close(message)))
            if message == b"end":
                return None

    def _send(self, identity: bytes, frame: bytes) -> None:
        self._socket.send_multipart([identity, frame])


@pytest.fixture
def waker() -> Iterator[Waker]:
    waker = Waker()
    yield waker
    waker.close()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def router() -> Iterator[zmq.Socket]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as bound:
        bound.setsockopt(zmq.LINGER, 0)
        bound.setsockopt(zmq.RCVTIMEO, 60_000)
        bound.bind("tcp://127.0.0.1:*")
        yield bound


def connect(router: zmq.Socket, token_file: Path, waker: Waker) -> SealedConnection:
    endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
    return SealedConnection.open(endpoint, token_file, waker, 60.0)


def test_messages_go_to_and_fro(router: zmq.Socket, token_file: Path, waker: Waker) -> None:
    gate = Gate(router, SECRET)
    connection = connect(router, token_file, waker)
    for message in (b"one", b"", b"x" * 100_000, b"end"):
        connection.send(message)
        # None: `send` has seen that the answer is there, and woken us.
        while (answer := connection.receive(60.0)) is None:
            pass
        assert answer == message
    gate.join()
    connection.close()


def test_a_changed_answer_ends_the_connection(
    router: zmq.Socket, token_file: Path, waker: Waker
) -> None:
    gate = Gate(router, SECRET)
    connection = connect(router, token_file, waker)
    gate.changes = lambda frame: frame[:-1] + b"!"
    connection.send(b"end")
    with pytest.raises(ConnectionLost, match="changed on its way"):
        connection.receive(60.0)
    gate.join()
    connection.close()


def test_another_token_is_told_by_the_daemon(
    router: zmq.Socket, token_file: Path, waker: Waker
) -> None:
    gate = Gate(router, b"t" * 64)
    with pytest.raises(Unauthorized, match=r"tcp://127.* the daemon refuses: 'no'"):
        connect(router, token_file, waker)
    gate.join()


def test_a_false_daemon_gets_no_word(router: zmq.Socket, token_file: Path, waker: Waker) -> None:
    def pretend() -> None:
        identity, _ = router.recv_multipart()
        router.send_multipart([identity, CHALLENGE])
        router.recv_multipart()
        router.send_multipart([identity, b"\x04" + bytes(32)])

    thread = threading.Thread(target=pretend)
    thread.start()
    with pytest.raises(Unauthorized, match="gets no word of ours"):
        connect(router, token_file, waker)
    thread.join()
    assert not router.poll(200)
