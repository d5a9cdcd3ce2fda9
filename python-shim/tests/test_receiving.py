"""Whose turn it is to receive, and whom the end of a connection reaches."""

import threading
from concurrent.futures import Future
from typing import Any, cast

import pytest

from vllm_metal_rpc.errors import ConnectionLost
from vllm_metal_rpc.link import Link
from vllm_metal_rpc.receiving import Receiving

OLD, NEW = cast(Link, object()), cast(Link, object())


def keep(link: Link) -> None:
    """Nothing has come."""


def lose(link: Link) -> None:
    raise ConnectionLost("the daemon closed the connection")


def test_who_waits_receives_until_its_future_is_done() -> None:
    future: Future[Any] = Future()
    received: list[Link] = []

    def receive(link: Link) -> None:
        received.append(link)
        if len(received) == 3:
            future.set_result(None)

    Receiving().receive_until_done(future, lambda: OLD, receive)
    assert received == [OLD] * 3


def test_the_end_of_a_connection_is_raised_in_the_other_thread() -> None:
    receiving = Receiving()
    receiving.receive_until_done(Future(), lambda: OLD, lose)
    with pytest.raises(ConnectionLost):
        receiving.receive_if_nobody_does(OLD, keep)


def test_an_end_that_is_met_late_does_not_end_the_next_connection() -> None:
    """Both threads may meet the end of the old one, and one of them after the new one began."""
    receiving = Receiving()
    link = OLD
    in_receive, has_begun = threading.Event(), threading.Event()

    def meet_it_late(_: Link) -> None:
        in_receive.set()
        assert has_begun.wait(60)
        raise ConnectionLost("the daemon closed the connection")

    future: Future[Any] = Future()
    waiter = threading.Thread(
        target=receiving.receive_until_done,
        args=(future, lambda: link if link is OLD else None, meet_it_late),
    )
    waiter.start()
    assert in_receive.wait(60)
    link = NEW
    has_begun.set()
    waiter.join()
    receiving.receive_if_nobody_does(NEW, keep)


def test_who_waits_does_not_receive_from_what_the_other_thread_has_lost() -> None:
    """The other thread is about to close it."""
    receiving = Receiving()
    with pytest.raises(ConnectionLost):
        receiving.receive_if_nobody_does(OLD, lose)
    future: Future[Any] = Future()
    receiving.receive_until_done(future, lambda: OLD, lambda _: future.set_result(None))
    assert not future.done()
