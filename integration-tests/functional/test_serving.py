"""However a server schedules, greedy answers are those of requests asked one at a time.

Each test runs against the two servers of conftest.py, which schedule synchronously and
asynchronously and have so few blocks that 32 requests at once preempt each other.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import requests

from framework import prompts
from framework.baseline import Baseline
from framework.server import Server, messages, streamed_token_ids

GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def many(tokenizer: Any) -> list[list[int]]:
    """16 prompts, each asked twice: 32 requests."""
    return [tokenizer(text)["input_ids"] for text in prompts.many(16)] * 2


@pytest.fixture(scope="module")
def long_prompt(tokenizer: Any) -> list[int]:
    """More than fits into one step."""
    token_ids: list[int] = tokenizer(prompts.long(6))["input_ids"]
    assert 256 < len(token_ids) < 512
    return token_ids


def test_completion(server: Server, baseline: Baseline, tokenizer: Any) -> None:
    text = prompts.VARIED[2]
    (expected,) = baseline.greedy([tokenizer(text)["input_ids"]], 24)
    answer = server.complete(text, max_tokens=24, **GREEDY)
    assert answer["token_ids"] == expected
    assert answer["text"] == tokenizer.decode(expected)


def test_streamed_completion(server: Server, baseline: Baseline, tokenizer: Any) -> None:
    token_ids = tokenizer(prompts.VARIED[2])["input_ids"]
    (expected,) = baseline.greedy([token_ids], 24)
    events = list(server.stream("/v1/completions", prompt=token_ids, max_tokens=24, **GREEDY))
    assert len(events) > 10, "the stream came in one piece"
    assert streamed_token_ids(iter(events)) == expected


def test_chat(server: Server, baseline: Baseline) -> None:
    for question in prompts.CHATS:
        answer = server.chat(question, max_tokens=16, **GREEDY)
        (expected,) = baseline.greedy([answer["prompt_token_ids"]], 16)
        assert answer["token_ids"] == expected


def test_streamed_chat(server: Server, baseline: Baseline, tokenizer: Any) -> None:
    chat = messages(prompts.CHATS[0])
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
    (expected,) = baseline.greedy([prompt["input_ids"]], 16)
    events = server.stream("/v1/chat/completions", messages=chat, max_tokens=16, **GREEDY)
    assert streamed_token_ids(events) == expected


def test_end_of_sequence_ends_a_chat(server: Server) -> None:
    answer = server.chat("Say hello.", max_tokens=200, temperature=0.0)
    assert answer["finish_reason"] == "stop"


def test_16_requests_at_once(server: Server, baseline: Baseline, many: list[list[int]]) -> None:
    assert _preemptions_of(server, baseline, many[:16], 32) == 0


def test_32_requests_preempt_each_other(
    server: Server, baseline: Baseline, many: list[list[int]]
) -> None:
    assert _preemptions_of(server, baseline, many, 32) > 0


def _preemptions_of(
    server: Server, baseline: Baseline, asked: list[list[int]], num_tokens: int
) -> float:
    """Asks everything at once, checks the answers, and tells how often a request was preempted."""
    expected = baseline.greedy(asked, num_tokens)
    before = server.metric("vllm:num_preemptions_total")
    answers = server.complete_all(asked, max_tokens=num_tokens, **GREEDY)
    assert _token_ids(answers) == expected
    return server.metric("vllm:num_preemptions_total") - before


def test_a_prompt_longer_than_a_step(
    server: Server, baseline: Baseline, long_prompt: list[int]
) -> None:
    (expected,) = baseline.greedy([long_prompt], 24)
    assert server.complete(long_prompt, max_tokens=24, **GREEDY)["token_ids"] == expected


def test_a_shared_prefix_is_served_from_the_cache(
    server: Server, baseline: Baseline, long_prompt: list[int], many: list[list[int]]
) -> None:
    shared = [long_prompt + tail for tail in many[:4]]
    expected = baseline.greedy(shared, 12)
    server.complete(shared[0], max_tokens=12, **GREEDY)
    before = server.metric("vllm:prefix_cache_hits_total")
    answers = server.complete_all(shared[1:], max_tokens=12, **GREEDY)
    assert _token_ids(answers) == expected[1:]
    hits = server.metric("vllm:prefix_cache_hits_total") - before
    assert hits >= len(shared[1:]) * (len(long_prompt) - 16)


def test_a_seed_draws_the_same_alone_and_in_a_batch(server: Server, many: list[list[int]]) -> None:
    sampled = {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "ignore_eos": True, "seed": 1234}
    alone = [server.complete(prompt, max_tokens=16, **sampled) for prompt in many[:4]]
    together = server.complete_all(many, max_tokens=16, **sampled)
    assert _token_ids(together[:4]) == _token_ids(alone)
    # The same prompts stand in both halves.
    assert _token_ids(together[16:]) == _token_ids(together[:16])
    other = server.complete(many[0], max_tokens=16, **(sampled | {"seed": 99}))
    assert other["token_ids"] != alone[0]["token_ids"]


def test_a_client_may_choose_a_long_request_id(server: Server, many: list[list[int]]) -> None:
    answer = requests.post(
        f"{server.url}/v1/completions",
        json={"model": "model", "prompt": many[0], "max_tokens": 2},
        headers={"X-Request-Id": "x" * 20_000},
        timeout=60,
    )
    assert answer.status_code == requests.codes.ok, answer.text


def _token_ids(answers: Sequence[dict[str, Any]]) -> list[list[int]]:
    return [answer["token_ids"] for answer in answers]
