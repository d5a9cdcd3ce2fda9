"""Frontends that die, do not read, or are too many: the others do not notice."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework.bystander import Bystander
from framework.daemon import Daemon
from framework.frontend import DaemonError, Frontend

MAX_SESSIONS = 64
# More than all queues between the two hold.
UNREAD = 50_000
MOST_GROWTH_BYTES = 64 << 20


@pytest.fixture
def own_daemon(make_folder: Callable[[], Path]) -> Iterator[Daemon]:
    with Daemon(make_folder()) as running:
        yield running


def test_a_frontend_that_does_not_read_costs_no_memory(
    own_daemon: Daemon, tiny: Callable[[str], Path]
) -> None:
    with Bystander(own_daemon.endpoint, tiny("gqa")) as bystander:
        with Frontend(own_daemon.endpoint) as deaf:
            deaf.hello("deaf")
            before = own_daemon.rss_bytes()
            for _ in range(UNREAD):
                deaf.send("Ping")
            rounds = bystander.num_rounds
            while bystander.num_rounds < rounds + 3:
                assert own_daemon.is_running()
            assert own_daemon.rss_bytes() - before < MOST_GROWTH_BYTES
        assert own_daemon.status()["pid"] == own_daemon.pid


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
