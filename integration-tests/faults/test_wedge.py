"""A step that does not end: the daemon says so and makes room for the next one."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from framework import thread_stop
from framework.daemon import Daemon
from framework.frontend import DaemonError, Frontend, new_request, ready_frontend
from framework.greedy import generate

EXIT_WEDGED = 70
STEP_TIMEOUT_S = "3"

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="no other system stops a single thread"
)


@linux_only
@pytest.mark.parametrize(
    ("name", "index", "said"),
    [("engine", 0, "engine"), ("engine", 1, "reply"), ("reply", 0, "reply")],
    ids=["engine", "stream of MLX", "reply"],
)
def test_a_thread_that_hangs_ends_the_daemon(
    make_folder: Callable[[], Path], tiny: Callable[[str], Path], name: str, index: int, said: str
) -> None:
    daemon = Daemon(make_folder(), METAL_RPC_STEP_TIMEOUT_S=STEP_TIMEOUT_S)
    daemon.start()
    with ready_frontend(daemon.endpoint, tiny("gqa")) as frontend:
        generate(frontend, [[5, 6, 7]], 4)
        # MLX names none of its threads: they have the name of the one that they were made by.
        thread = thread_stop.threads(daemon.pid, name)[index]
        with thread_stop.stopped(thread):
            send_step(frontend)
            with pytest.raises(DaemonError) as caught:
                frontend.expect("StepResult", 0)
    assert (caught.value.code, caught.value.scope) == ("StepFailed", "daemon")
    assert f"the {said} thread is stuck" in caught.value.message
    assert "METAL_RPC_STEP_TIMEOUT_S" in caught.value.message
    assert daemon.wait_end() == EXIT_WEDGED
    with Daemon(daemon.folder) as successor:
        report = successor.status()
        assert (report["restarts"], report["previous_end"]) == (1, "step_timeout")


@linux_only
def test_a_daemon_that_hangs_is_stopped_all_the_same(
    make_folder: Callable[[], Path], tiny: Callable[[str], Path]
) -> None:
    daemon = Daemon(make_folder())
    daemon.start()
    with ready_frontend(daemon.endpoint, tiny("gqa")) as frontend:
        with thread_stop.stopped(thread_stop.threads(daemon.pid, "engine")[0]):
            send_step(frontend)
            daemon.send_signal(signal.SIGTERM)
            with pytest.raises(DaemonError) as caught:
                frontend.expect("StepResult", 0)
        assert caught.value.code == "ShuttingDown"
    assert daemon.wait_end() == 0


@linux_only
def test_a_second_signal_does_not_wait(
    make_folder: Callable[[], Path], tiny: Callable[[str], Path]
) -> None:
    daemon = Daemon(make_folder())
    daemon.start()
    with (
        ready_frontend(daemon.endpoint, tiny("gqa")) as frontend,
        thread_stop.stopped(thread_stop.threads(daemon.pid, "engine")[0]),
    ):
        send_step(frontend)
        daemon.send_signal(signal.SIGTERM)
        while daemon.socket.exists():
            assert daemon.is_running()
        daemon.send_signal(signal.SIGINT)
    assert daemon.wait_end() == 1


def send_step(frontend: Frontend) -> None:
    """A step, whose answer nobody waits for."""
    frontend.exec(
        new_requests=[new_request(9, [5, 6, 7], [9])],
        handles=[9],
        num_computed_tokens=[0],
        num_scheduled_tokens=[3],
    )
