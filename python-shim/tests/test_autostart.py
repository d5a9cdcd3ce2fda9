"""Starting a daemon: which, how, and what is said when it does not work."""

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from fake_daemon import FakeDaemon
from vllm_metal_rpc import autostart, envs
from vllm_metal_rpc import messages as m
from vllm_metal_rpc.autostart import Autostart, find_daemon
from vllm_metal_rpc.errors import DaemonUnavailable, MetalRpcError
from vllm_metal_rpc.link import Server
from vllm_metal_rpc.opening import Options
from vllm_metal_rpc.session import Session


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def session_of(endpoint: str, timeout_s: float = 20.0) -> Session:
    return Session(Options(Server(endpoint), "0.33.0", "test", 1, timeout_s, Autostart(endpoint)))


def test_a_daemon_is_started_and_outlives_the_session(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"""#!{sys.executable}
import os, subprocess, sys, time
sys.path[:0] = {sys.path!r}
from fake_daemon import FakeDaemon
if sys.argv[1:3] == ["start", "--log"]:
    assert sys.argv[3] == {str(envs.log_path())!r}
    subprocess.Popen([sys.executable, __file__, "serve"], stderr=subprocess.DEVNULL)
else:
    with FakeDaemon(os.environ["METAL_RPC_ENDPOINT"]):
        time.sleep(60)
"""
    monkeypatch.setenv("METAL_RPC_DAEMON", str(script(tmp_path / "metald", body)))
    session = session_of(endpoint)
    pid = session.open().pid
    try:
        session.close()
        again = session_of(endpoint)
        assert again.open().pid == pid
        again.close()
    finally:
        os.kill(pid, 9)


@pytest.mark.parametrize(
    ("body", "end", "words"),
    [
        ("echo 'no Metal device' >&2; exit 3", "exit code 3", "no Metal device"),
        ("kill -9 $$", "signal 9", "it wrote nothing"),
    ],
)
def test_a_daemon_that_ends_early_says_why(
    endpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    end: str,
    words: str,
) -> None:
    metald = script(tmp_path / "metald", f"#!/bin/sh\n{body}\n")
    monkeypatch.setenv("METAL_RPC_DAEMON", str(metald))
    with pytest.raises(DaemonUnavailable) as caught:
        session_of(endpoint).open()
    for part in (end, words, str(envs.log_path())):
        assert part in str(caught.value)


def test_an_upgrade_half_done_is_waited_for(
    daemon: FakeDaemon, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    metald = script(tmp_path / "metald", f"#!/bin/sh\necho x >> {count}\nexit 126\n")
    monkeypatch.setenv("METAL_RPC_DAEMON", str(metald))
    session = session_of(endpoint)
    session.open()
    daemon.script.down_s = 60
    daemon._restart.set()
    deadline = time.monotonic() + 20
    while not (count.exists() and len(count.read_text()) >= 4):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    daemon.script.down_s = 0
    with FakeDaemon(endpoint):
        assert session.set_up(m.ReserveMemory(0.5), m.MemoryReserved)
        session.close()


@pytest.mark.parametrize("status", [0, autostart.EXIT_ALREADY_RUNNING])
def test_a_start_that_left_it_to_another_is_repeated(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    count = tmp_path / "count"
    body = f"#!/bin/sh\necho x >> {count}\nexit {status}\n"
    monkeypatch.setenv("METAL_RPC_DAEMON", str(script(tmp_path / "metald", body)))
    starter = Autostart(endpoint)
    for _ in range(2):
        starter.ensure()
        assert starter._starter is not None
        starter._starter.wait(5)
        starter.ensure()
        assert starter._starter is None
    assert count.read_text() == "x\nx\n"


def test_what_a_start_came_to_does_not_matter_once_a_daemon_listens(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAL_RPC_DAEMON", str(script(tmp_path / "metald", "#!/bin/sh\nexit 1\n")))
    starter = Autostart(endpoint)
    starter.ensure()
    assert starter._starter is not None
    starter._starter.wait(5)
    starter.connected()
    starter.ensure()


def test_the_daemon_is_looked_for_by_variable_path_and_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAL_RPC_DAEMON", str(tmp_path / "missing"))
    with pytest.raises(DaemonUnavailable, match="METAL_RPC_DAEMON"):
        find_daemon()
    monkeypatch.delenv("METAL_RPC_DAEMON")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(autostart, "__file__", str(tmp_path / "a" / "b" / "c" / "autostart.py"))
    with pytest.raises(DaemonUnavailable, match="METAL_RPC_AUTOSTART=0"):
        find_daemon()
    (tmp_path / "target" / "release").mkdir(parents=True)
    built = script(tmp_path / "target" / "release" / "metald", "#!/bin/sh\n")
    assert find_daemon() == str(built)
    on_path = script(tmp_path / "metald", "#!/bin/sh\n")
    assert find_daemon() == str(on_path)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"XDG_RUNTIME_DIR": "/run/u"}, "ipc:///run/u/metal-rpc/metald.sock"),
        ({"TMPDIR": "/t"}, f"ipc:///t/metal-rpc-{os.getuid()}/metald.sock"),
        ({}, f"ipc:///tmp/metal-rpc-{os.getuid()}/metald.sock"),
        ({"METAL_RPC_ENDPOINT": "ipc:///run/m/x.sock"}, "ipc:///run/m/x.sock"),
    ],
)
def test_endpoint(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_RUNTIME_DIR", "TMPDIR", "METAL_RPC_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert envs.endpoint() == expected


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("METAL_RPC_ENDPOINT", "/a/path", envs.endpoint),
        ("METAL_RPC_ENDPOINT", "ipc://relative", envs.endpoint),
        ("METAL_RPC_ENDPOINT", "tcp://127.0.0.1", envs.endpoint),
        ("METAL_RPC_ENDPOINT", "tcp://*:7", envs.endpoint),
        ("METAL_RPC_ENDPOINT", "tcp://127.0.0.1:7;tcp://10.0.0.1:7", envs.endpoint),
        ("METAL_RPC_ENDPOINT", "udp://127.0.0.1:7", envs.endpoint),
        ("METAL_RPC_RECOVERY_TIMEOUT_S", "soon", envs.recovery_timeout_s),
        ("VLLM_METAL_MEMORY_FRACTION", "1.5", envs.memory_fraction),
        ("VLLM_METAL_MEMORY_FRACTION", "0", envs.memory_fraction),
        ("METAL_RPC_WEIGHT", "heavy", envs.weight),
        ("METAL_RPC_WEIGHT", "0", envs.weight),
        ("METAL_RPC_WEIGHT", "101", envs.weight),
        ("VLLM_METAL_BLOCK_SIZE", "16.5", envs.block_size),
    ],
)
def test_a_bad_variable_is_named(
    name: str, value: str, read: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(MetalRpcError, match=name):
        read()  # type: ignore[operator]


def test_tcp_needs_a_token_and_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAL_RPC_AUTOSTART", "1")
    monkeypatch.setenv("METAL_RPC_TOKEN_FILE", "/etc/token")
    assert envs.token_file() is None
    assert envs.autostart()
    for value in ("tcp://10.0.0.1:7777", "tcp://gpu-1.lan:7777", "tcp://[fe80::1]:7777"):
        monkeypatch.setenv("METAL_RPC_ENDPOINT", value)
        assert envs.endpoint() == value
        assert envs.token_file() == Path("/etc/token")
        assert not envs.autostart()
    monkeypatch.delenv("METAL_RPC_TOKEN_FILE")
    with pytest.raises(MetalRpcError, match="METAL_RPC_TOKEN_FILE"):
        envs.token_file()


def test_a_load_is_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    from vllm_metal_rpc.progress import LoadLog

    caplog.set_level("INFO", "vllm.metal_rpc")
    log = LoadLog(m.LoadModel("/m", "bfloat16", 1, 1, 1, ""))
    for share in range(101):
        log.show(m.LoadProgress(share, 100))
    assert len(caplog.records) == 10
    log._shown_at = time.monotonic() - 6
    log.show(m.LoadProgress(100, 100))
    assert len(caplog.records) == 11
