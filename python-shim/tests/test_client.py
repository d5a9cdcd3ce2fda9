"""The connection itself: wake-ups, ends, and whose socket it is."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from vllm_metal_rpc.client import Connection, Waker
from vllm_metal_rpc.errors import ConnectionLost, MetalRpcError


@pytest.fixture
def waker() -> Iterator[Waker]:
    waker = Waker()
    yield waker
    waker.close()


@pytest.fixture
def router(endpoint: str) -> Iterator[zmq.Socket]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as bound:
        bound.setsockopt(zmq.LINGER, 0)
        bound.setsockopt(zmq.RCVTIMEO, 5000)
        bound.bind(endpoint)
        yield bound


@pytest.fixture
def connection(router: zmq.Socket, endpoint: str, waker: Waker) -> Iterator[Connection]:
    connection = Connection.open(endpoint, waker, 5.0)
    yield connection
    connection.close()


def test_a_message_is_one_frame_each_way(connection: Connection, router: zmq.Socket) -> None:
    connection.send(b"ask")
    identity, frame = router.recv_multipart()
    assert frame == b"ask"
    router.send_multipart([identity, b"answer"])
    assert connection.receive(5.0) == b"answer"


def test_no_answer_is_lost_while_another_thread_sends(
    connection: Connection, router: zmq.Socket
) -> None:
    # Goal: no reply stays unseen because a send consumed the descriptor's edge. Method: one thread
    # sends as fast as it can, so that sends and arrivals collide; each must be answered.
    count = 5000

    def echo() -> None:
        for _ in range(count):
            router.send_multipart(router.recv_multipart())

    def send() -> None:
        for number in range(count):
            connection.send(number.to_bytes(4, "little"))

    threads = [threading.Thread(target=echo), threading.Thread(target=send)]
    for thread in threads:
        thread.start()
    received = []
    while len(received) < count:
        frame = connection.receive(5.0)
        if frame is not None:
            received.append(int.from_bytes(frame, "little"))
    for thread in threads:
        thread.join()
    assert received == list(range(count))


def test_a_wake_up_ends_the_wait(connection: Connection, waker: Waker) -> None:
    timer = threading.Timer(0.05, waker.wake)
    timer.start()
    start = time.monotonic()
    assert connection.receive(30.0) is None
    assert time.monotonic() - start < 20
    # It is used up: the next wait lasts its time.
    assert connection.receive(0.01) is None


def test_the_end_of_the_peer_is_seen_after_its_last_words(
    connection: Connection, router: zmq.Socket
) -> None:
    connection.send(b"ask")
    identity, _ = router.recv_multipart()
    router.setsockopt(zmq.LINGER, 5000)
    router.send_multipart([identity, b"last words"])
    router.close()
    assert connection.receive(5.0) == b"last words"

    def receive_to_the_end() -> None:
        while True:
            connection.receive(5.0)

    with pytest.raises(ConnectionLost, match="closed the connection"):
        receive_to_the_end()
    with pytest.raises(ConnectionLost, match="cannot send"):
        connection.send(b"to nobody")


def test_last_words_that_come_with_the_end_are_read(
    connection: Connection, router: zmq.Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.send(b"ask")
    identity, _ = router.recv_multipart()
    receive_now = connection._receive_now

    def receive_too_early() -> None:
        # The peer speaks and goes right after this look at the socket.
        monkeypatch.setattr(connection, "_receive_now", receive_now)
        router.setsockopt(zmq.LINGER, 5000)
        router.send_multipart([identity, b"last words"])
        router.close()
        assert connection._monitor.poll(5000)

    monkeypatch.setattr(connection, "_receive_now", receive_too_early)
    assert connection.receive(5.0) == b"last words"
    with pytest.raises(ConnectionLost, match="closed the connection"):
        connection.receive(5.0)


def test_nobody_listens(endpoint: str, waker: Waker) -> None:
    with pytest.raises(ConnectionLost, match="nothing listens"):
        Connection.open(endpoint, waker, 5.0)


def test_something_else_listens(endpoint: str, waker: Waker) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(endpoint.removeprefix("ipc://"))
        other.listen()
        with pytest.raises(ConnectionLost, match="did not answer within"):
            Connection.open(endpoint, waker, 0.2)


def test_the_socket_of_another_user_is_not_spoken_to(
    router: zmq.Socket, endpoint: str, waker: Waker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(endpoint.removeprefix("ipc://"))
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    if path.stat().st_uid == 0:
        os.chown(path, 4712, -1)
    with pytest.raises(MetalRpcError, match=r"belongs to user \d+ and not to user 4711"):
        Connection.open(endpoint, waker, 5.0)


def test_closing_twice_is_closing(router: zmq.Socket, endpoint: str, waker: Waker) -> None:
    connection = Connection.open(endpoint, waker, 5.0)
    connection.close()
    connection.close()
