"""Frontends that die, do not read, or are too many: the others do not notice."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework import wire
from framework.bystander import Bystander
from framework.daemon import Daemon, wait_for_sessions
from framework.frontend import DaemonError, Frontend
from framework.raw import HELLO, RawPeer, frame

MAX_SESSIONS = 64
# More than all queues between the two hold.
UNREAD = 50_000
MOST_GROWTH_BYTES = 64 << 20
TIMEOUT_S = 60.0


@pytest.fixture
def own_daemon(make_folder: Callable[[], Path]) -> Iterator[Daemon]:
    with Daemon(make_folder()) as running:
        yield running


def test_a_frontend_that_does_not_read_costs_no_memory(
    own_daemon: Daemon, tiny: Callable[[str], Path]
) -> None:
    with Bystander(own_daemon.endpoint, tiny("gqa")) as bystander:
        with RawPeer(own_daemon.socket) as deaf:
            token = deaf.greet().ask("Hello", **HELLO).body["session"]
            before = own_daemon.rss_bytes()
            # On a slow machine it is thrown out before it has said everything.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for seq in range(2, UNREAD):
                    deaf.send(frame(wire.encode_request("Ping", token, seq, {})))
            assert own_daemon.rss_bytes() - before < MOST_GROWTH_BYTES
            wait_for_sessions(own_daemon.folder, 1)
            deadline = time.monotonic() + TIMEOUT_S
            while "it did not read for 5s" not in own_daemon.log_path.read_text():
                assert time.monotonic() < deadline, own_daemon.log()
                time.sleep(0.1)
        bystander.wait_for_rounds(bystander.num_rounds + 3)


def test_one_frontend_too_many_is_refused(own_daemon: Daemon) -> None:
    frontends = [Frontend(own_daemon.endpoint) for _ in range(MAX_SESSIONS + 1)]
    *admitted, last = frontends
    for frontend in admitted:
        frontend.hello()
    with pytest.raises(DaemonError) as caught:
        last.hello()
    assert caught.value.code == "TooManySessions"
    admitted[0].goodbye()
    last.hello()
    for frontend in frontends:
        frontend.close()
