"""Gemma 3 270M behind `vllm serve`: real weights, three of whose eighteen layers see everything."""

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework import models, prompts
from framework.daemon import status, stopped_at_the_end
from framework.reference import ReferenceModel
from framework.server import Server

# A prompt of 1,600 tokens in float32, here and in transformers.
pytestmark = pytest.mark.timeout(900)

BOS_TOKEN = 2
NUM_TOKENS = 48
# Sums of some hundred products in another order.
FLOAT32_TIE = 1e-4
BLOCK_SIZE = 16
# In float32: keys and values of the one head of 256 of each layer.
TOKEN_BYTES = 18 * 2 * 256 * 4
# As many as the longest request needs with its windows of 512 tokens, and some.
NUM_BLOCKS = 480
FLAGS = (
    "--dtype=float32",
    "--max-model-len=2048",
    "--max-num-batched-tokens=256",
    "--max-num-seqs=8",
    f"--block-size={BLOCK_SIZE}",
    f"--num-gpu-blocks-override={NUM_BLOCKS}",
    "--generation-config=vllm",
)


@pytest.fixture(scope="module")
def gemma() -> Path:
    return models.real("gemma3-270m")


@pytest.fixture(scope="module")
def reference(gemma: Path) -> ReferenceModel:
    return ReferenceModel(gemma)


@pytest.fixture(scope="module")
def server(make_folder: Callable[[], Path], gemma: Path) -> Iterator[Server]:
    folder = make_folder()
    with stopped_at_the_end(folder), Server(gemma, folder, *FLAGS) as running:
        yield running


def test_greedy_tokens_are_those_of_transformers(server: Server, reference: ReferenceModel) -> None:
    answers = server.complete_all(
        list(prompts.VARIED), max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True
    )
    for answer in answers:
        assert answer["prompt_token_ids"][0] == BOS_TOKEN
        assert len(answer["token_ids"]) == NUM_TOKENS
        reference.assert_greedy(answer["prompt_token_ids"], answer["token_ids"], tie=FLOAT32_TIE)


def test_a_long_request_takes_less_memory_than_full_attention(
    server: Server, reference: ReferenceModel
) -> None:
    """More tokens than all layers could keep in the server's share of the memory."""
    body = {"max_tokens": NUM_TOKENS, "temperature": 0.0, "ignore_eos": True}
    prompt = prompts.long(28)
    shares = []
    for _ in server.stream("/v1/completions", prompt=prompt, **body):
        shares.append(server.metric("vllm:kv_cache_usage_perc"))
    # The same once more: its prompt is in the prefix cache, all but the blocks of passed windows.
    answer = server.complete(prompt, **body)
    num_tokens = len(answer["prompt_token_ids"]) + NUM_TOKENS
    reference.assert_greedy(answer["prompt_token_ids"], answer["token_ids"], tie=FLOAT32_TIE)

    needed = num_tokens * TOKEN_BYTES
    report = status(server.folder)
    assert report is not None
    assert 0 < report["kv"]["used_bytes"] <= report["kv"]["granted_bytes"] < needed
    # What vLLM's scheduler held while it decoded: a block is a page of 3 of the 18 layers.
    held = statistics.median(shares) * NUM_BLOCKS * BLOCK_SIZE * TOKEN_BYTES / 6
    assert 0 < held < 0.5 * needed
