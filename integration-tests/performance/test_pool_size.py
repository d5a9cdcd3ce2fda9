"""What a step costs does not depend on the size of the KV pool.

MLX updates an array in place only if nobody else holds it; with two steps in flight somebody does,
and it would copy the whole pool without a word. Copying shows in two ways: as memory (the pool's
address space is reserved, and only what is written becomes real), and as time.
"""

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.daemon import Daemon
from framework.frontend import Frontend, new_request, ready_frontend
from framework.greedy import BLOCK_SIZE

# Shares of the machine's memory that are reserved for the pool.
SMALL_SHARE, LARGE_SHARE = 0.01, 0.64
NUM_STEPS = 200
NUM_REQUESTS = 8
PROMPT_TOKENS = 64
# 264 tokens of 8 requests are under 2 MB of keys and values; the allocator and the threads' stacks
# take some more. Copying the large pool once would take gigabytes.
MOST_GROWTH_BYTES = 64 << 20
# Generous, because the machine does other things too. Copying would be hundreds of times slower.
MOST_SLOWDOWN = 3.0


@pytest.fixture(scope="module")
def model(tiny: Callable[[str], Path]) -> Path:
    return tiny("gqa")


def test_memory_grows_by_what_is_written(make_folder: Callable[[], Path], model: Path) -> None:
    with (
        Daemon(make_folder(), f"--memory-fraction={LARGE_SHARE}") as daemon,
        ready_frontend(
            daemon.endpoint, model, num_blocks=1 << 20, memory_fraction=LARGE_SHARE
        ) as frontend,
    ):
        # The first steps start threads and fill the allocator's caches.
        run_steps(frontend, 10)
        before = daemon.rss_bytes()
        run_steps(frontend, NUM_STEPS)
        growth = daemon.rss_bytes() - before
        budget = daemon.status()["kv"]["budget_bytes"]
    assert budget > 20 * MOST_GROWTH_BYTES, "too small a pool to show a copy"
    assert growth < MOST_GROWTH_BYTES, f"{growth >> 20} MiB for {NUM_STEPS} steps"


def test_a_step_takes_as_long_with_64_times_the_pool(
    make_folder: Callable[[], Path], model: Path
) -> None:
    daemons = {
        share: Daemon(make_folder(), f"--memory-fraction={share}")
        for share in (SMALL_SHARE, LARGE_SHARE)
    }
    times: dict[float, list[int]] = {share: [] for share in daemons}
    with daemons[SMALL_SHARE], daemons[LARGE_SHARE]:
        frontends = {
            share: ready_frontend(daemon.endpoint, model, num_blocks=512, memory_fraction=share)
            for share, daemon in daemons.items()
        }
        # Turn by turn, so that other load meets both.
        for _ in range(5):
            for share, frontend in frontends.items():
                times[share] += run_steps(frontend, NUM_STEPS // 5)
        for frontend in frontends.values():
            frontend.close()
    medians = {share: statistics.median(values) for share, values in times.items()}
    assert medians[LARGE_SHARE] < MOST_SLOWDOWN * medians[SMALL_SHARE], medians


def run_steps(frontend: Frontend, num_steps: int) -> list[int]:
    """Decodes a batch, always with two steps in flight. Returns the daemon's own times in us."""
    blocks = -(-(PROMPT_TOKENS + num_steps + 1) // BLOCK_SIZE)
    requests = [
        new_request(
            handle,
            [(handle + 3 * i) % 300 for i in range(PROMPT_TOKENS)],
            list(range(1 + handle * blocks, 1 + (handle + 1) * blocks)),
        )
        for handle in range(NUM_REQUESTS)
    ]
    handles = list(range(NUM_REQUESTS))
    in_flight = [
        frontend.exec(
            new_requests=requests,
            handles=handles,
            num_computed_tokens=[0] * NUM_REQUESTS,
            num_scheduled_tokens=[PROMPT_TOKENS] * NUM_REQUESTS,
        )
    ]
    run_us = []
    for step in range(num_steps):
        computed = [PROMPT_TOKENS + step] * NUM_REQUESTS
        in_flight.append(frontend.exec(handles=handles, num_computed_tokens=computed))
        run_us.append(frontend.expect("StepResult", in_flight.pop(0))["run_us"])
    frontend.expect("StepResult", in_flight.pop())
    frontend.step(finished=handles)
    return run_us[1:]
