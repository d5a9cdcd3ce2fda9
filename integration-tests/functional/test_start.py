"""The daemon is started when none runs, says what it does, and ends cleanly."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from framework import paths, prompts
from framework.baseline import Baseline
from framework.daemon import Daemon, endpoint_in, environment, status, wait_for_status
from framework.frontend import Frontend, new_request
from framework.server import Server


@pytest.mark.parametrize("server", ["async"], indirect=True)
def test_the_shim_starts_a_daemon_that_says_what_it_does(server: Server, smollm2: Path) -> None:
    server.complete("Hello", max_tokens=2)
    report = wait_for_status(server.folder)
    process = psutil.Process(report["pid"])
    assert process.name() == "metald"
    assert report["epoch"] > 0
    (session,) = report["sessions"]
    assert session["vllm_version"].startswith("0.33.")
    assert session["steps"] > 0
    (model,) = report["models"]
    assert Path(model["path"]) == smollm2.resolve()
    assert (model["model_type"], model["dtype"]) == ("llama", "bfloat16")
    kv = report["kv"]
    assert 0 < kv["used_bytes"] <= kv["granted_bytes"] <= kv["budget_bytes"]


def test_status_without_a_daemon_fails(make_folder: Callable[[], Path]) -> None:
    assert status(make_folder()) is None


def test_a_second_daemon_of_an_endpoint_ends_at_once(daemon: Daemon) -> None:
    second = _serve(daemon.folder)
    assert second.returncode == 75, second.stderr
    assert daemon.endpoint in second.stderr


def test_a_directory_open_to_others_is_refused(make_folder: Callable[[], Path]) -> None:
    folder = make_folder()
    folder.chmod(0o755)
    refused = _serve(folder)
    assert refused.returncode not in (0, 75), refused.stderr
    assert "chmod 700" in refused.stderr


def test_generate_needs_no_daemon_and_no_vllm(
    smollm2: Path, baseline: Baseline, tokenizer: Any
) -> None:
    command = [str(paths.metald()), "generate", "--model", str(smollm2), "--max-tokens", "12"]
    result = subprocess.run(
        [*command, prompts.VARIED[0]], capture_output=True, text=True, timeout=60, check=True
    )
    (expected,) = baseline.greedy([tokenizer(prompts.VARIED[0])["input_ids"]], 12)
    assert result.stdout.strip() == prompts.VARIED[0] + tokenizer.decode(expected)


def test_sigterm_ends_it_and_removes_nothing_of_others(make_folder: Callable[[], Path]) -> None:
    folder = make_folder()
    stopped = Daemon(folder)
    stopped.start()
    assert stopped.stop() == 0
    with Daemon(folder) as again:
        assert again.is_running()


def test_a_silent_session_is_closed_and_gives_its_blocks_back(
    daemon: Daemon, tiny: Callable[[str], Path]
) -> None:
    with Frontend(daemon.endpoint) as frontend:
        frontend.hello("silent")
        frontend.load_model(tiny("gqa"))
        frontend.create_cache(64, memory_fraction=0.1)
        prompt = [7] * 40
        frontend.step(
            new_requests=[new_request(0, prompt, [1, 2, 3])],
            handles=[0],
            num_computed_tokens=[0],
            num_scheduled_tokens=[40],
        )
        (session,) = _sessions_of(daemon, "silent")
        assert (session["running_requests"], session["used_blocks"]) == (1, 3)
        frontend.close()
    _wait_until_closed(daemon, "silent")


def _wait_until_closed(daemon: Daemon, frontend: str) -> None:
    deadline = time.monotonic() + 30
    while sessions := _sessions_of(daemon, frontend):
        assert time.monotonic() < deadline, f"still open: {sessions}"
        time.sleep(0.2)


def _sessions_of(daemon: Daemon, frontend: str) -> list[dict]:
    sessions = daemon.status()["sessions"]
    return [session for session in sessions if session["frontend"] == frontend]


def _serve(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(paths.metald()), "serve", "--endpoint", endpoint_in(folder)],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
