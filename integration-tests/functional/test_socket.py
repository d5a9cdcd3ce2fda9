"""The daemon's socket, byte by byte: whatever a peer sends costs that peer at most."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework import wire
from framework.bystander import Bystander
from framework.daemon import Daemon
from framework.raw import COMMAND, GREETING, HELLO, MORE, RawPeer, announced, frame, ready

# protocol/src/limits.rs, and the longest command of a greeting.
MAX_MESSAGE_BYTES = 64 << 20
MAX_COMMAND_BYTES = 512


@pytest.fixture
def peer(daemon: Daemon) -> Iterator[RawPeer]:
    with RawPeer(daemon.socket) as connected:
        yield connected


@pytest.fixture(scope="module", autouse=True)
def bystander(daemon: Daemon, tiny: Callable[[str], Path]) -> Iterator[None]:
    """Another session that must not notice anything."""
    with Bystander(daemon.endpoint, tiny("gqa")) as other:
        yield
        other.wait_for_rounds(other.num_rounds + 1)


# ---- What is understood ----


def test_a_greeting_may_come_in_pieces(peer: RawPeer) -> None:
    message = frame(wire.encode_request("Status", b"", 1, {}))
    for byte in GREETING + ready(identity=bytes(range(1, 256))) + message:
        peer.send(bytes((byte,)))
    peer.read_greeting()
    assert peer.read_reply().name == "StatusReport"


def test_commands_are_answered_or_passed_over(peer: RawPeer) -> None:
    peer.greet()
    peer.send(frame(b"\x09SUBSCRIBEtopic", COMMAND))
    peer.send(frame(b"\x04PING\x00\x64context", COMMAND))
    assert peer.read_frame() == (COMMAND, b"\x04PONGcontext")
    assert peer.ask("Status").name == "StatusReport"


def test_peers_of_one_identity_are_two(daemon: Daemon, peer: RawPeer) -> None:
    with RawPeer(daemon.socket) as other:
        both = [each.greet(identity=b"the same") for each in (peer, other)]
        welcomes = [each.ask("Hello", **HELLO) for each in both]
        sessions = [welcome.body["session"] for welcome in welcomes]
        assert sessions[0] != sessions[1]
        for each, token in reversed(list(zip(both, sessions, strict=True))):
            each.send(frame(wire.encode_request("Goodbye", token, 2, {})))
            assert each.read_reply().name == "Farewell"


def test_the_longest_message_is_read(peer: RawPeer) -> None:
    peer.greet()
    peer.send(frame(bytes(MAX_MESSAGE_BYTES)))
    reply = peer.read_reply()
    assert wire.ERROR_CODES[reply.body["code"]] == "BadMessage"
    assert peer.ask("Status").name == "StatusReport"


# ---- What is not ----


@pytest.mark.parametrize(
    ("num_bytes", "flags", "limit"),
    [
        (MAX_MESSAGE_BYTES + 1, 0, MAX_MESSAGE_BYTES),
        (MAX_MESSAGE_BYTES + 1, MORE, MAX_MESSAGE_BYTES),
        (1 << 38, 0, MAX_MESSAGE_BYTES),
        (1 << 63, 0, MAX_MESSAGE_BYTES),
        ((1 << 64) - 1, 0, MAX_MESSAGE_BYTES),
        (1 << 38, COMMAND, MAX_COMMAND_BYTES),
    ],
)
def test_a_frame_beyond_the_limit_ends_its_connection(
    daemon: Daemon, peer: RawPeer, num_bytes: int, flags: int, limit: int
) -> None:
    peer.greet()
    peer.send(announced(num_bytes, flags))
    peer.wait_closed()
    expected = f"it announced a frame of {num_bytes} bytes, the most is {limit}"
    assert expected in daemon.log_path.read_text()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost".ljust(64, b"\n"), "not that of ZMTP 3"),
        (GREETING.replace(b"NULL\0", b"CURVE"), "not that of ZMTP 3"),
        (GREETING + announced(1 << 38, COMMAND), f"{1 << 38} bytes"),
        (GREETING + frame(b"no command"), "READY"),
        (GREETING + ready(socket_type=b"REQ"), 'type "REQ"'),
        (GREETING + ready() + frame(b"", 64), "flags 0x40"),
    ],
    ids=["HTTP", "another mechanism", "a huge command", "no command", "a REQ socket", "flags"],
)
def test_what_is_no_frontend_is_refused(
    daemon: Daemon, peer: RawPeer, sent: bytes, reason: str
) -> None:
    peer.send(sent)
    peer.wait_closed()
    assert reason in daemon.log_path.read_text()


@pytest.mark.parametrize("count", [1, 70, 200, 100_000])
def test_a_peer_may_end_in_the_middle(daemon: Daemon, count: int) -> None:
    whole = GREETING + ready() + frame(bytes(200_000))
    with RawPeer(daemon.socket) as dying:
        dying.send(whole[:count])
    assert daemon.status()["pid"] == daemon.pid
