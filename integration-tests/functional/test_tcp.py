"""A daemon on TCP: who holds the token is served, nobody else is, and nothing can be repeated."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework import paths, wire
from framework.daemon import Daemon, environment, free_port, write_token
from framework.frontend import DaemonError, Peer, ready_frontend
from framework.greedy import generate
from framework.network import NetworkFrontend, enter, knock, refusal, response

PROMPT = [5, 17, 200, 31, 8, 9]
NUM_TOKENS = 8


@pytest.fixture
def token_file(remote_daemon: Daemon) -> Path:
    return Path(remote_daemon.variables["METAL_RPC_TOKEN_FILE"])


@pytest.fixture
def enter_as(remote_daemon: Daemon, token_file: Path) -> Iterator[Callable[[str], NetworkFrontend]]:
    """Opens sessions by name."""
    opened = []

    def open_session(name: str) -> NetworkFrontend:
        opened.append(NetworkFrontend(remote_daemon.endpoint, token_file))
        opened[-1].hello(name)
        return opened[-1]

    yield open_session
    for frontend in opened:
        frontend.close()


@pytest.fixture
def stranger(remote_daemon: Daemon) -> Iterator[Peer]:
    with Peer(remote_daemon.endpoint) as peer:
        yield peer


@pytest.fixture(autouse=True)
def bystander(enter_as: Callable[[str], NetworkFrontend]) -> Iterator[None]:
    """A session that must not notice anything."""
    other = enter_as("bystander")
    yield
    other.call("Ping", "Pong")


def test_a_frontend_with_the_token_is_served(
    daemon: Daemon,
    tiny: Callable[[str], Path],
    enter_as: Callable[[str], NetworkFrontend],
) -> None:
    with ready_frontend(daemon.endpoint, tiny("gqa")) as local:
        expected = generate(local, [PROMPT], NUM_TOKENS)
    remote = enter_as("remote")
    remote.load_model(tiny("gqa"))
    remote.create_cache()
    assert generate(remote, [PROMPT], NUM_TOKENS, pipelined=True) == expected
    remote.goodbye()


def test_status_is_told_to_those_with_the_token(remote_daemon: Daemon, tmp_path: Path) -> None:
    assert remote_daemon.status()["pid"] == remote_daemon.pid
    other = {"METAL_RPC_TOKEN_FILE": str(write_token(tmp_path))}
    for token, reason in ((other, "another token"), ({}, "needs a token")):
        endpoint = {"METAL_RPC_ENDPOINT": remote_daemon.endpoint}
        refused = run("status", remote_daemon.folder, **endpoint, **token)
        assert refused.returncode == 69, refused
        assert reason in refused.stderr


# ---- Refusals ----


def test_a_message_without_a_token_is_refused(stranger: Peer) -> None:
    stranger.send_frame(wire.encode_request("Status", b"", 1, {}))
    assert "not a frame of the authentication" in refusal(stranger)


def test_a_wrong_token_is_refused(stranger: Peer, tmp_path: Path) -> None:
    keys = knock(stranger, write_token(tmp_path))
    stranger.send_frame(response(keys))
    assert "METAL_RPC_TOKEN_FILE" in refusal(stranger)


def test_another_version_of_the_exchange_is_told_both(stranger: Peer) -> None:
    stranger.send_frame(bytes((1, 2)) + bytes(32))
    reason = refusal(stranger)
    assert "version 1" in reason
    assert "version 2" in reason
    assert "install the same version" in reason


def test_a_response_from_another_connection_is_refused(
    remote_daemon: Daemon, token_file: Path, stranger: Peer
) -> None:
    """Who has listened to a whole exchange repeats it, and meets another challenge."""
    with Peer(remote_daemon.endpoint) as heard:
        keys = enter(heard, token_file)
    stranger.send_frame(keys.knock)
    assert stranger.receive_frame() != keys.challenge
    stranger.send_frame(response(keys))
    assert "METAL_RPC_TOKEN_FILE" in refusal(stranger)


def test_a_stranger_has_little_to_say(stranger: Peer) -> None:
    stranger.send_frame(bytes(1 << 16))
    stranger.wait_closed()


@pytest.mark.parametrize("what", ["repeated", "changed", "from another connection", "unsealed"])
def test_a_sealed_message_counts_once_where_it_was_said(
    enter_as: Callable[[str], NetworkFrontend], what: str
) -> None:
    frontend, other = enter_as("victim"), enter_as("other")
    for each in (frontend, other):
        each.call("Ping", "Pong")
    frame = {
        "repeated": frontend.sent[-1],
        "changed": frontend.sent[-1][:-1] + b"\x91",
        "from another connection": other.sent[-1],
        "unsealed": wire.encode_request("Ping", frontend.session, 3, {}),
    }[what]
    Peer.send_frame(frontend, frame)
    frontend.wait_closed()


def test_the_session_of_another_connection_is_not_known(
    enter_as: Callable[[str], NetworkFrontend],
) -> None:
    """Both hold the daemon's token, but only one has opened the session."""
    owner, thief = enter_as("owner"), enter_as("thief")
    thief.session = owner.session
    with pytest.raises(DaemonError, match="UnknownSession"):
        thief.call("Goodbye", "Farewell")
    owner.call("Ping", "Pong")


def test_strangers_do_not_keep_others_out(
    remote_daemon: Daemon, enter_as: Callable[[str], NetworkFrontend]
) -> None:
    """There are places for 16. Whoever does not prove anything loses his."""
    strangers = [Peer(remote_daemon.endpoint) for _ in range(20)]
    enter_as("late").goodbye()
    for stranger in strangers:
        stranger.close()


# ---- What is not served ----


@pytest.mark.parametrize(
    ("host", "flags", "reason"),
    [
        ("127.0.0.1", ["--token-file={folder}/token"], "--allow-tcp"),
        ("0.0.0.0", ["--allow-tcp", "--token-file={folder}/token"], "every interface"),
        ("127.0.0.1", ["--allow-tcp"], "METAL_RPC_TOKEN_FILE"),
        ("127.0.0.1", ["--allow-tcp", "--token-file={folder}/open"], "chmod 600"),
        ("127.0.0.1", ["--allow-tcp", "--token-file={folder}/short"], "openssl rand"),
    ],
)
def test_tcp_is_not_served_by_accident(
    make_folder: Callable[[], Path], host: str, flags: list[str], reason: str
) -> None:
    folder = make_folder()
    write_token(folder)
    write_token(folder, "open").chmod(0o644)
    write_token(folder, "short").write_text("secret")
    refused = run(
        "serve",
        folder,
        *(flag.format(folder=folder) for flag in flags),
        METAL_RPC_ENDPOINT=f"tcp://{host}:{free_port()}",
        XDG_RUNTIME_DIR=str(folder),
    )
    assert refused.returncode == 78, refused
    assert reason in refused.stderr


def run(
    command: str, folder: Path, *flags: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A command of metald that ends by itself."""
    return subprocess.run(
        [str(paths.metald()), command, *flags],
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
