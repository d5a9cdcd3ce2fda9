"""Frontends die, freeze, or lose their cable: what they had comes back, and others go on."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework import doomed, models, prompts
from framework.baseline import Baseline
from framework.bystander import Bystander
from framework.daemon import Daemon, wait_for_sessions
from framework.footprint import Footprint, wait_until_back
from framework.frontend import DaemonError, new_request, ready_frontend
from framework.relay import Relay
from framework.server import Server
from framework.streams import Streams, median_and_max

NUM_CYCLES = int(os.environ.get("METAL_RPC_SOAK_CYCLES", "2"))
NUM_FRONTENDS = 3
# What allocators keep of a session, which the next one gets.
MOST_GROWTH_BYTES = 16 << 20
NUM_TOKENS = 48


@pytest.fixture
def own_daemon(make_folder: Callable[[], Path]) -> Iterator[Daemon]:
    with Daemon(make_folder(), METAL_RPC_MODEL_KEEP_ALIVE_S="0") as running:
        yield running


def test_killed_frontends_leave_nothing_behind(
    own_daemon: Daemon, tiny: Callable[[str], Path]
) -> None:
    endpoint = own_daemon.endpoint
    with Bystander(endpoint, tiny("mha-tied")) as bystander:
        _run_a_cycle(endpoint, tiny("gqa"))
        _wait_until_alone(own_daemon)
        before = Footprint.of(own_daemon)
        bystander.forget_times()
        freed_s = []
        for number in range(NUM_CYCLES):
            _run_a_cycle(endpoint, tiny("gqa"))
            killed = time.monotonic()
            _wait_until_alone(own_daemon)
            freed_s.append(time.monotonic() - killed)
            print(f"{number + 1}/{NUM_CYCLES} cycles", flush=True)
        after = wait_until_back(own_daemon, before, MOST_GROWTH_BYTES)
        print(f"\n{NUM_CYCLES} cycles of {NUM_FRONTENDS} frontends killed in the middle of steps")
        print(f"before: {before}\nafter:  {after}")
        print(f"from the kill until all was free: {median_and_max(freed_s)}")
        print(
            f"rounds of the bystander (9 steps each) meanwhile: {median_and_max(bystander.round_s)}"
        )


@pytest.mark.skipif(NUM_CYCLES < 20, reason="each start of vLLM takes long: scripts/soak runs it")
def test_a_killed_vllm_leaves_nothing_behind(
    own_daemon: Daemon, tiny: Callable[[str], Path], make_folder: Callable[[], Path], smollm2: Path
) -> None:
    model = models.tiny_with_tokenizer(make_folder() / "tiny", smollm2)
    flags = ("--dtype=float32", "--max-model-len=256", "--gpu-memory-utilization=0.3")
    with Bystander(own_daemon.endpoint, tiny("mha-tied")):
        _wait_until_alone(own_daemon)
        before = Footprint.of(own_daemon)
        for _ in range(2):
            server = Server(model, own_daemon.folder, *flags, METAL_RPC_AUTOSTART="0")
            server.start()
            server.wait_ready()
            server.complete([5, 6, 7], max_tokens=8, ignore_eos=True)
            server.send_signal(signal.SIGKILL)
            _wait_until_alone(own_daemon)
        after = wait_until_back(own_daemon, before, MOST_GROWTH_BYTES)
        print(f"\n2 vLLM servers killed\nbefore: {before}\nafter:  {after}")


def test_a_frozen_frontend_loses_its_lease_and_is_told_so(
    own_daemon: Daemon, tiny: Callable[[str], Path]
) -> None:
    with Bystander(own_daemon.endpoint, tiny("mha-tied")) as bystander:
        frozen = doomed.start(own_daemon.endpoint, tiny("gqa"))
        before = bystander.num_rounds
        frozen.send_signal(signal.SIGSTOP)
        _wait_until_alone(own_daemon)
        assert bystander.num_rounds > before
        frozen.send_signal(signal.SIGCONT)
        # It is written without a way back: what it is told ends it.
        assert frozen.wait(60) == 1
        assert frozen.stderr is not None
        assert "UnknownSession" in frozen.stderr.read()


def test_both_ends_of_a_half_open_connection_recover(
    own_daemon: Daemon, tiny: Callable[[str], Path]
) -> None:
    with (
        Relay(own_daemon.folder, own_daemon.endpoint) as relay,
        Bystander(own_daemon.endpoint, tiny("mha-tied")),
        ready_frontend(relay.endpoint, tiny("gqa")) as frontend,
    ):
        step = {"handles": [0], "num_computed_tokens": [0], "num_scheduled_tokens": [3]}
        frontend.step(new_requests=[new_request(0, [5, 6, 7], [1])], **step)
        relay.stall()
        _wait_until_alone(own_daemon)
        relay.resume()
        with pytest.raises(DaemonError) as caught:
            frontend.step(handles=[0], num_computed_tokens=[3])
        assert caught.value.code == "UnknownSession"
        assert "lease ran out" in caught.value.message


@pytest.mark.parametrize("server", ["async"], indirect=True)
def test_a_frozen_vllm_goes_on_with_its_streams(
    server: Server, baseline: Baseline, tokenizer: Callable[[str], dict[str, list[int]]]
) -> None:
    asked = [tokenizer(text)["input_ids"] for text in prompts.VARIED]
    expected = baseline.greedy(asked, NUM_TOKENS)
    body = {"temperature": 0.0, "ignore_eos": True, "max_tokens": NUM_TOKENS}
    with Streams(server, [body | {"prompt": prompt} for prompt in asked], expected) as streams:
        streams.wait_until_all_flow()
        server.send_signal(signal.SIGSTOP)
        try:
            wait_for_sessions(server.folder, 0)
        finally:
            server.send_signal(signal.SIGCONT)
        wait_for_sessions(server.folder, 1)
        streams.wait_until_all_flow()


def _run_a_cycle(endpoint: str, model: Path) -> None:
    """Frontends that run steps, all killed."""
    frontends = [doomed.start(endpoint, model) for _ in range(NUM_FRONTENDS)]
    for frontend in frontends:
        frontend.kill()
        frontend.wait()


def _wait_until_alone(daemon: Daemon) -> None:
    """Waits until only the bystander has a session, a model and blocks."""

    def is_alone() -> bool:
        report = daemon.status()
        return (len(report["sessions"]), len(report["models"])) == (1, 1)

    _wait_until(is_alone)


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
