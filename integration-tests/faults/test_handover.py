"""A daemon makes room for the next one: its steps are answered, its endpoint has one owner."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework import paths, prompts
from framework.baseline import Baseline
from framework.daemon import (
    Daemon,
    endpoint_in,
    environment,
    status,
    wait_for_sessions,
    wait_for_status,
)
from framework.frontend import DaemonError, Frontend, new_request, ready_frontend
from framework.server import Server
from framework.streams import Streams

PROMPT = [7, 8, 9] * 100
NUM_TOKENS = 48


@pytest.fixture
def old(make_folder: Callable[[], Path]) -> Iterator[Daemon]:
    with Daemon(make_folder()) as daemon:
        yield daemon


def test_drain_finishes_the_steps_in_flight(old: Daemon, tiny: Callable[[str], Path]) -> None:
    with ready_frontend(old.endpoint, tiny("gqa")) as frontend:
        seq = send_long_step(old, frontend)
        drained = metald("drain", old.folder)
        assert len(frontend.expect("StepResult", seq)["token_ids"]) == 1
        with pytest.raises(DaemonError) as caught:
            frontend.expect("StepResult", seq)
    assert (caught.value.code, caught.value.scope) == ("ShuttingDown", "daemon")
    assert drained.returncode == 0, drained.stderr
    assert f"metald {old.pid} has ended" in drained.stdout
    assert old.wait_end() == 0
    assert status(old.folder) is None


def test_drain_without_a_daemon_says_so(make_folder: Callable[[], Path]) -> None:
    folder = make_folder()
    refused = metald("drain", folder)
    assert refused.returncode == 69
    assert endpoint_in(folder) in refused.stderr


def test_a_new_daemon_takes_over_from_the_old_one(old: Daemon, tiny: Callable[[str], Path]) -> None:
    with ready_frontend(old.endpoint, tiny("gqa")) as frontend:
        seq = send_long_step(old, frontend)
        with Daemon(old.folder, "--take-over") as new:
            assert old.wait_end() == 0
            report = new.status()
            assert (report["pid"], report["restarts"]) == (new.pid, 1)
            assert report["previous_end"] == "stopped"
            assert len(frontend.expect("StepResult", seq)["token_ids"]) == 1
            with ready_frontend(new.endpoint, tiny("gqa")):
                pass


def test_without_an_old_daemon_there_is_nothing_to_take_over(
    make_folder: Callable[[], Path],
) -> None:
    with Daemon(make_folder(), "--take-over") as only:
        assert only.status()["restarts"] == 0


def test_a_daemon_may_be_started_while_the_old_one_still_works(old: Daemon, smollm2: Path) -> None:
    with ready_frontend(old.endpoint, smollm2) as frontend:
        seq = send_long_step(old, frontend)
        old.send_signal(signal.SIGTERM)
        while old.socket.exists():
            assert old.is_running()
        with Daemon(old.folder) as new:
            assert old.wait_end() == 0
            assert new.status()["previous_end"] == "stopped"
        assert len(frontend.expect("StepResult", seq)["token_ids"]) == 1


def test_a_daemon_that_lost_its_socket_makes_room_for_the_next(
    old: Daemon, tiny: Callable[[str], Path]
) -> None:
    with ready_frontend(old.endpoint, tiny("gqa")) as frontend:
        old.socket.unlink()
        with pytest.raises(DaemonError) as caught:
            frontend.expect("Pong", 0)
        assert caught.value.code == "ShuttingDown"
    assert old.wait_end() == 0
    with Daemon(old.folder) as new:
        assert new.is_running()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_a_daemon_may_end_while_it_loads(old: Daemon, smollm2: Path, sent: signal.Signals) -> None:
    with Frontend(old.endpoint) as frontend:
        frontend.hello()
        frontend.send(
            "LoadModel",
            path=str(smollm2),
            dtype="float32",
            max_model_len=256,
            max_num_seqs=4,
            max_num_batched_tokens=256,
            logprobs_mode="raw_logprobs",
        )
        old.send_signal(sent)
        assert old.wait_end() == (0 if sent == signal.SIGTERM else -signal.SIGKILL)
    with Daemon(old.folder) as new:
        expected = "stopped" if sent == signal.SIGTERM else None
        assert new.status()["previous_end"] == expected


@pytest.mark.parametrize("server", ["async"], indirect=True)
def test_streams_go_on_at_the_daemon_that_takes_over(
    server: Server, baseline: Baseline, tokenizer: Callable[[str], dict[str, list[int]]]
) -> None:
    asked = [tokenizer(text)["input_ids"] for text in prompts.VARIED]
    expected = baseline.greedy(asked, NUM_TOKENS)
    body = {"temperature": 0.0, "ignore_eos": True, "max_tokens": NUM_TOKENS}
    before = wait_for_status(server.folder)
    with Streams(server, [body | {"prompt": prompt} for prompt in asked], expected) as streams:
        streams.wait_until_all_flow()
        with Daemon(server.folder, "--take-over") as new:
            report = wait_for_sessions(new.folder, 1)
            streams.wait_until_all_flow()
            assert report["pid"] == new.pid
            assert report["restarts"] == before["restarts"] + 1
            # Back to a daemon that the shim starts: this one is stopped.
        streams.wait_until_all_flow()
    assert wait_for_status(server.folder)["pid"] not in (before["pid"], new.pid)


def send_long_step(daemon: Daemon, frontend: Frontend) -> int:
    """Returns when it runs, or is done."""
    blocks = list(range(1, len(PROMPT) // 16 + 2))
    seq = frontend.exec(
        new_requests=[new_request(0, PROMPT, blocks)],
        handles=[0],
        num_computed_tokens=[0],
        num_scheduled_tokens=[len(PROMPT)],
    )
    while daemon.status()["sessions"][0]["running_requests"] == 0:
        assert daemon.is_running()
    return seq


def metald(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(paths.metald()), command],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
