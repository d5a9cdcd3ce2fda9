"""Daemons that somebody else starts (`METAL_RPC_AUTOSTART=0`), and one that nobody starts."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from framework import models
from framework.daemon import Daemon
from framework.memory_limit import needs_memory_limit, no_more_memory
from framework.server import Server
from framework.streams import Streams

NUM_TOKENS = 200
# Wide, so that the logits of a prompt are large and nothing else is.
VOCAB_SIZE = 49_000
SPARE_BYTES = 24 << 20
COMMON: dict[str, Any] = {
    "ignore_eos": True,
    "temperature": 0.0,
    "logit_bias": {str(models.NAN_TOKEN): -100.0},
}
BODIES = [{"prompt": [5 + index] * 20, "max_tokens": NUM_TOKENS} | COMMON for index in range(4)]
# Its scores need the logits of all its positions at once.
LARGE = {"prompt": [9] * 250, "max_tokens": 4, "prompt_logprobs": 1} | COMMON
FLAGS = (
    "--dtype=float32",
    "--max-model-len=256",
    "--max-num-seqs=8",
    "--generation-config=vllm",
    "--scheduler-cls=vllm.v1.core.sched.async_scheduler.AsyncScheduler",
)


class ByHand(NamedTuple):
    """A daemon and the server that it was started for."""

    daemon: Daemon
    server: Server


@pytest.fixture(scope="module")
def by_hand(make_folder: Callable[[], Path], smollm2: Path) -> Iterator[ByHand]:
    folder = make_folder()
    model = models.tiny_with_tokenizer(make_folder() / "tiny", smollm2, vocab_size=VOCAB_SIZE)
    variables = {"METAL_RPC_AUTOSTART": "0", "METAL_RPC_RECOVERY_TIMEOUT_S": "20"}
    with Daemon(folder) as daemon, Server(model, folder, *FLAGS, **variables) as server:
        yield ByHand(daemon, server)


def test_streams_wait_for_a_daemon_that_is_started_by_hand(by_hand: ByHand) -> None:
    daemon, server = by_hand
    expected = [choice["token_ids"] for choice in server.ask_all(BODIES)]
    with Streams(server, BODIES, expected) as streams:
        for end in (daemon.kill, daemon.stop):
            streams.wait_until_all_flow()
            end()
            daemon.start()
        streams.wait_until_all_flow()
    assert "Recomputing" in server.log_path.read_text()


@needs_memory_limit
def test_a_request_without_memory_fails_and_others_go_on(by_hand: ByHand) -> None:
    daemon, server = by_hand
    pid = daemon.pid
    expected = [choice["token_ids"] for choice in server.ask_all([*BODIES, LARGE])]

    def ask(body: dict[str, Any]) -> requests.Response:
        return server.post("/v1/completions", return_token_ids=True, **body)

    with no_more_memory(pid, SPARE_BYTES), ThreadPoolExecutor(len(BODIES) + 1) as threads:
        *others, large = threads.map(ask, [*BODIES, LARGE])
    assert large.status_code == requests.codes.server_error, large.text
    assert "5 times in a row" in large.text
    assert "Unable to allocate" in large.text
    assert [answer.json()["choices"][0]["token_ids"] for answer in others] == expected[:-1]
    again = [choice["token_ids"] for choice in server.ask_all([*BODIES, LARGE])]
    assert again == expected
    assert daemon.status()["pid"] == pid


def test_without_a_daemon_requests_fail_when_the_time_is_over(by_hand: ByHand) -> None:
    """The last: the server does not outlive it."""
    daemon, server = by_hand
    daemon.kill()
    refused = server.post("/v1/completions", **BODIES[0])
    assert refused.status_code == requests.codes.server_error, refused.text
    server.wait_end()
    log = server.log_path.read_text()
    for words in ("METAL_RPC_RECOVERY_TIMEOUT_S", "the last one was lost", "METAL_RPC_AUTOSTART=0"):
        assert words in log
