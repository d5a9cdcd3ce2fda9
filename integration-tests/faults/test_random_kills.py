"""`kill -9` of the daemon at random moments under many streams: none fails, no token differs.

`METAL_RPC_SOAK_KILLS` makes it longer; what a kill costs is printed.
"""

import os
import random
import re
import time
from pathlib import Path
from typing import Any, Final

import pytest

from framework import prompts
from framework.daemon import kill_whoever_serves
from framework.server import Server
from framework.streams import Streams, median_and_max

NUM_KILLS = int(os.environ.get("METAL_RPC_SOAK_KILLS", "3"))
SEED = int(os.environ.get("METAL_RPC_SOAK_SEED", "5"))
NUM_STREAMS = 16
NUM_TOKENS = 40
LONGEST_WAIT_S = 2.0
# What the shim writes when a loss is over.
_RECOVERED: Final = re.compile(
    r"Recovered in [\d.]+ s: noticing ([\d.]+) s, start ([\d.]+) s, load ([\d.]+) s, "
    r"recompute ([\d.]+) s"
)
_PARTS: Final = ("noticing", "start", "load", "recompute until the first step")


@pytest.mark.parametrize("server", ["async"], indirect=True)
def test_kills_at_random_moments(server: Server) -> None:
    chance = random.Random(SEED)
    bodies = _bodies()
    expected = [choice["token_ids"] for choice in server.ask_all(bodies)]
    log_start = server.log_path.stat().st_size
    moments = []
    with Streams(server, bodies, expected) as streams:
        streams.wait_until_all_flow()
        for number in range(NUM_KILLS):
            # Every third falls into the recovery from the one before.
            if number % 3 != 2:
                streams.wait_until_all_flow()
            time.sleep(chance.uniform(0, LONGEST_WAIT_S))
            kill_whoever_serves(server.folder)
            moments.append(time.monotonic())
            print(f"{number + 1}/{NUM_KILLS} kills", flush=True)
        streams.wait_until_all_flow()
    print(f"\n{NUM_KILLS} kills (seed {SEED}) under {len(bodies)} streams: 0 failed requests")
    print(f"{streams.num_rounds} answers of {NUM_TOKENS} tokens, each as without a kill")
    print(f"pause of a stream: {median_and_max(streams.pauses_s(moments))}")
    for part, seconds in zip(_PARTS, _parts(server.log_path, log_start), strict=True):
        print(f"  {part}: {median_and_max(list(seconds))}")


def _bodies() -> list[dict[str, Any]]:
    """Greedy and seeded requests, no two alike."""
    common = {"max_tokens": NUM_TOKENS, "ignore_eos": True}
    seeded = {"temperature": 0.9, "top_p": 0.95}
    asked = prompts.many(2 * NUM_STREAMS)
    return [
        common | {"prompt": prompt} | ({"temperature": 0.0} if greedy else seeded | {"seed": index})
        for index, prompt in enumerate(asked)
        for greedy in [index % 2 == 0]
    ]


def _parts(log: Path, log_start: int) -> list[tuple[float, ...]]:
    """The parts of all recoveries that the shim has logged since, in the order of `_PARTS`."""
    with log.open() as file:
        file.seek(log_start)
        found = _RECOVERED.findall(file.read())
    assert found, "the shim has not said what a recovery took"
    return list(zip(*[[float(part) for part in parts] for parts in found], strict=True))
