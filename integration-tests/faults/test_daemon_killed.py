"""The daemon ends in the middle of answers: no request fails, no token differs."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from framework import prompts
from framework.baseline import Baseline
from framework.daemon import kill_whoever_serves, wait_for_status
from framework.server import Server

NUM_TOKENS = 48
KILL_AFTER = 12


@pytest.fixture
def asked(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in prompts.VARIED]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM], ids=lambda sent: sent.name)
def test_greedy_streams_go_on(
    server: Server, baseline: Baseline, asked: list[list[int]], sent: signal.Signals
) -> None:
    expected = baseline.greedy(asked, NUM_TOKENS)
    before = wait_for_status(server.folder)
    parameters = {"temperature": 0.0, "ignore_eos": True, "max_tokens": NUM_TOKENS}
    bodies = [{"prompt": prompt} | parameters for prompt in asked]
    streamed = _stream_all(server, bodies, lambda: kill_whoever_serves(server.folder, sent))
    assert streamed == expected
    after = wait_for_status(server.folder)
    assert after["pid"] != before["pid"]
    assert after["epoch"] != before["epoch"]


def test_sampled_streams_go_on(server: Server) -> None:
    """Seeds, penalties and grammars: what the daemon remembered is sent to it again."""
    asked = [{"prompt": prompts.VARIED[1]} | parameters for parameters in prompts.SAMPLED]
    undisturbed = _stream_all(server, asked, lambda: None)
    killed = _stream_all(server, asked, lambda: kill_whoever_serves(server.folder))
    assert killed == undisturbed


@pytest.mark.parametrize("server", ["async"], indirect=True)
def test_an_idle_server_finds_the_next_daemon(
    server: Server, baseline: Baseline, asked: list[list[int]], smollm2: Path
) -> None:
    kill_whoever_serves(server.folder)
    (expected,) = baseline.greedy(asked[:1], 8)
    answer = server.complete(asked[0], temperature=0.0, max_tokens=8)
    assert answer["token_ids"] == expected
    (model,) = wait_for_status(server.folder)["models"]
    assert Path(model["path"]) == smollm2.resolve()


def _stream_all(
    server: Server, asked: list[dict[str, Any]], disturb: Callable[[], object]
) -> list[list[int]]:
    """Streams all prompts at once; calls `disturb` when all of them are under way.

    Returns:
        The token ids of each stream. An error in a stream is raised here.
    """
    answers: list[list[int]] = [[] for _ in asked]
    failures: list[BaseException] = []
    under_way = threading.Barrier(len(asked) + 1)

    def run(index: int) -> None:
        try:
            waited = False
            for event in server.stream("/v1/completions", **asked[index]):
                answers[index] += event["choices"][0].get("token_ids") or []
                if not waited and len(answers[index]) >= KILL_AFTER:
                    waited = True
                    under_way.wait(timeout=120)
        except BaseException as error:
            failures.append(error)
            under_way.abort()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(asked))]
    for thread in threads:
        thread.start()
    try:
        under_way.wait(timeout=120)
        disturb()
    except threading.BrokenBarrierError:
        pass
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return answers
