"""Several frontends on one daemon: one copy of the weights, one pool, separate answers."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from framework.daemon import Daemon
from framework.frontend import DaemonError, Frontend, new_request, ready_frontend
from framework.greedy import generate

NUM_FRONTENDS = 4
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def model(tiny: Callable[[str], Path]) -> Path:
    return tiny("llama3-rope")


def prompt_of(number: int) -> list[int]:
    """40 tokens that no other frontend sends."""
    return [(11 * number + 7 * i) % 300 for i in range(40)]


def test_frontends_with_the_same_block_numbers_do_not_meet(daemon: Daemon, model: Path) -> None:
    alone = []
    for number in range(NUM_FRONTENDS):
        with ready_frontend(daemon.endpoint, model, num_blocks=64) as frontend:
            alone += generate(frontend, [prompt_of(number)], NUM_TOKENS)
            frontend.goodbye()
    frontends = [
        ready_frontend(daemon.endpoint, model, num_blocks=64, memory_fraction=0.1 * (n + 1))
        for n in range(NUM_FRONTENDS)
    ]

    def run(number: int) -> list[int]:
        (tokens,) = generate(
            frontends[number], [prompt_of(number)], NUM_TOKENS, pipelined=number % 2 == 1
        )
        return tokens

    with ThreadPoolExecutor(NUM_FRONTENDS) as threads:
        assert list(threads.map(run, range(NUM_FRONTENDS))) == alone
    (loaded,) = [m for m in daemon.status()["models"] if m["path"] == str(model.resolve())]
    # Sessions of earlier tests may still live out their leases.
    assert loaded["sessions"] >= NUM_FRONTENDS
    for frontend in frontends:
        frontend.goodbye()
        frontend.close()


def test_a_block_of_another_frontend_cannot_be_read(daemon: Daemon, model: Path) -> None:
    with ready_frontend(daemon.endpoint, model, num_blocks=64) as owner:
        generate(owner, [prompt_of(0)], 2)
        with ready_frontend(daemon.endpoint, model, num_blocks=64) as thief:
            # Block 1 is the owner's first; the thief has never written its own block 1.
            with pytest.raises(DaemonError) as caught:
                thief.step(
                    new_requests=[new_request(0, prompt_of(1), [1, 2, 3])],
                    handles=[0],
                    num_computed_tokens=[16],
                    num_scheduled_tokens=[24],
                )
            assert (caught.value.code, caught.value.scope) == ("InvalidStep", "session")
        owner.goodbye()


def test_blocks_come_back_when_a_session_ends(daemon: Daemon, model: Path) -> None:
    used_before = daemon.status()["kv"]["used_bytes"]
    with ready_frontend(daemon.endpoint, model, num_blocks=64) as frontend:
        generate(frontend, [prompt_of(0)], 2)
        assert daemon.status()["kv"]["used_bytes"] > used_before
        frontend.goodbye()
        assert daemon.status()["kv"]["used_bytes"] <= used_before


def test_memory_that_others_hold_is_not_promised_again(daemon: Daemon, model: Path) -> None:
    def available(frontend: Frontend) -> int:
        body = frontend.call("ReserveMemory", "MemoryReserved", memory_fraction=0.2)
        available_bytes: int = body["available_bytes"]
        return available_bytes

    with Frontend(daemon.endpoint) as first, Frontend(daemon.endpoint) as second:
        for frontend in (first, second):
            frontend.hello()
            frontend.load_model(model)
        promised = available(first)
        with pytest.raises(DaemonError) as caught:
            available(second)
        assert caught.value.code == "OutOfMemory"
        assert "integration-test" in caught.value.message
        first.goodbye()
        assert available(second) >= promised
